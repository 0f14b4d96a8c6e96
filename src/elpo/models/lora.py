"""Low-rank adapters (Hu et al. 2021) through PEFT, put into the model itself.

The model keeps its class and its `base_model`, so engine, packing and checkpoints see what they know: only
`requires_grad` says what is trained. `save_pretrained` then writes the adapters alone, in PEFT's format.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from elpo.config import LoraConfig


def require_lora(config: LoraConfig) -> None:
    """Refuse settings that what is installed cannot serve; nothing is imported.

    Raises:
        ValueError: PEFT, or for quantized weights bitsandbytes, is missing.
    """
    if config.rank and importlib.util.find_spec("peft") is None:
        raise ValueError("model.lora needs PEFT: pip install 'elpo[lora]'")
    if config.quantized and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "model.lora.quantized needs bitsandbytes (and a CUDA device): pip install bitsandbytes, or set "
            "model.lora.quantized=false"
        )


def add_lora(model: Any, config: LoraConfig, seed: int) -> None:
    """Put fresh adapters into `model` and freeze all else. They change nothing until they are trained.

    Adapters are float32 whatever the model is. The global random state is left as it was.
    """
    import torch
    from peft import LoraConfig as PeftLoraConfig

    settings = PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules) or "all-linear",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model.add_adapter(settings)
        except ValueError as error:  # no layer has one of these names
            raise ValueError(f"model.lora.target_modules: {error}") from error
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def load_lora(model: Any, folder: Path) -> None:
    """Replace the values of the adapters that `add_lora` has put in by those saved in `folder`.

    Raises:
        ValueError: they are adapters of another shape.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(folder / "adapter_model.safetensors")
    state = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    try:
        found = set_peft_model_state_dict(model, state)
    except RuntimeError as error:
        raise ValueError(f"{folder} holds adapters of another shape: {error}") from error
    if found.unexpected_keys or any("lora_" in key for key in found.missing_keys):
        raise ValueError(f"{folder} holds adapters of other layers; model.lora differs from theirs")
