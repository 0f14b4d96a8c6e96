"""Trees to packed rows: every token stands once, and its weight is the sum over the trajectories through it.

A token of a shared prefix has the same log-probability in all of them, so loss and gradient are those of
the unrolled rows (`elpo.batch`). A row holds several trees, each depth-first: a subtree is then a slice, and
one number for each token says which tokens may look at it. Shape letters: N packed tokens, B trajectories.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elpo.algorithms.credit import Credit
from elpo.algorithms.surrogate import Aggregation, normaliser, token_divisors
from elpo.tree import ROOT, RolloutTree


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


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some trajectories of a tree; a tree that does not fit is several pieces, with a prefix in each."""

    tree: RolloutTree
    credit: Credit
    nodes: list[int]  # depth-first
    weights: np.ndarray  # float64, for each of `nodes`
    counts: np.ndarray  # trajectories of the piece through each of `nodes`
    share: np.ndarray  # of a token's weight that counts, for each node of the tree
    weight_of: dict[int, float]  # of a token of each trajectory, by leaf

    @property
    def num_tokens(self) -> int:
        return len(self.tree.prompt_ids) + sum(len(self.tree.nodes[n].step.token_ids) for n in self.nodes)


def pack_trees(
    trees: Sequence[RolloutTree],
    credits: Sequence[Credit],
    aggregation: Aggregation,
    shared_tokens: str,
    max_tokens: int,
    *,
    divisor: int | None = None,
    by_trajectory: bool = False,
    keep_all: bool = False,
) -> Minibatch:
    """Rows of at most `max_tokens` tokens, about equally long, whose losses add up to that of the trees.

    Trajectories without any advantage count in the normaliser and are left out, unless `keep_all`. A
    trajectory longer than `max_tokens` gets a row of its own. `divisor` is the constant of
    seq-mean-token-sum-norm; `by_trajectory` adds `MicroBatch.trajectories`.

    Paper: Eq. 1, regrouped by token: the weight is sum over the trajectories through it of 1 / (B |o_i|).
    """
    for tree in trees:
        tree.require_token_ids()
    shares = [
        1 / np.array([len(below) for below in tree.leaves_below()])
        if shared_tokens == "once"
        else np.ones(len(tree.nodes))
        for tree in trees
    ]
    masses = [
        share * [node.step.sampled.sum() for node in tree.nodes] if tree.nodes else share
        for tree, share in zip(trees, shares, strict=True)
    ]
    lengths = [
        mass[tree.path(leaf)].sum() for tree, mass in zip(trees, masses, strict=True) for leaf in tree.leaves
    ]
    of_all = torch.tensor(lengths, dtype=torch.float64)
    factors = iter((1 / token_divisors(of_all, aggregation, divisor)).tolist())
    pieces: list[_Piece] = []
    unique = 0
    for tree, credit, share, mass in zip(trees, credits, shares, masses, strict=True):
        weight_of = dict(zip(tree.leaves, factors))  # noqa: B905 - takes as many as there are leaves
        learns = mass if keep_all else credit.advantages * mass
        learning = {leaf for leaf in tree.leaves if learns[tree.path(leaf)].any()}
        order = [leaf for leaf in tree.depth_first() if leaf in learning]
        for leaves in _cut(tree, order, max_tokens):
            pieces.append(_piece(tree, credit, share, {leaf: weight_of[leaf] for leaf in leaves}))
        unique += num_unique(tree, learning)
    groups = balanced([piece.num_tokens for piece in pieces], max_tokens)
    parts = tuple(_join([pieces[i] for i in group], by_trajectory) for group in groups)
    return Minibatch(parts, unique, normaliser(of_all, aggregation))


def num_unique(tree: RolloutTree, leaves: Collection[int]) -> int:
    """Tokens of the trajectories that end in `leaves`, prompt included, shared ones counted once."""
    nodes = {node for leaf in leaves for node in tree.path(leaf)}
    return sum(len(tree.nodes[node].step.token_ids) for node in nodes) + len(tree.prompt_ids) * bool(leaves)


