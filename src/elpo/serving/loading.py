"""From a run, a model folder or a hub name to a served model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from elpo.config import ModelConfig
from elpo.serving.model import ServedModel
from elpo.training.assembly import choose_device, find_model, load_model
from elpo.training.run_folder import RunFolder


def model_source(target: str) -> tuple[str, ModelConfig]:
    """The folder or hub name of the weights that `target` means, and how they are loaded.

    A run folder means its best checkpoint, its last one where none was evaluated.

    Raises:
        ValueError: there is no such folder, it is damaged, or the run has no checkpoint.
    """
    run = RunFolder(target)
    if not run.config_file.exists():
        return find_model(target), ModelConfig()
    from elpo.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(run.checkpoints)
    checkpoint = checkpoints.path("best") or checkpoints.path("last")
    if checkpoint is None:
        raise ValueError(f"{target} has no checkpoint; train it first")
    return find_model(str(checkpoint / "model")), run.config().model


def open_model(
    target: str,
    name: str | None = None,
    num_slots: int = 32,
    prefix_cache_mb: int = 256,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> ServedModel:
    """Load a model and start to serve it.

    Args:
        target: a run folder, a model folder or a hub name.
        name: what clients call it; by default the last part of `target`.
        num_slots: requests decoded side by side; others wait.
        prefix_cache_mb: memory for the keys and values of conversations that may go on.

    Raises:
        ValueError: the model cannot be loaded, or has no chat template that renders tools.
    """
    path, config = model_source(target)
    where = choose_device(device)

    from transformers import AutoTokenizer

    from elpo.engines.transformers import TransformersEngine

    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {target} has no end-of-turn (eos) token")
    config = config if dtype is None else config.model_copy(update={"dtype": dtype})
    model = load_model(config, path, tokenizer, seed=0).to(where).eval()
    engine = TransformersEngine(model, (tokenizer.eos_token_id,), num_slots, 1.0, prefix_cache_mb)
    length = int(model.config.get_text_config().max_position_embeddings)
    return ServedModel(engine, tokenizer, name or Path(target).expanduser().resolve().name, length)
