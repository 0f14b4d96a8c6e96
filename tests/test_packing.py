"""Packed rows against paths: who sees whom, what stands where, and that nothing is lost by cutting."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elpo.algorithms.credit import assign_credit
from elpo.algorithms.surrogate import token_weights
from elpo.batch import token_batch
from elpo.packing import MicroBatch, tree_layout
from elpo.tree import RolloutTree
from elpo.tree_packing import balanced, num_unique, pack_trees
from elpo.types import Problem
from tests.training.small import random_tree, small_model
from tests.trees import Figure4

TREES = [
    *(random_tree(seed, small_model(), off_policy=0.5) for seed in range(3)),
    Figure4().fill_and_search(),
]
TREES.insert(1, random_tree(9, small_model(), rewards="failed"))  # counts, but is left out
CREDITS = [assign_credit(tree) for tree in TREES]
MODES: Any = list(itertools.product(("seq-mean-token-mean", "token-mean"), ("duplicate", "once")))


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Depth-first parents, each the previous segment or one of its ancestors, and sizes."""
    parents: list[int] = []
    for i in range(draw(st.integers(1, 12))):
        ancestors, at = [-1], i - 1
        while at >= 0:
            ancestors.append(at)
            at = parents[at]
        parents.append(draw(st.sampled_from(ancestors)))
    return parents, draw(st.lists(st.integers(1, 4), min_size=len(parents), max_size=len(parents)))


@given(forests())
def test_a_token_sees_its_path_and_nothing_else(forest: tuple[list[int], list[int]]) -> None:
    parents, sizes = forest
    layout = tree_layout(parents, sizes)
    starts = np.cumsum([0, *sizes])
    runs = list(zip(np.cumsum([0, *layout.run_lengths]), layout.run_lengths, strict=False))
    contexts = torch.split(layout.contexts, list(layout.context_lengths))
    seen_in_runs = {
        int(start) + j: context[: len(context) - length + j + 1].tolist()
        for (start, length), context in zip(runs, contexts, strict=True)
        for j in range(length)
    }
    assert sum(layout.run_lengths) == sum(sizes) == len(seen_in_runs)
    for segment, size in enumerate(sizes):
        before: list[int] = []
        at = parents[segment]
        while at >= 0:
            before = [*range(starts[at], starts[at + 1]), *before]
            at = parents[at]
        for j in range(size):
            token = int(starts[segment]) + j
            path = [*before, *range(starts[segment], token + 1)]
            by_interval = [k for k in range(token + 1) if token < layout.subtree_end[k]]
            assert by_interval == seen_in_runs[token] == path
            assert layout.positions[token] == len(path) - 1
            assert layout.previous[token] == (path[-2] if len(path) > 1 else token)


@pytest.mark.parametrize(("aggregation", "shared"), MODES)
@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_weights_are_the_sums_over_the_unrolled_rows(aggregation: Any, shared: Any, max_tokens: int) -> None:
    """By what identifies a token: its tree's path up to it."""
    rows = token_batch(TREES, CREDITS, shared)
    row_weights = token_weights(rows.mask, aggregation)
    expected: dict[tuple[int, ...], list[float]] = {}
    tree_of = [i for i, tree in enumerate(TREES) for _ in tree.leaves]
    nodes_of = [tree.path(leaf) for tree in TREES for leaf in tree.leaves]
    for i in torch.nonzero(rows.carries_gradient)[:, 0].tolist():
        tree, path = TREES[tree_of[i]], nodes_of[i]
        at = len(tree.prompt_ids)
        for node in path:
            for j in range(len(tree.nodes[node].step.token_ids)):
                found = expected.setdefault((tree_of[i], node, j), [0.0, 0.0])
                found[0] += float(row_weights[i, at])
                found[1] += float(rows.mask[i, at] > 0)
                at += 1
    batch = pack_trees(TREES, CREDITS, aggregation, shared, max_tokens)
    assert batch.num_unique == sum(num_unique(tree, tree.leaves) for i, tree in enumerate(TREES) if i != 1)
    if max_tokens == 10_000:
        assert batch.num_forwarded == batch.num_unique and len(batch.parts) == 1
    weights = sorted(w for w, _ in expected.values() if w)
    packed = torch.cat([part.weights for part in batch.parts])
    counts = torch.cat([part.counts for part in batch.parts])
    assert float(packed.sum()) == pytest.approx(sum(weights), rel=1e-5)
    assert float(counts.sum()) == sum(n for _, n in expected.values())
    if max_tokens == 10_000:
        np.testing.assert_allclose(np.sort(packed[packed > 0].numpy()), weights, rtol=1e-5)


def rows_of(part: MicroBatch) -> list[tuple[Any, ...]]:
    """The trajectories of a packed row, as unrolled values."""
    assert part.layout is not None
    names = ("token_ids", "sampled", "old_logprobs", "advantages", "clip_low", "clip_high")
    return [
        tuple(tuple(getattr(part, name)[context].tolist()) for name in names)
        for context in torch.split(part.layout.contexts, list(part.layout.context_lengths))
    ]


@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_a_packed_row_holds_the_trajectories(max_tokens: int) -> None:
    batch = token_batch(TREES, CREDITS)
    learning = torch.nonzero(batch.carries_gradient)[:, 0].tolist()
    expected = sorted(
        tuple(
            tuple(v[i, : batch.lengths[i]].tolist())
            for v in (
                batch.token_ids,
                batch.mask > 0,
                batch.old_logprobs,
                batch.advantages,
                batch.clip_low,
                batch.clip_high,
            )
        )
        for i in learning
    )
    parts = pack_trees(TREES, CREDITS, "token-mean", "duplicate", max_tokens).parts
    assert sorted(row for part in parts for row in rows_of(part)) == expected
    longest = max(len(row[0]) for row in expected)
    assert all(part.token_ids.numel() <= max(max_tokens, longest) for part in parts)


def test_trees_without_rollouts_or_advantages_make_no_rows() -> None:
    empty = RolloutTree(Problem("p", (), ""), np.array([1, 2]))
    batch = pack_trees([empty, TREES[1]], [assign_credit(empty), CREDITS[1]], "token-mean", "once", 100)
    assert batch.parts == () and batch.num_unique == 0


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_groups_hold_everything_once_within_the_limit(sizes: list[int], max_size: int) -> None:
    groups = balanced(sizes, max_size)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in group) for group in groups]
    assert all(load <= max(max_size, *sizes) for load in loads)
    if groups:  # longest-first is at most one of the largest apart
        assert max(loads) - min(loads) <= max(sizes)
