"""ARPO's soft credit: a shared prefix is trained with each trajectory's own advantage, in rows and packed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from elpo.algorithm_config import AlgorithmConfig
from elpo.algorithms.credit_rules import assign_credits
from elpo.recipes import load_config
from elpo.tree import RolloutTree
from elpo.types import Outcome
from tests.training.small import assert_close, gradients_of, random_tree, small_model
from tests.training.test_policy_update import token_objectives, update


def algorithm_of(name: str, *overrides: str) -> AlgorithmConfig:
    settings = ["algorithm.num_rollouts=5", *(f"algorithm.{override}" for override in overrides)]
    return load_config(
        None, [f"algorithm.name={name}", "algorithm.strategy.max_failures=2", *settings]
    ).algorithm


def mixed_trees(off_policy: float) -> list[RolloutTree]:
    """Trees whose shared first step has a success and two failures below it."""
    trees = [random_tree(seed, small_model(), off_policy=off_policy) for seed in (1, 2)]
    for tree in trees:
        tree.outcomes[tree.leaves[3]] = Outcome(1.0, True)
    return trees


@pytest.mark.parametrize("packing", ["tree", "rows"])
def test_soft_equals_the_equation_where_the_clip_acts(packing: str) -> None:
    """Every trajectory's tokens one by one with its own z-score, token-mean, dual clip 3."""
    model = small_model()
    trees = mixed_trees(off_policy=0.6)
    algorithm = algorithm_of("arpo")
    _, (gradients,), _ = update(trees, algorithm, packing=packing)
    objectives = []
    for tree, credit in zip(trees, assign_credits(trees, algorithm), strict=True):
        assert credit.own is not None
        for i, own in enumerate(credit.own):
            mine = replace(credit, advantages=np.full(len(tree.nodes), own))
            objectives += [objective for _, objective in token_objectives(model, tree, mine, 3.0)[i]]
    loss = -torch.stack(objectives).mean()
    assert_close(gradients, gradients_of(model, loss))


def test_soft_and_hard_differ_by_the_clip_alone() -> None:
    for off_policy, same in ((0.0, True), (0.6, False)):
        trees = mixed_trees(off_policy)
        (_, (soft,), _), (_, (hard,), _) = (update(trees, algorithm_of(n)) for n in ("arpo", "arpo-hard"))
        if same:
            assert_close(soft, hard)
        else:
            with pytest.raises(AssertionError):
                assert_close(soft, hard)


def test_packed_and_unpacked_balanced_objectives_have_one_gradient() -> None:
    """AEPO's entropies are standardised over the same tokens either way, where all fit one micro-batch."""
    trees = mixed_trees(off_policy=0.6)
    (_, (packed,), _), (_, (rows,), _) = (
        update(trees, algorithm_of("aepo"), packing=packing) for packing in ("tree", "rows")
    )
    assert_close(packed, rows)
