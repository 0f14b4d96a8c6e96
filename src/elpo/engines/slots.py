"""A key/value cache with one row per live rollout, each row at its own length.

transformers' own caches advance all rows together; here every row has a position, so that rollouts
can start, wait and end at any time. It plugs into any causal LM that uses the standard `Cache` and full
attention in all layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_MIN_CAPACITY = 256


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [S, H, T, D] (slots, heads, positions, head size)."""

    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (self._cache.num_slots, key_states.shape[1], self._cache.capacity)
        # under autocast keys are rotated in float32; attention reads them in the values' type anyway
        self.keys = value_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._cache.write(self, key_states, value_states)

    def grow(self, capacity: int) -> None:
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.width, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        """Its name in the older transformers that vLLM and verl need."""
        return -1


class SlotCache(Cache):
    """The cache of all slots. `select` says which slots and positions the next forward pass is about."""

    def __init__(self, num_slots: int, num_layers: int) -> None:
        self.num_slots = num_slots
        self.capacity = _MIN_CAPACITY
        self.width = 0
        self._slots: Tensor | slice = slice(0, 0)
        self._index: tuple[Tensor, Tensor] | None = None
        super().__init__(layers=[_SlotLayer(self) for _ in range(num_layers)])

    def select(self, slots: Tensor, positions: Tensor, width: int) -> None:
        """The next forward pass feeds `positions` [B, Q] of `slots` [B] and attends to `width` positions.

        Slots 0..B-1 in order are used in place; any other choice is gathered for the pass.
        """
        self._reserve(width)
        in_place = bool((slots == torch.arange(len(slots), device=slots.device)).all())
        self._slots = slice(0, len(slots)) if in_place else slots
        self._index = (slots[:, None].expand_as(positions), positions)
        self.width = width

    def write(self, layer: _SlotLayer, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B, H, Q, D] and return what the pass attends to, [B, H, width, D]."""
        assert self._index is not None, "select() first"
        slots, positions = self._index
        layer.keys[slots, :, positions] = keys.transpose(1, 2).to(layer.keys.dtype)
        layer.values[slots, :, positions] = values.transpose(1, 2)
        chosen = self._slots
        return layer.keys[chosen, :, : self.width], layer.values[chosen, :, : self.width]

    def read(self, slot: int, length: int) -> Tensor:
        """A copy of a slot's first `length` positions, [layers, 2, H, length, D]."""
        return torch.stack(
            [
                torch.stack([layer.keys[slot, :, :length], layer.values[slot, :, :length]])
                for layer in self.layers
            ]
        )

    def load(self, slot: int, stored: Tensor, length: int) -> None:
        """Put the first `length` positions of what `read` returned into a slot."""
        self._reserve(length)
        for layer, (keys, values) in zip(self.layers, stored, strict=True):
            layer.keys[slot, :, :length] = keys[:, :length]
            layer.values[slot, :, :length] = values[:, :length]

    def _reserve(self, length: int) -> None:
        """Make room for `length` positions in every slot; doubling keeps copies rare."""
        if length > self.capacity:
            self.capacity = max(length, 2 * self.capacity)
            for layer in self.layers:
                layer.grow(self.capacity)
