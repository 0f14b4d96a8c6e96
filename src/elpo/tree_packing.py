"""Trees to packed rows: every token stands once, and its weight is the sum over the trajectories through it.

A token of a shared prefix has the same log-probability in all of them, so loss and gradient are those of
the unrolled rows (`elpo.batch`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from elpo.algorithms.credit import Credit
from elpo.algorithms.surrogate import Aggregation, normaliser, token_divisors
from elpo.packing import MicroBatch, Minibatch, Trajectories, tree_layout
from elpo.tree import ROOT, RolloutTree


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
