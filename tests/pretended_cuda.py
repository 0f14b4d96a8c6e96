"""A CUDA device that is not there: tensors of the CPU that say they are on it, and may not be mixed up.

Every call of torch that code makes is looked at: what is made for `cuda`, or moved there, is marked, and so
is whatever is computed from it. A call with tensors of both kinds, or one to numpy, fails as on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch._C._functorch import is_batchedtensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
MIXING = {"__getitem__", "__setitem__", "copy_", "index_select", "to"}
"""Calls that take indices, or values, of a CPU as well."""


class MixedDevicesError(AssertionError):
    """A GPU would have refused this call."""


def is_there(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "pretended", False)


def mark(value: Any) -> Any:
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            leaf.pretended = True  # type: ignore[attr-defined]
    return value


def put(module: torch.nn.Module) -> torch.nn.Module:
    """Mark all that a module has."""
    mark([*module.parameters(), *module.buffers()])
    return module


class PretendedCuda(TorchFunctionMode):
    """While this lasts there is a device `cuda`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        attribute = getattr(owner, "__name__", "") if name in ("__get__", "__set__") else ""
        tensors = list(self._tensors(args, kwargs))
        there = [tensor for tensor in tensors if is_there(tensor)]
        if attribute == "device":
            return CUDA if there else func(*args, **kwargs)
        if attribute == "is_cuda":
            return bool(there)
        if name in ("numpy", "__array__") and there:
            raise MixedDevicesError(f"{name} of a tensor on CUDA")
        if name == "cpu":
            return func(*args, **kwargs).clone()
        target = self._target(name, args, kwargs)
        if target is not None:
            args = tuple(self._here(x) for x in args)
            kwargs = {key: self._here(x) for key, x in kwargs.items()}
            found = func(*args, **kwargs)
            moved = any(is_there(tensor) != (target.type == "cuda") for tensor in tensors)
            found = found.clone() if moved else found
            return mark(found) if target.type == "cuda" else found
        if there and name not in MIXING and not attribute:
            # what vmap has wrapped is marked no more
            elsewhere = [t for t in tensors if not (is_there(t) or is_batchedtensor(t)) and t.dim()]
            if elsewhere:
                shapes = [tuple(t.shape) for t in elsewhere]
                raise MixedDevicesError(f"{name or func}: tensors {shapes} are on the CPU, others on CUDA")
        found = func(*args, **kwargs)
        return mark(found) if there else found

    @staticmethod
    def _tensors(args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                yield leaf

    @staticmethod
    def _target(name: str, args: Any, kwargs: Any) -> torch.device | None:
        """Where a call is asked to put its result."""
        if isinstance(kwargs.get("device"), torch.device | str):
            return torch.device(kwargs["device"])
        if name == "to":
            for value in args[1:]:
                if isinstance(value, torch.device | str):
                    return torch.device(value)
                if isinstance(value, torch.Tensor):
                    return CUDA if is_there(value) else torch.device("cpu")
        return None

    @staticmethod
    def _here(value: Any) -> Any:
        if isinstance(value, torch.device | str) and str(value).startswith("cuda"):
            return torch.device("cpu")
        return value
