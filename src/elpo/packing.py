"""Packed rows: where the tokens of trees stand in one, and what a forward pass and its loss need of it.

A row holds several trees, each depth-first: a subtree is then a slice, and one number for each token says
which tokens may look at it. Shape letters: N packed tokens, B trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TreeLayout:
    """Where the tokens of a packed row stand in their trees.

    Token q sees token k exactly if k <= q < `subtree_end[k]`. A run is a slice of tokens that follow each
    other in a trajectory, as long as it can be; the runs are the row, in order.
    """

    positions: Tensor  # int64 [N]; tokens before it in its trajectory
    previous: Tensor  # int64 [N]; the token that predicts it, itself where none does
    subtree_end: Tensor  # int64 [N]
    contexts: Tensor  # int64 [C]; for each run all tokens that its last one sees, in order
    run_lengths: tuple[int, ...]
    context_lengths: tuple[int, ...]

    @cached_property
    def run_masks(self) -> list[Tensor | None]:
        """For each run bool [tokens of the run, tokens of its context]; None: plainly causal."""
        return [
            None
            if run == context
            else self.positions.new_ones(run, context, dtype=torch.bool).tril(context - run)
            for run, context in zip(self.run_lengths, self.context_lengths, strict=True)
        ]

    def to(self, device: torch.device) -> TreeLayout:
        """The same layout on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in values.items()}
        return TreeLayout(**moved)


def tree_layout(parents: Sequence[int], sizes: Sequence[int]) -> TreeLayout:
    """The layout of a forest.

    Args:
        parents: for every segment the one it continues, -1 for none; depth-first, parents before children.
        sizes: their numbers of tokens.
    """
    num = len(sizes)
    stops = np.cumsum(sizes, dtype=np.int64)
    starts = stops - np.asarray(sizes, np.int64)
    depths = np.zeros(num, np.int64)  # of a segment's first token
    lasts = np.full(num, -1)  # the last token up to the end of a segment
    runs: list[list[int]] = []
    run_of = np.zeros(num, np.int64)
    for i, parent in enumerate(parents):
        lasts[i] = stops[i] - 1 if sizes[i] else (lasts[parent] if parent >= 0 else -1)
        if parent >= 0:
            depths[i] = depths[parent] + sizes[parent]
        if parent >= 0 and parent == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
        run_of[i] = len(runs) - 1
    ends = stops.copy()
    for i in range(num - 1, -1, -1):
        if parents[i] >= 0:
            ends[parents[i]] = max(ends[parents[i]], ends[i])
    index = np.arange(stops[-1] if num else 0)
    previous = index - 1
    for i, parent in enumerate(parents):
        if sizes[i]:
            previous[starts[i]] = lasts[parent] if parent >= 0 and lasts[parent] >= 0 else starts[i]
    contexts: list[np.ndarray] = []
    for run in runs:
        parent = parents[run[0]]
        before = contexts[run_of[parent]][: depths[parent] + sizes[parent]] if parent >= 0 else index[:0]
        contexts.append(np.concatenate([before, index[starts[run[0]] : stops[run[-1]]]]))
    return TreeLayout(
        positions=torch.from_numpy(index - np.repeat(starts - depths, sizes)),
        previous=torch.from_numpy(previous),
        subtree_end=torch.from_numpy(np.repeat(ends, sizes)),
        contexts=torch.from_numpy(np.concatenate([index[:0], *contexts])),
        run_lengths=tuple(int(stops[run[-1]] - starts[run[0]]) for run in runs),
        context_lengths=tuple(map(len, contexts)),
    )


@dataclass(frozen=True, eq=False)
class Trajectories:
    """The sampled tokens of a micro-batch by trajectory; one of a shared prefix stands in each through it."""

    places: Tensor  # int64 [M]; in the flattened tensors of the micro-batch
    numbers: Tensor  # int64 [M]; of the trajectory, from 0
    weights: Tensor  # float32 [M]; in the loss of the mini-batch
    advantages: Tensor  # float32 [M]

    def to(self, device: torch.device) -> Trajectories:
        """The same trajectories on `device`."""
        return Trajectories(*(value.to(device) for value in vars(self).values()))


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward pass and its loss need: trees packed in one row, or padded rows without a layout.

    Tensors are [N], or [B, T] without a layout; each but `token_ids` is about the token at its own place.
    """

    token_ids: Tensor  # int64
    sampled: Tensor  # bool; by the policy
    old_logprobs: Tensor  # float32, behaviour policy
    advantages: Tensor  # float32
    clip_low: Tensor  # float32, ratio bounds
    clip_high: Tensor  # float32
    weights: Tensor  # float32; in the loss of the mini-batch, summed over the trajectories it stands for
    counts: Tensor  # float32; trajectories that a sampled token stands for, 0 on others
    layout: TreeLayout | None = None
    trajectories: Trajectories | None = None  # only for a loss that asks for them
    reference_logprobs: Tensor | None = None  # float32, of the policy that RL began with; likewise

    def to(self, device: torch.device) -> MicroBatch:
        """The same tokens on `device`."""
        moved: dict[str, Any] = {name: v if v is None else v.to(device) for name, v in vars(self).items()}
        return MicroBatch(**moved)


@dataclass(frozen=True, eq=False)
class Minibatch:
    """The trees of one update in parts whose losses add up to theirs."""

    parts: tuple[MicroBatch, ...]
    num_unique: int  # different tokens among those the parts hold
    normaliser: float  # of the weights (`elpo.algorithms.surrogate.normaliser`)

    @property
    def num_forwarded(self) -> int:
        """Tokens put through the model, padding included."""
        return sum(part.token_ids.numel() for part in self.parts)
