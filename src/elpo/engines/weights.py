"""The weights of a model under trainer's hands as an inference engine loads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ADAPTED = ".base_layer.weight"
"""What PEFT calls the weights of a layer that it has put an adapter around."""


@torch.no_grad()
def checkpoint_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as in a checkpoint, one by one, with LoRA adapters added. Tied weights come once.

    An adapted weight is a tensor of its own: adding in place and taking out again would leave a little more
    rounding in the model after every call.
    """
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        value = parameter.detach()
        if name.endswith(ADAPTED):
            layer = model.get_submodule(name.removesuffix(ADAPTED))
            delta = sum(layer.get_delta_weight(adapter).float() for adapter in layer.active_adapters)
            value = (value.float() + delta).to(value.dtype)
        yield name.replace(".base_layer.", "."), value
