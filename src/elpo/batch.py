"""From trees to the padded tensors a loss needs. The loss, and any external trainer, sees no tree.

One row per trajectory: a shared prefix stands in every row through it, as in the paper's Eq. 1.
Shape letters: B trajectories, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from elpo.algorithms.credit import Credit
from elpo.tree import RolloutTree

SharedTokens = Literal["duplicate", "once"]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Right-padded rows. Every field but `token_ids` is about the token at its own position."""

    token_ids: Tensor  # int64 [B, T], padded with 0
    lengths: Tensor  # int64 [B]
    mask: Tensor  # float32 [B, T]; above 0 exactly on tokens the policy sampled
    old_logprobs: Tensor  # float32 [B, T], behaviour policy
    advantages: Tensor  # float32 [B, T]
    clip_low: Tensor  # float32 [B, T], ratio bounds
    clip_high: Tensor  # float32 [B, T]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def carries_gradient(self) -> Tensor:
        """Rows with an advantage other than 0 on a sampled token. bool [B]"""
        return ((self.advantages != 0) & (self.mask > 0)).any(-1)

    def rows(self, index: Tensor) -> TokenBatch:
        """The rows `index` int64 [b], cut to the longest of them."""
        width = int(self.lengths[index].max()) if len(index) else 0
        values = {field.name: getattr(self, field.name)[index] for field in fields(self)}
        return TokenBatch(**{name: v[:, :width] if v.ndim == 2 else v for name, v in values.items()})

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on `device`."""
        return TokenBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def token_batch(
    trees: Sequence[RolloutTree], credits: Sequence[Credit], shared_tokens: SharedTokens = "duplicate"
) -> TokenBatch:
    """One row per trajectory of every tree, in the order drawn.

    With `shared_tokens="once"` a token in n trajectories has mask 1/n in each, so that under token-mean
    every sampled token counts once.

    Paper: Eq. 1 sums over trajectories, hence the default.
    """
    for tree in trees:
        tree.require_token_ids()
    rows = [
        row
        for tree, credit in zip(trees, credits, strict=True)
        for row in trajectory_rows(tree, credit, shared_tokens)
    ]
    lengths = torch.tensor([len(row["token_ids"]) for row in rows], dtype=torch.int64)
    width = int(lengths.max()) if rows else 0

    def padded(name: str, dtype: type, fill: float = 0) -> Tensor:
        array: np.ndarray = np.full((len(rows), width), fill, dtype)
        for i, row in enumerate(rows):
            array[i, : len(row[name])] = row[name]
        return torch.from_numpy(array)

    return TokenBatch(
        token_ids=padded("token_ids", np.int64),
        lengths=lengths,
        mask=padded("mask", np.float32),
        old_logprobs=padded("old_logprobs", np.float32),
        advantages=padded("advantages", np.float32),
        clip_low=padded("clip_low", np.float32, 1.0),
        clip_high=padded("clip_high", np.float32, 1.0),
    )


def micro_batches(lengths: Tensor, max_tokens: int) -> Iterator[Tensor]:
    """Row indices int64 [b] in groups whose padded size stays within `max_tokens`, longest first.

    A row longer than that forms a group of its own.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        num_rows = max(1, max_tokens // max(1, longest))
        yield order[start : start + num_rows]
        start += num_rows


def trajectory_rows(
    tree: RolloutTree, credit: Credit, shared_tokens: SharedTokens = "duplicate"
) -> Iterator[dict[str, np.ndarray]]:
    """Each trajectory in the order drawn, prompt first: the fields of `TokenBatch` but `lengths`, each [T].

    The first `len(tree.prompt_ids)` places are the prompt's, with mask and advantage 0 and bounds 1.
    """
    num_through = np.array([len(leaves) for leaves in tree.leaves_below()])
    share = 1 / num_through if shared_tokens == "once" else np.ones(len(tree.nodes))
    zeros = np.zeros(len(tree.prompt_ids))
    for i, leaf in enumerate(tree.leaves):
        path = tree.path(leaf)
        steps = [tree.nodes[node].step for node in path]
        sizes = [len(zeros), *(len(step.token_ids) for step in steps)]

        def spread(
            values: np.ndarray, prompt: float, path: list[int] = path, sizes: list[int] = sizes
        ) -> np.ndarray:
            return np.repeat([prompt, *values[path]], sizes)

        sampled = np.concatenate([zeros, *(step.sampled for step in steps)])
        yield {
            "token_ids": tree.context(leaf),
            "mask": sampled * spread(share, 0.0),
            "old_logprobs": np.concatenate([zeros, *(step.logprobs for step in steps)]),
            "advantages": spread(
                credit.advantages if credit.own is None else np.full(len(tree.nodes), credit.own[i]), 0.0
            ),
            "clip_low": spread(credit.clip_low, 1.0),
            "clip_high": spread(credit.clip_high, 1.0),
        }
