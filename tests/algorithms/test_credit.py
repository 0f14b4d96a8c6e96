from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import zscore

from elpo.algorithm_config import CreditConfig, LossConfig
from elpo.algorithms.advantage import (
    branch_advantages,
    first_wrong_nodes,
    hierarchical_advantages,
    node_values,
    standardize,
    trajectory_advantages,
)
from elpo.algorithms.clipping import clip_bounds, error_region
from elpo.algorithms.credit import assign_credit
from elpo.algorithms.credit_rules import CREDIT_RULES
from elpo.algorithms.surrogates import SURROGATES
from elpo.tree import ROOT
from elpo.types import Localization

WEIGHTS = [0.0, 0.3, 0.5, 1.0]


@pytest.fixture(scope="session")
def random_tree(make_tree, make_steps, make_outcome):
    """A tree grown from random prefixes; rewards from `rewards(rng)`, correct if positive."""

    def grow_(seed, num_leaves, rewards):
        rng, tree = np.random.default_rng(seed), make_tree()
        for _ in range(num_leaves):
            inner = [i for i in range(len(tree.nodes)) if i not in tree.outcomes]
            prefix = int(rng.choice([ROOT, *inner])) if rng.random() < 0.7 else ROOT
            reward = float(rewards(rng))
            tree.add(prefix, make_steps(int(rng.integers(0, 4))), make_outcome(reward > 0, reward))
        return tree

    return grow_


def leaf_values(tree, values):
    return np.array([values[leaf] for leaf in tree.leaves])


@pytest.mark.parametrize("branch_weight", WEIGHTS)
@pytest.mark.parametrize(("std", "ddof"), [("population", 0), ("sample", 1)])
def test_without_branching_every_branch_weight_is_grpo(flat_tree, branch_weight, std, ddof):
    rewards = [1.0, -1.1, 0.3, -1.1, 1.0, 0.0, -0.4, 1.0]
    tree = flat_tree(rewards, num_tools=2)
    r = torch.tensor(rewards, dtype=torch.float64)
    grpo = ((r - r.mean()) / (torch.std(r, correction=ddof) + 1e-6)).numpy()
    advantages = hierarchical_advantages(tree, branch_weight, std)
    np.testing.assert_allclose(leaf_values(tree, advantages), grpo, rtol=1e-12)
    np.testing.assert_allclose(leaf_values(tree, advantages), zscore(rewards, ddof=ddof), rtol=1e-5)
    np.testing.assert_array_equal(advantages.reshape(8, 3), np.tile(advantages.reshape(8, 3)[:, :1], 3))
    np.testing.assert_array_equal(advantages, hierarchical_advantages(tree, 0.77, std))  # to the last bit


@pytest.mark.parametrize("branch_weight", WEIGHTS)
def test_without_scale_it_is_dr_grpo(flat_tree, branch_weight):
    rewards = [1.0, -1.1, -1.1, 0.5]
    advantages = hierarchical_advantages(flat_tree(rewards, 0), branch_weight, scale=False)
    np.testing.assert_allclose(advantages, np.array(rewards) - np.mean(rewards))


@pytest.mark.parametrize("reward", [1.0, -1.1, 0.1])
@pytest.mark.parametrize("std", ["population", "sample"])
def test_equal_rewards_give_exactly_zero(random_tree, reward, std):
    for seed in range(20):
        tree = random_tree(seed, 16, lambda _: reward)
        credit = assign_credit(tree, std=std)
        for values in (credit.advantages, credit.branch, credit.trajectory):
            assert not values.any()


def test_a_single_rollout_has_no_advantage(flat_tree, make_tree):
    assert not hierarchical_advantages(flat_tree([1.0], 2)).any()
    assert not hierarchical_advantages(flat_tree([1.0], 2), std="sample").any()
    assert assign_credit(make_tree()).advantages.shape == (0,)


def test_node_value_is_the_mean_over_children_not_leaves(make_tree, make_steps, make_outcome):
    tree = make_tree()
    tree.add(ROOT, make_steps(2), make_outcome(False, 0.0))  # nodes 0 1 2
    tree.add(0, make_steps(0), make_outcome(True, 1.0))  # 3
    tree.add(1, make_steps(1), make_outcome(True, 1.0))  # 4 5
    np.testing.assert_allclose(node_values(tree), [0.75, 0.5, 0.0, 1.0, 1.0, 1.0])
    z = (1 / 3) / np.sqrt(2 / 9)
    trajectory = [0.0, -z / 2, -2 * z, z, z, z]
    np.testing.assert_allclose(trajectory_advantages(tree), trajectory, atol=1e-5)
    # node 0 is an only first step; 1 and 3 are siblings, so are 2 and 4; 5 inherits from 4
    np.testing.assert_allclose(branch_advantages(tree), [0, -1, -1, 1, 1, 1], atol=1e-5)


