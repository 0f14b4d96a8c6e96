"""The posterior over the critical step, against the enumeration of every course a trajectory can take."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, entropy

from elpo.algorithms.recoverability import (
    FALL,
    LEVELS,
    RISE,
    Belief,
    belief,
    best_look,
    information,
    prior_over_steps,
)

TOP = len(LEVELS) - 1


def move(i: int, j: int) -> float:
    """Probability that a step that is not fatal takes level i to level j, both above 0."""
    up, down = RISE * (i < TOP), FALL * (i > 1)
    if j == i:
        return 1 - up - down
    if j == i + 1:
        return up
    return down / (i - 1) if j < i else 0.0


def enumerated(prior: np.ndarray, successes: np.ndarray, draws: np.ndarray) -> Belief:
    """By summing over all sequences of levels."""
    num = len(prior)
    critical, falls, levels = np.zeros(num), np.zeros(num), np.zeros((num, TOP + 1))
    for t in range(1, num + 1):  # the first fatal step
        for alive in itertools.product(range(1, TOP + 1), repeat=t):
            path = [*alive, *[0] * (num - t)]
            weight = prior[t - 1] * np.prod([move(i, j) for i, j in itertools.pairwise(alive)])
            weight *= np.prod(binom.pmf(successes, draws, LEVELS[path]))
            critical[t - 1] += weight
            levels[np.arange(num), path] += weight
            lower = [j == 0 or j <= i - 2 for i, j in itertools.pairwise([*path, 0])]
            falls += weight * (np.array(lower) & (np.array(path) > 0))
    total = critical.sum()
    return Belief(critical / total, levels / total, falls / total)


@pytest.mark.parametrize(
    ("successes", "draws"),
    [([1, 0, 0], [3, 2, 2]), ([0, 2, 1], [3, 2, 3]), ([0, 0, 1], [3, 0, 1]), ([0, 3, 0], [0, 4, 5])],
)
def test_it_is_the_sum_over_all_courses(successes, draws):
    prior = np.array([0.5, 0.1, 0.4])
    found = belief(prior, np.array(successes), np.array(draws))
    expected = enumerated(prior, np.array(successes), np.array(draws))
    np.testing.assert_allclose(found.critical, expected.critical, atol=1e-12)
    np.testing.assert_allclose(found.levels, expected.levels, atol=1e-12)
    np.testing.assert_allclose(found.falls, expected.falls, atol=1e-12)


def test_without_a_rollout_it_is_the_prior():
    prior = np.array([3.0, 1.0, 2.0])
    np.testing.assert_allclose(belief(prior, np.zeros(3), np.zeros(3)).critical, prior / 6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_a_success_rules_out_every_earlier_step(counts):
    successes = np.array([min(pair) for pair in counts])
    draws = np.array([max(pair) for pair in counts])
    found = belief(prior_over_steps(0.3, np.ones(len(counts))), successes, draws)
    last = max(np.flatnonzero(successes), default=0)
    assert not found.critical[:last].any()
    assert found.critical.sum() == pytest.approx(1)
    assert (found.critical <= found.falls + 1e-12).all()  # what loses everything is a fall


def test_failures_make_an_anchor_suspect_the_more_the_likelier_success_was():
    def lost(root_successes: int) -> float:
        found = belief(np.ones(4), np.array([root_successes, 0, 0, 0]), np.array([8, 0, 4, 0]))
        return float(found.critical[:2].sum())

    chances = [lost(k) for k in (0, 2, 5, 8)]
    assert chances == sorted(chances) and chances[-1] > chances[0] + 0.2


def test_a_deep_anchor_that_seldom_succeeds_after_an_early_one_that_often_did_is_a_fall():
    successes, draws = np.array([5, 6, 0, 1, 0]), np.array([8, 8, 0, 12, 8])
    found = belief(np.ones(5), successes, draws)
    assert found.critical.argmax() == 3  # step 4: the last anchor never succeeds
    assert found.falls[1:3].sum() > 0.8 > 0.1 > found.falls[0]


@pytest.mark.parametrize("num_draws", [1, 2, 5])
def test_information_is_the_mutual_information_with_being_lost(num_draws):
    rng = np.random.default_rng(0)
    levels = rng.dirichlet(np.ones(TOP + 1), size=4)
    joint = levels[:, :, None] * binom.pmf(np.arange(num_draws + 1), num_draws, LEVELS[:, None])
    for found, table in zip(information(levels, num_draws), joint, strict=True):
        lost_or_not = np.stack([table[0], table[1:].sum(0)])
        expected = entropy(lost_or_not.sum(0)) + entropy(lost_or_not.sum(1)) - entropy(lost_or_not.ravel())
        assert found == pytest.approx(expected, abs=1e-12)


def test_nothing_is_to_be_learned_where_the_answer_is_known():
    certain = np.zeros((2, TOP + 1))
    certain[0, 0], certain[1, 4] = 1, 1
    np.testing.assert_allclose(information(certain, 3), 0, atol=1e-12)


def test_the_best_look_is_the_best_of_all():
    state = belief(np.ones(6), np.array([2, 1, 0, 0, 0, 0]), np.array([4, 1, 0, 0, 2, 0]))
    for cost in (0.0, 0.5, 2.0):
        looks = {
            (m, n): information(state.levels[m : m + 1], n)[0] / (n + cost)
            for m in range(1, 6)
            for n in (1, 2, 3)
        }
        assert looks[best_look(state, 3, cost)] == pytest.approx(max(looks.values()))
    assert best_look(state, 3, 0.0)[1] == 1  # a second suffix never tells more than the first
    assert best_look(state, 3, 50.0)[1] == 3


def test_the_prior_is_that_of_the_first_error_of_a_failure():
    rng = np.random.default_rng(0)
    right = rng.random((200_000, 5)) < 0.3 ** (1 / 5)
    failed = right[~right.all(1)]
    first = np.bincount(failed.argmin(1), minlength=5) / len(failed)
    np.testing.assert_allclose(prior_over_steps(0.3, np.ones(5)), first, atol=0.005)


def test_thousands_of_rollouts_are_no_trouble():
    found = belief(np.ones(3), np.array([4000, 3000, 0]), np.array([9000, 9000, 9000]))
    assert found.critical[1] > 0.9999
    np.testing.assert_allclose(found.levels.sum(-1), 1)


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="differ"):
        belief(np.ones(3), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="positive weight"):
        belief(np.array([1.0, 0.0]), np.zeros(2), np.zeros(2))
