"""From a name to a model and its tokenizer, ready for what is trained of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elpo.config import ModelConfig
from elpo.models.lora import add_lora, load_lora
from elpo.recipes import nearest
from elpo.training.model_check import read_tokenizer
from elpo.training.model_folder import check_model_folder

if TYPE_CHECKING:
    import torch


def find_model(path: str) -> str:
    """The model folder, checked, or the hub name (`owner/name`) that `model.path` means.

    Raises:
        ValueError: `path` looks like a folder and is none, or lacks a configuration or weights.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        runs = sorted(str(file.parent) for file in folder.parent.glob("*/config.yaml"))
        if path.count("/") == 1 and not path.startswith((".", "/", "~")) and not runs:
            return path
        if runs:
            raise ValueError(f"model.path: there is no folder {path}; {nearest(path, runs)}")
        raise ValueError(f"model.path: there is no folder {path}; give a model folder or a hub name")
    try:
        check_model_folder(folder)
    except ValueError as error:
        raise ValueError(f"model.path: {error}") from error
    return str(folder)


def load_tokenizer(path: str | None, demonstrate: Callable[[int], list[dict[str, Any]]]) -> Any:
    """The tokenizer at `path`, or the tiny model's, trained on demonstrations."""
    if path is not None:
        return read_tokenizer(path)
    from elpo.models.tiny import train_tokenizer

    return train_tokenizer(demonstrate(500))


def autocast_dtype(config: ModelConfig) -> torch.dtype | None:
    """What to compute in where it is not the weights' own type: all of them are trained, in float32."""
    import torch

    return torch.bfloat16 if config.dtype == "bfloat16" and not config.lora.rank else None


def load_model(
    config: ModelConfig, path: str | None, tokenizer: Any, seed: int, adapter: Path | None = None
) -> Any:
    """The causal LM at `path`, or the tiny one with random weights, ready for what `config` trains of it.

    `adapter` is a folder whose adapters it starts with instead of fresh ones.

    Raises:
        ValueError: `config.lora` names no layer of the model, or differs from the adapters'.
    """
    import torch

    lora = config.lora
    dtype = getattr(torch, config.dtype if lora.rank else "float32")
    if path is None:
        from elpo.models.tiny import initial_model

        model: Any = initial_model(config.tiny, tokenizer, derived_seed(seed, "weights"))
        cast_weights(model, dtype)
    else:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        settings: dict[str, Any] = {}
        if lora.quantized:
            settings["device_map"] = {"": torch.cuda.current_device()}
            settings["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **settings)
    if lora.rank:
        add_lora(model, lora, derived_seed(seed, "adapters"))
    if adapter is not None:
        load_lora(model, adapter)
    if config.gradient_checkpointing:
        new = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.2x on
        (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return model


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Keep the weights in `dtype`; buffers, such as the frequencies of rotary positions, stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def derived_seed(seed: int, *labels: object) -> int:
    """A seed for one purpose of a run, from the run's seed and what it is for."""
    digest = hashlib.sha256(repr((seed, *labels)).encode()).digest()
    return int.from_bytes(digest[:6], "little")
