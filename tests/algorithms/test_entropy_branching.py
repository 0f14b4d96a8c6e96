"""ARPO's and AEPO's rollouts: who is copied, where, and how the budget is split."""

from __future__ import annotations

import math

import numpy as np
import pytest

from elpo.algorithms.entropy_branching import LOG_VOCABULARY, balanced_chains, entropy_branching
from elpo.tree import ROOT

NATS = LOG_VOCABULARY / 4  # a step of four tokens with this entropy each has H / log V = 1


def always(num_tools, entropies):
    """Every chain has these entropies, and a copy those after its prefix."""

    def policy(tree, prefix, i):
        depth = len(tree.path(prefix))
        return num_tools - depth, False, [NATS * h for h in entropies[depth:]]

    return policy


def prefixes(requests):
    return [(request.prefix, request.num_rollouts) for request in requests]


def test_the_paper_copies_after_every_rise_and_nowhere_else(run):
    """Two chains of three tool steps; the entropy rises after the first call only."""
    tree, _, requests = run(entropy_branching(2), 16, always(3, [1, 2, 1, 0.5]))
    assert prefixes(requests) == [(ROOT, 2), (0, 1), (4, 1), (ROOT, 12)]
    assert len(tree.children()[0]) == len(tree.children()[4]) == 2


def test_copies_are_copied_at_later_turns(run):
    """Every later step is more uncertain than the first: 2 chains, 4 after turn one, 8 after turn two."""
    tree, _, requests = run(entropy_branching(2), 16, always(2, [1, 2, 3]))
    assert [n for _, n in prefixes(requests)] == [2, *[1] * 6, 8]
    turns = [len(tree.path(prefix)) for prefix, _ in prefixes(requests)[1:-1]]
    assert turns == [1, 1, 2, 2, 2, 2]
    assert len({prefix for prefix, _ in prefixes(requests)[1:-1]}) == 6  # each from a trajectory of its own


def test_without_tool_calls_the_rest_is_drawn_from_the_prompt(run):
    _, _, requests = run(entropy_branching(8), 16, always(0, [1]))
    assert prefixes(requests) == [(ROOT, 8), (ROOT, 8)]


def test_the_budget_ends_the_copying(run):
    _, _, requests = run(entropy_branching(4), 6, always(5, [1, 2, 2, 2, 2, 2]))
    assert [n for _, n in prefixes(requests)] == [4, 1, 1]


def copied_at_turn_one(run):
    """Share of one-call chains the code's rule copies, over many seeds."""
    copies = 0
    for seed in range(1000):
        _, _, requests = run(entropy_branching(2, "code"), 4, always(1, [1, 9]), seed)
        copies += sum(prefix != ROOT for prefix, _ in prefixes(requests))
    return copies / 2000


def test_the_code_copies_half_of_the_first_turns(run):
    """It compares the step that made the call with itself there, whatever comes after the answer."""
    assert copied_at_turn_one(run) == pytest.approx(0.5, abs=3 * math.sqrt(0.25 / 2000))


def test_the_codes_weight_of_a_rise(run):
    """At the second turn the rise is 1: copied with probability 0.5 + 0.2."""
    copies = 0
    for seed in range(300):
        _, _, requests = run(entropy_branching(1, "code"), 20, always(2, [1, 2, 0]), seed)
        copies += 1 in {prefix for prefix, _ in prefixes(requests)}
    assert copies / 300 == pytest.approx(0.7, abs=3 * math.sqrt(0.21 / 300))


def test_copies_in_a_row_make_the_next_less_likely(run):
    """(0.5 + 0.2 · 1.5)(1 − 0.3 l) > 0.5 for l = 0 and 1, not for 2; then the row begins anew."""
    policy = always(5, [1, 2.5, 2.5, 2.5, 2.5, 2.5])
    _, _, requests = run(entropy_branching(1, penalty=0.3), 60, policy)
    on_the_first_chain = [prefix for prefix, _ in prefixes(requests) if prefix in range(5)]
    assert on_the_first_chain == [0, 1, 3, 4]
    assert 0.8 * 0.7 > 0.5 > 0.8 * 0.4


def test_every_copy_of_the_prompt_counts_in_the_codes_penalty(run):
    """With a full penalty the second copy is impossible."""
    for seed in range(20):
        _, _, requests = run(entropy_branching(6, "code", penalty=1.0), 16, always(3, [1, 1, 1, 1]), seed)
        assert sum(prefix != ROOT for prefix, _ in prefixes(requests)) <= 1


@pytest.mark.parametrize(("tool_entropy", "expected"), [(1.0, 9), (0.0, 10), (9.0, 1), (3.0, 5)])
def test_the_pre_monitor_splits_the_budget(make_tree, make_steps, make_outcome, tool_entropy, expected):
    """⌊16 σ(0.5 (1 − H_tool))⌋ + 1, by hand: σ(0) = 0.5, σ(0.5) = 0.622, σ(−4) = 0.018, σ(−1) = 0.269."""
    tree = make_tree()
    leaf = tree.add(
        ROOT, make_steps(2, [NATS, NATS * tool_entropy, NATS * tool_entropy]), make_outcome(False)
    )
    assert balanced_chains(tree, leaf, 16) == expected


def test_the_pre_monitor_is_paid_for_and_reused_or_not(run):
    flat = always(1, [1, 1])  # nothing is copied: 9 chains of 16
    _, ledger, requests = run(entropy_branching(pre_monitor="reused"), 16, flat)
    assert prefixes(requests) == [(ROOT, 1), (ROOT, 8), (ROOT, 7)] and ledger.remaining == 0
    _, ledger, requests = run(entropy_branching(pre_monitor="counted"), 16, flat)
    assert prefixes(requests) == [(ROOT, 1), (ROOT, 9), (ROOT, 6)] and ledger.remaining == 0
    rising = always(1, [1, 2])
    _, _, requests = run(entropy_branching(pre_monitor="counted"), 16, rising)
    assert 0 not in {prefix for prefix, _ in prefixes(requests)}  # never copied
    _, _, requests = run(entropy_branching(pre_monitor="reused"), 16, rising)
    assert 0 in {prefix for prefix, _ in prefixes(requests)}


def test_the_window_and_an_answer_without_tokens(run):
    first_two = entropy_branching(1, entropy_tokens=2)
    _, _, requests = run(first_two, 4, lambda *_: (1, False, [0.0, 1.0]))
    assert prefixes(requests)[1] == (0, 1)


@pytest.mark.parametrize(
    "settings",
    [{"num_chains": 0}, {"rule": "x"}, {"pre_monitor": "x"}, {"entropy_weight": -1.0}, {"penalty": 1.5},
     {"entropy_tokens": -1}],
)  # fmt: skip
def test_settings_out_of_range_are_told(settings):
    with pytest.raises(ValueError, match="use "):
        entropy_branching(**settings)


def test_it_repeats_with_its_seed(run):
    def drawn(seed):
        return prefixes(run(entropy_branching(3, "code"), 16, always(4, [1, 2, 1, 2, 1]), seed)[2])

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1
    assert np.isfinite(LOG_VOCABULARY)
