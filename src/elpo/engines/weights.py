"""The weights of a model under trainer's hands as an inference engine loads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def checkpoint_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as in a checkpoint, one by one; a LoRA adapter is merged while they are read.

    Exhaust it: only then is the adapter taken out again. Tied weights come once.
    """
    if not hasattr(model, "merge_adapter"):
        for name, parameter in model.named_parameters():
            yield name, parameter.detach()
        return
    model.merge_adapter()
    try:
        for name, parameter in model.named_parameters():
            if model.prefix in name or "original_module" in name:  # the adapter's own; what it replaces
                continue
            name = name.removeprefix("base_model.model.").replace(".base_layer", "")
            yield name.replace("modules_to_save.default.", ""), parameter.detach()
    finally:
        model.unmerge_adapter()
