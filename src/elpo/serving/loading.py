"""From a run, a model folder or a hub name to a served model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elpo.config import ModelConfig
from elpo.serving.model import ServedModel
from elpo.training.assembly import choose_device
from elpo.training.model_folder import is_adapter
from elpo.training.model_loading import cast_weights, find_model, load_model
from elpo.training.run_folder import RunFolder


@dataclass(frozen=True)
class ModelSource:
    """Where a model is loaded from, and how."""

    path: str  # folder or hub name
    adapter: Path | None  # a folder of adapters on top of it
    config: ModelConfig

    @property
    def tokenizer(self) -> str:
        """Folder or hub name of the tokenizer: a run's own stands beside what it trained."""
        return self.path if self.adapter is None else str(self.adapter)


def model_source(target: str) -> ModelSource:
    """The weights that `target` means: a run folder's best checkpoint, its last one where none was evaluated.

    Raises:
        ValueError: there is no such folder, it is damaged, or the run has no checkpoint.
    """
    run = RunFolder(target)
    if not run.config_file.exists():
        return ModelSource(find_model(target), None, ModelConfig())
    from elpo.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(run.checkpoints)
    checkpoint = checkpoints.path("best") or checkpoints.path("last")
    if checkpoint is None:
        raise ValueError(f"{target} has no checkpoint; train it first")
    folder, config = Path(find_model(str(checkpoint / "model"))), run.config().model
    if not is_adapter(folder):
        return ModelSource(str(folder), None, config)
    if config.path is None:
        raise ValueError(f"{folder} holds adapters, and the run does not say for which model")
    return ModelSource(find_model(config.path), folder, config)


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
    source = model_source(target)
    where = choose_device(device)

    import torch
    from transformers import AutoTokenizer

    from elpo.engines.transformers import TransformersEngine

    tokenizer = AutoTokenizer.from_pretrained(source.tokenizer)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {target} has no end-of-turn (eos) token")
    config = source.config if dtype is None else source.config.model_copy(update={"dtype": dtype})
    model = load_model(config, source.path, tokenizer, seed=0, adapter=source.adapter)
    cast_weights(model, getattr(torch, config.dtype))
    model = model.to(where).eval()
    engine = TransformersEngine(model, (tokenizer.eos_token_id,), num_slots, 1.0, prefix_cache_mb)
    length = int(model.config.get_text_config().max_position_embeddings)
    return ServedModel(engine, tokenizer, name or Path(target).expanduser().resolve().name, length)