REWARDS = st.sampled_from(
    [lambda rng: rng.normal(), lambda rng: rng.choice([1.0, -1.1]), lambda rng: rng.choice([1, -1, -1, 0.5])]
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 24), REWARDS, st.sampled_from(["population", "sample"]))
def test_sum_laws(random_tree, seed, num_leaves, rewards, std):
    tree = random_tree(seed, num_leaves, rewards)
    branch, trajectory = branch_advantages(tree, std), trajectory_advantages(tree, std)
    values, below = node_values(tree), tree.leaves_below()
    own = leaf_values(tree, trajectory)
    assert abs(own.sum()) < 1e-9
    if own.any():
        assert abs(own.std(ddof=int(std == "sample")) - 1) < 1e-3 or np.ptp(own) < 0.1
    for i in range(len(tree.nodes)):
        np.testing.assert_allclose(trajectory[i], np.mean([trajectory[leaf] for leaf in below[i]]), atol=1e-9)
    for parent, siblings in tree.children().items():
        if len(siblings) > 1:
            assert abs(branch[siblings].sum()) < 1e-6
            assert np.all(np.diff(branch[siblings][np.argsort(values[siblings])]) >= 0)
        else:
            assert branch[siblings[0]] == (0 if parent == ROOT else branch[parent])
        if parent != ROOT:
            np.testing.assert_allclose(values[parent], values[siblings].mean())
    for weight in WEIGHTS:
        np.testing.assert_allclose(
            hierarchical_advantages(tree, weight, std),
            weight * branch + (1 - weight) * trajectory,
            atol=1e-12,
        )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.5, 5), st.floats(-3, 3))
def test_two_valued_rewards_give_the_same_advantages(random_tree, seed, scale, shift):
    tree = random_tree(seed, 16, lambda rng: rng.choice([1.0, -1.1]))
    other = random_tree(seed, 16, lambda rng: rng.choice([1.0, -1.1]) * scale + shift)
    np.testing.assert_allclose(hierarchical_advantages(tree), hierarchical_advantages(other), atol=1e-4)


def test_unknown_settings_are_refused(flat_tree):
    tree = flat_tree([1.0, -1.0])
    with pytest.raises(ValueError, match="'population' or 'sample'"):
        standardize(np.zeros(2), "biased")
    with pytest.raises(ValueError, match="from 0 to 1"):
        hierarchical_advantages(tree, 1.5)
    with pytest.raises(ValueError, match="'subtree'"):
        clip_bounds(tree, scope="leaf")
    with pytest.raises(ValueError, match=r"eps_elc is -0\.1"):
        clip_bounds(tree, eps_elc=-0.1)


@pytest.fixture
def searched_tree(make_tree, make_steps, make_outcome):
    """Nodes 0-3 the searched failure, critical node 1; 4 a failed suffix of 1, 5-6 another failure."""
    tree = make_tree()
    tree.add(ROOT, make_steps(3), make_outcome(False))
    tree.add(1, make_steps(0), make_outcome(False))
    tree.add(ROOT, make_steps(1), make_outcome(False))
    tree.add(0, make_steps(0), make_outcome(True))
    tree.localizations.append(Localization(3, 1, ()))
    return tree


@pytest.mark.parametrize(
    ("scope", "nodes"),
    [("subtree", {1, 2, 3, 4}), ("searched", {1, 2, 3}), ("first_wrong", {1, 2, 3, 4, 5, 6})],
)
def test_scopes(searched_tree, scope, nodes):
    assert set(np.flatnonzero(error_region(searched_tree, scope))) == nodes
    low, high = clip_bounds(searched_tree, scope=scope)
    for i in range(8):
        assert low[i] == pytest.approx(0.685 if i in nodes else 0.8)
    assert high == pytest.approx(1.315)


def test_a_success_below_a_critical_node_keeps_its_path_out(searched_tree, make_steps, make_outcome):
    searched_tree.add(2, make_steps(0), make_outcome(True))  # node 8, through 0 1 2
    assert set(np.flatnonzero(error_region(searched_tree))) == {3, 4}
    assert set(np.flatnonzero(error_region(searched_tree, "searched"))) == {3}


def test_an_unfinished_search_and_no_relaxation_leave_one_bound(searched_tree):
    assert len(set(clip_bounds(searched_tree, eps_elc=0.0)[0])) == 1
    searched_tree.localizations[:] = [Localization(3, None, (), exact=False)]
    assert not error_region(searched_tree).any()
    assert not error_region(searched_tree, "searched").any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 24))
def test_first_wrong_nodes_head_the_first_wrong_region(random_tree, seed, num_leaves):
    tree = random_tree(seed, num_leaves, lambda rng: rng.choice([1.0, -1.1]))
    heads = first_wrong_nodes(tree)
    assert set(heads) == {leaf for leaf, outcome in tree.outcomes.items() if not outcome.correct}
    region = {node for leaf, head in heads.items() for node in tree.path(leaf) if node >= head}
    assert set(np.flatnonzero(error_region(tree, "first_wrong"))) == region


def test_credit_collects_the_parts(searched_tree):
    how = {"std": "sample", "eps": 0.1}
    credit = assign_credit(searched_tree, branch_weight=0.3, scope="searched", eps_elc=0.1, **how)
    np.testing.assert_array_equal(credit.branch, branch_advantages(searched_tree, **how))
    np.testing.assert_array_equal(credit.trajectory, trajectory_advantages(searched_tree, **how))
    np.testing.assert_array_equal(credit.advantages, hierarchical_advantages(searched_tree, 0.3, **how))
    np.testing.assert_array_equal(
        credit.clip_low, clip_bounds(searched_tree, eps_elc=0.1, scope="searched")[0]
    )
    assert credit.advantages.dtype == credit.clip_low.dtype == credit.clip_high.dtype == np.float64


def test_the_names_of_rules_and_surrogates_are_those_a_recipe_may_use() -> None:
    for field, table in ((CreditConfig.model_fields["name"], CREDIT_RULES),
                         (LossConfig.model_fields["surrogate"], SURROGATES)):  # fmt: skip
        assert set(get_args(field.annotation)) == set(table)