def balanced(sizes: Sequence[int], max_size: int) -> list[list[int]]:
    """Indices in as few groups as this finds, none above `max_size`, their sums about equal.

    Largest first, each to the lightest group; one more group while that does not fit. What is larger than
    `max_size` by itself stands alone or with what fits beside the largest.

    >>> balanced([3, 9, 3, 3], 10)
    [[1], [0, 2, 3]]
    """
    limit = max([max_size, *sizes])
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    for num in count(max(1, -(-sum(sizes) // limit))):
        groups: list[list[int]] = [[] for _ in range(num)]
        loads = [0] * num
        for i in order:
            lightest = loads.index(min(loads))
            groups[lightest].append(i)
            loads[lightest] += sizes[i]
        if max(loads) <= limit:
            return [sorted(group) for group in groups if group]
    raise AssertionError("unreachable: one group for each always fits")


def _cut(tree: RolloutTree, leaves: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Depth-first leaves in groups whose paths, shared tokens counted once, have at most `max_tokens`."""
    group: list[int] = []
    seen: set[int] = set()
    size = len(tree.prompt_ids)
    for leaf in leaves:
        path = tree.path(leaf)
        new = sum(len(tree.nodes[node].step.token_ids) for node in path if node not in seen)
        if group and size + new > max_tokens:
            yield group
            group, seen, size = [], set(), len(tree.prompt_ids)
            new = sum(len(tree.nodes[node].step.token_ids) for node in path)
        group.append(leaf)
        seen.update(path)
        size += new
    if group:
        yield group


def _piece(tree: RolloutTree, credit: Credit, share: np.ndarray, weight_of: dict[int, float]) -> _Piece:
    weights, counts = np.zeros(len(tree.nodes)), np.zeros(len(tree.nodes))
    for leaf, weight in weight_of.items():
        path = tree.path(leaf)
        weights[path] += weight
        counts[path] += 1
    nodes = [node for node in tree.depth_first() if counts[node]]
    return _Piece(tree, credit, nodes, (weights * share)[nodes], counts[nodes], share, weight_of)


def _join(pieces: Sequence[_Piece], by_trajectory: bool) -> MicroBatch:
    """One row of all pieces; a prompt is a segment, and so is every node."""
    parents: list[int] = []
    sizes: list[int] = []
    ids: list[np.ndarray] = []
    sampled: list[np.ndarray] = []
    logprobs: list[np.ndarray] = []
    per_segment: dict[str, list[np.ndarray]] = {
        name: [] for name in ("advantages", "clip_low", "clip_high", "weights", "counts")
    }
    for piece in pieces:
        root = len(sizes)
        segment_of = {ROOT: root} | {node: root + 1 + i for i, node in enumerate(piece.nodes)}
        steps = [piece.tree.nodes[node].step for node in piece.nodes]
        prompt = piece.tree.prompt_ids
        parents += [-1, *(segment_of[piece.tree.nodes[node].parent] for node in piece.nodes)]
        sizes += [len(prompt), *(len(step.token_ids) for step in steps)]
        ids += [prompt, *(step.token_ids for step in steps)]
        sampled += [np.zeros(len(prompt), bool), *(step.sampled for step in steps)]
        logprobs += [np.zeros(len(prompt)), *(step.logprobs for step in steps)]
        for name in ("advantages", "clip_low", "clip_high"):
            neutral = 0.0 if name == "advantages" else 1.0
            per_segment[name].append(np.concatenate([[neutral], getattr(piece.credit, name)[piece.nodes]]))
        per_segment["weights"].append(np.concatenate([[0.0], piece.weights]))
        per_segment["counts"].append(np.concatenate([[0.0], piece.counts]))
    is_sampled = np.concatenate(sampled)

    def spread(name: str) -> np.ndarray:
        return np.repeat(np.concatenate(per_segment[name]), sizes)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32))

    return MicroBatch(
        token_ids=torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        layout=tree_layout(parents, sizes),
        sampled=torch.from_numpy(is_sampled),
        old_logprobs=tensor(np.concatenate(logprobs)),
        advantages=tensor(spread("advantages")),
        clip_low=tensor(spread("clip_low")),
        clip_high=tensor(spread("clip_high")),
        weights=tensor(spread("weights") * is_sampled),
        counts=tensor(spread("counts") * is_sampled),
        trajectories=_trajectories(pieces) if by_trajectory else None,
    )


def _trajectories(pieces: Sequence[_Piece]) -> Trajectories:
    """Those of a row that `_join` makes of `pieces`."""
    places: list[np.ndarray] = [np.empty(0, np.int64)]
    weights: list[np.ndarray] = [np.empty(0)]
    advantages: list[np.ndarray] = [np.empty(0)]
    sizes: list[int] = []  # of the trajectories
    start = 0
    for piece in pieces:
        steps = {node: piece.tree.nodes[node].step for node in piece.nodes}
        start += len(piece.tree.prompt_ids)
        sampled_at: dict[int, np.ndarray] = {}
        for node, step in steps.items():
            sampled_at[node] = start + np.flatnonzero(step.sampled)
            start += len(step.sampled)
        own = piece.credit.own
        of_leaf = {} if own is None else dict(zip(piece.tree.leaves, own, strict=True))
        for leaf, weight in piece.weight_of.items():
            path = piece.tree.path(leaf)
            advantages += [
                np.full(len(sampled_at[node]), of_leaf.get(leaf, piece.credit.advantages[node]))
                for node in path
            ]
            places += [sampled_at[node] for node in path]
            weights += [np.full(len(sampled_at[node]), weight * piece.share[node]) for node in path]
            sizes.append(sum(len(sampled_at[node]) for node in path))
    return Trajectories(
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
        torch.from_numpy(np.concatenate(weights).astype(np.float32)),
        torch.from_numpy(np.concatenate(advantages).astype(np.float32)),
    )
