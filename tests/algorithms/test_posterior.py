"""The posterior search: it finds what can be found, spends no more than it has, and says how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from elpo.algorithms.clipping import error_region
from elpo.algorithms.posterior import evidence, localize_posterior, posterior, step_weights
from elpo.tree import ROOT
from elpo.types import Localization


def world(num_tools: int, num_good: int, chance: float, seed: int = 0):
    """Suffixes of the first `num_good` steps of a failure succeed with `chance`, no whole rollout does."""
    rng = np.random.default_rng(seed)

    def policy(tree, prefix, i):
        depth = len(tree.path(prefix))
        won = prefix != ROOT and depth <= num_good and rng.random() < chance
        return num_tools - depth, won

    return policy


@pytest.mark.parametrize("num_good", range(1, 6))
def test_it_finds_the_error_of_an_existing_trajectory(run, make_tree, make_steps, make_outcome, num_good):
    tree = make_tree()
    leaf = tree.add(ROOT, make_steps(5), make_outcome(False))
    tree, ledger, _ = run(localize_posterior(leaf), 80, world(5, num_good, 1.0), tree=tree)
    (found,) = tree.localizations
    assert found.exact and found.critical == tree.path(leaf)[num_good]
    assert ledger.spent == sum(probe.num_rollouts for probe in found.probes) < 30


def test_it_is_never_sure_of_a_problem_nobody_solved(run, make_tree, make_steps, make_outcome):
    tree = make_tree()
    leaf = tree.add(ROOT, make_steps(5), make_outcome(False))
    tree, _, _ = run(localize_posterior(leaf), 40, world(5, 0, 1.0), tree=tree)
    (found,) = tree.localizations
    assert not found.exact and found.critical == tree.path(leaf)[0]


def test_where_success_is_rare_it_misses_less_than_bisection(run, make_tree, make_steps, make_outcome):
    """And what it is sure of is mostly right."""
    from elpo.algorithms.strategies import localize

    hits, sure = {"posterior": 0, "bisection": 0}, []
    for seed in range(60):
        num_good = seed % 9
        for name, make in (("posterior", localize_posterior), ("bisection", localize)):
            tree = make_tree()
            leaf = tree.add(ROOT, make_steps(8), make_outcome(False))
            tree, _, _ = run(make(leaf), 20, world(8, num_good, 0.3, seed), tree=tree)
            (found,) = tree.localizations
            hit = found.critical == tree.path(leaf)[num_good]
            hits[name] += hit
            if name == "posterior" and found.exact:
                sure.append(hit)
    assert hits["posterior"] >= hits["bisection"] + 12
    assert len(sure) >= 15 and np.mean(sure) > 0.75


def test_it_collects_failures_like_bel_and_counts_all_rollouts(run):
    tree, ledger, requests = run(posterior(), 16, world(4, 2, 1.0))
    assert ledger.remaining == 0 and requests[0].prefix == ROOT and requests[0].num_rollouts == 3
    assert tree.localizations and all(found.leaf in tree.leaves for found in tree.localizations)
    assert not error_region(tree)[list(tree.path(tree.localizations[0].leaf)[:2])].any()


def test_a_search_ends_at_its_limit_and_collecting_goes_on(run):
    tree, ledger, requests = run(posterior(search_limit=4, confidence=0.99), 21, lambda *_: (8, False))
    assert ledger.remaining == 0
    drawn = [sum(probe.num_rollouts for probe in found.probes) for found in tree.localizations]
    assert (
        drawn == [4, 4, 4]
        and [request.num_rollouts for request in requests if request.prefix == ROOT] == [3] * 3
    )


def test_evidence_is_everything_drawn_from_the_path(make_tree, make_steps, make_outcome):
    tree = make_tree()
    leaf = tree.add(ROOT, make_steps(3), make_outcome(False))
    tree.add(ROOT, make_steps(2), make_outcome(True))
    path = tree.path(leaf)
    for anchor, correct in ((path[0], True), (path[0], False), (path[2], False)):
        tree.add(anchor, make_steps(1), make_outcome(correct))
    aside = tree.add(ROOT, make_steps(1), make_outcome(False))
    tree.add(tree.path(aside)[0], make_steps(0), make_outcome(True))  # not from this path
    successes, draws = evidence(tree, leaf)
    np.testing.assert_array_equal(successes, [1, 1, 0, 0])
    np.testing.assert_array_equal(draws, [3, 2, 0, 1])


def test_a_partial_loss_is_reported_beside_the_critical_step(run, make_tree, make_steps, make_outcome):
    """Step 3 of 6 takes the chance from 1 to one in eight, step 6 the rest."""
    tree = make_tree()
    leaf = tree.add(ROOT, make_steps(6), make_outcome(False))
    count = iter(range(10_000))

    def policy(tree, prefix, i):
        depth = len(tree.path(prefix))
        return 6 - depth, depth in (1, 2) or (depth in (3, 4, 5) and next(count) % 8 == 7)

    for anchor in tree.path(leaf)[:2]:
        for _ in range(6):
            tree.add(anchor, make_steps(1), make_outcome(True))
    tree, _, _ = run(localize_posterior(leaf, confidence=0.99), 120, policy, tree=tree)
    (found,) = tree.localizations
    assert found.critical == tree.path(leaf)[5]
    assert found.falls == (tree.path(leaf)[2],)


def test_one_step_needs_no_search(run, make_tree, make_steps, make_outcome):
    tree = make_tree()
    leaf = tree.add(ROOT, make_steps(0), make_outcome(False))
    tree, ledger, _ = run(localize_posterior(leaf), 5, lambda *_: (0, False), tree=tree)
    assert ledger.spent == 0 and tree.localizations == [Localization(leaf, leaf, ())]


def test_the_budget_may_end_before_it_is_sure(run, make_tree, make_steps, make_outcome):
    tree = make_tree()
    leaf = tree.add(ROOT, make_steps(8), make_outcome(False))
    tree, ledger, _ = run(localize_posterior(leaf, confidence=0.99), 3, lambda *_: (1, False), tree=tree)
    (found,) = tree.localizations
    assert ledger.remaining == 0 and not found.exact and found.critical is not None


def test_lost_rollouts_are_no_evidence(run, make_tree, make_steps, make_outcome):
    tree = make_tree()
    leaf = tree.add(ROOT, make_steps(3), make_outcome(False))
    tree, ledger, _ = run(localize_posterior(leaf), 6, lambda *_: None, tree=tree)
    assert ledger.remaining == 0 and tree.localizations[0].probes == ()


def test_doubt_weighs_and_sureness_does_not(make_tree, make_steps, make_outcome):
    tree = make_tree()
    leaf = tree.add(ROOT, make_steps(2, [0.5, 2.0, 0.5]), make_outcome(False))
    weights = step_weights(tree, leaf)
    assert weights.argmax() == 1 and (weights > 0).all()
    chance = np.exp(-4.0)  # four tokens of one nat each
    np.testing.assert_allclose(weights, (np.array([0.5, 2.0, 0.5]) + 0.1) * (1.05 - chance))
    np.testing.assert_allclose(step_weights(tree, leaf, entropy_tokens=2), weights)


def test_steps_without_tokens_weigh_the_same(make_tree, make_outcome):
    from elpo.types import Step

    empty = np.zeros(0)
    step = Step(empty.astype(int), empty.astype(bool), empty, empty)
    tree = make_tree()
    leaf = tree.add(ROOT, [step] * 3, make_outcome(False))
    assert len(set(step_weights(tree, leaf))) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"max_suffixes": 0},
        {"confidence": 1.0},
        {"confidence": 0.0},
        {"round_cost": -1.0},
        {"entropy_tokens": -1},
    ],
)
def test_settings_out_of_range_are_told(settings):
    for make in (lambda **s: posterior(**s), lambda **s: localize_posterior(0, **s)):
        with pytest.raises(ValueError, match="use "):
            make(**settings)


def test_a_success_is_not_searched(run, make_tree, make_steps, make_outcome):
    tree = make_tree()
    leaf = tree.add(ROOT, make_steps(1), make_outcome(True))
    with pytest.raises(ValueError, match="not a failed leaf"):
        run(localize_posterior(leaf), 4, lambda *_: (0, True), tree=tree)
