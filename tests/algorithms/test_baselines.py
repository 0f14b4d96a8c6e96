"""What a reward is compared with, on cases small enough to check by hand, and in the limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import zscore

from elpo.algorithms.baselines import (
    floored_advantages,
    leave_one_out_advantages,
    optimal_value_advantages,
    raw_rewards,
)
from elpo.algorithms.whitening import whiten
from tests.trees import Figure4, build_outcome, build_steps, empty_tree, flat

REWARDS = st.lists(st.floats(-2, 2), min_size=1, max_size=8)
ALL = [raw_rewards, leave_one_out_advantages, floored_advantages, optimal_value_advantages]


def at_leaves(tree, advantages):
    return advantages[tree.leaves]


def test_leave_one_out_by_hand():
    tree = flat([1.0, -1.0, -1.0])
    assert at_leaves(tree, leave_one_out_advantages(tree)) == pytest.approx([2.0, -1.0, -1.0])


@given(REWARDS)
def test_leave_one_out_is_the_reward_less_the_mean_of_the_others(rewards):
    tree = flat(rewards)
    others = [
        np.mean(rewards[:i] + rewards[i + 1 :]) if len(rewards) > 1 else r for i, r in enumerate(rewards)
    ]
    np.testing.assert_allclose(
        at_leaves(tree, leave_one_out_advantages(tree)), np.array(rewards) - others, atol=1e-9
    )


@pytest.mark.parametrize(
    ("rewards", "floor", "expected"),
    [
        ([-1, -0.8, -0.9, -0.7], 0.0, [-1, -0.8, -0.9, -0.7]),  # nothing right: nothing gains
        ([1, -1, -1, -1], 0.0, [1, -1, -1, -1]),  # mean −0.5, so the floor
        ([1, 1, 1, -1], 0.0, [0.5, 0.5, 0.5, -1.5]),  # mean 0.5
        ([1, 1, 1, -1], 1.0, [0, 0, 0, -2]),
    ],
)
def test_the_floor_of_a_baseline_by_hand(rewards, floor, expected):
    tree = flat([float(reward) for reward in rewards])
    assert at_leaves(tree, floored_advantages(tree, floor)) == pytest.approx(expected)


def test_the_optimal_value_by_hand():
    """One success of two at a temperature of 1/2: V* = ½ ln((e² + e⁻²) / 2)."""
    tree = flat([1.0, -1.0])
    value = 0.5 * np.log(np.cosh(2.0))
    assert at_leaves(tree, optimal_value_advantages(tree, 0.5)) == pytest.approx([1 - value, -1 - value])


@given(REWARDS, st.floats(0.01, 10))
def test_the_optimal_value_is_a_log_mean_exponential(rewards, temperature):
    tree = flat(rewards)
    value = temperature * (logsumexp(np.array(rewards) / temperature) - np.log(len(rewards)))
    advantages = at_leaves(tree, optimal_value_advantages(tree, temperature))
    np.testing.assert_allclose(advantages, np.array(rewards) - value, atol=1e-9)


def test_the_optimal_value_lies_between_the_mean_and_the_best():
    tree = flat([1.0, 0.0, -1.0])
    for temperature, value in ((1e4, 0.0), (1e-3, 1.0)):
        found = 1.0 - at_leaves(tree, optimal_value_advantages(tree, temperature))[0]
        assert found == pytest.approx(value, abs=2e-3)
    with pytest.raises(ValueError, match="temperature is 0"):
        optimal_value_advantages(tree, 0.0)


@pytest.mark.parametrize("rule", ALL)
def test_a_shared_step_has_the_mean_of_the_trajectories_through_it(rule):
    tree = Figure4().fill()
    advantages = rule(tree)
    for node, below in enumerate(tree.leaves_below()):
        assert advantages[node] == pytest.approx(advantages[below].mean())


@pytest.mark.parametrize("rule", ALL)
def test_no_rollouts_and_one_rollout(rule):
    assert rule(empty_tree()).shape == (0,)
    assert np.isfinite(rule(flat([1.0]))).all()
    assert leave_one_out_advantages(flat([1.0]))[-1] == 0


def test_whitening_over_trajectories_is_a_z_score_of_the_batch():
    rewards = [[1.0, -1.0], [1.0, 1.0, -1.0]]
    trees = [flat(of_tree) for of_tree in rewards]
    whitened = whiten(trees, [raw_rewards(tree) for tree in trees])
    found = np.concatenate([at_leaves(t, w) for t, w in zip(trees, whitened, strict=True)])
    np.testing.assert_allclose(found, zscore(np.concatenate(rewards), ddof=1), rtol=1e-5)


def test_whitening_over_tokens_counts_long_trajectories_more():
    tree = empty_tree()
    tree.add(-1, build_steps(0), build_outcome(True))  # 4 sampled tokens
    tree.add(-1, build_steps(2), build_outcome(False))  # 12
    (whitened,) = whiten([tree], [raw_rewards(tree)], "tokens")
    expected = zscore([1.0] * 4 + [-1.1] * 12, ddof=1)
    np.testing.assert_allclose(at_leaves(tree, whitened), [expected[0], expected[-1]], rtol=1e-5)


def test_whitening_without_spread_leaves_nothing():
    trees = [flat([1.0, 1.0]), empty_tree(), flat([1.0])]
    advantages = [raw_rewards(tree) for tree in trees]
    for scope in ("trajectories", "tokens"):
        assert not np.concatenate(whiten(trees, advantages, scope)).any()
    assert whiten([empty_tree()], [np.zeros(0)], "tokens")[0].shape == (0,)
    with pytest.raises(ValueError, match="unknown whitening"):
        whiten(trees, advantages, "groups")
