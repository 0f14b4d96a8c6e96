"""Which groups are drawn again, thrown away and kept; and how many calls a trajectory may make."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elpo.algorithm_config import PromptConfig
from elpo.algorithms.call_limit import call_limit
from elpo.algorithms.prompt_sampling import (
    capped_draws,
    every_prompt,
    make_prompt_sampling,
    open_prompts,
    success_variance,
    valuable_prompts,
)
from elpo.types import Problem
from tests.trees import empty_tree, flat

OPEN, SOLVED, FAILED = [1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]


def batches(size):
    numbers = count()
    while True:
        yield [Problem(str(next(numbers)), (), "") for _ in range(size)]


def drive(sampling, size, outcomes):
    """Trees kept, and the ids asked for in each round; `outcomes(id, copy)` gives the rewards of a group."""
    asked, seen = [], {}

    def grown(problems):
        asked.append([problem.id for problem in problems])
        trees = []
        for problem in problems:
            seen[problem.id] = seen.get(problem.id, -1) + 1
            tree = flat(outcomes(int(problem.id), seen[problem.id]))
            tree.problem = problem
            trees.append(tree)
        return trees

    generator = sampling(batches(size), np.random.default_rng(0))
    problems = next(generator)
    try:
        while True:
            problems = generator.send(grown(problems))
    except StopIteration as finished:
        return finished.value, asked


def ids(trees):
    return [tree.problem.id for tree in trees]


def test_variance_of_success():
    assert success_variance(flat([1.0, -1.0, -1.0, -1.0])) == pytest.approx(3 / 16)
    assert success_variance(flat(SOLVED)) == success_variance(empty_tree()) == 0


def test_every_prompt_is_one_batch():
    kept, asked = drive(every_prompt(), 3, lambda i, copy: FAILED)
    assert ids(kept) == ["0", "1", "2"] and asked == [["0", "1", "2"]]


def test_open_prompts_are_drawn_until_there_are_enough():
    """Every third group is open: three batches of two hold two."""
    kept, asked = drive(open_prompts(), 2, lambda i, copy: OPEN if i % 3 == 1 else FAILED)
    assert ids(kept) == ["1", "4"] and asked == [["0", "1"], ["2", "3"], ["4", "5"]]


def test_open_prompts_are_no_more_than_a_batch_and_end_with_their_rounds():
    kept, asked = drive(open_prompts(), 4, lambda i, copy: FAILED if i < 3 else OPEN)
    assert ids(kept) == ["3", "4", "5", "6"] and len(asked) == 2
    kept, asked = drive(open_prompts(3), 2, lambda i, copy: SOLVED)
    assert kept == [] and len(asked) == 3


def test_valuable_prompts_replace_groups_without_variance():
    kept, asked = drive(valuable_prompts(), 4, lambda i, copy: OPEN if i in (1, 2) else FAILED)
    assert asked[0] == ["0", "1", "2", "3"] and sum(map(len, asked[1:])) == 2
    assert all(len(set(round_)) == len(round_) for round_ in asked)
    assert set(ids(kept)) == {"1", "2"} and len(kept) == 4


def test_copies_are_capped_and_what_cannot_be_replaced_stays():
    kept, asked = drive(valuable_prompts(2), 5, lambda i, copy: OPEN if i == 4 else FAILED)
    assert asked[1:] == [["4"], ["4"]]
    assert ids(kept) == ["4", "4", "2", "3", "4"]
    kept, asked = drive(valuable_prompts(), 2, lambda i, copy: FAILED)
    assert ids(kept) == ["0", "1"] and len(asked) == 1


def test_draws_follow_the_values():
    rng = np.random.default_rng(0)
    counts = sum(capped_draws([3 / 16, 1 / 4, 0.0], 1, 1, rng) for _ in range(4000))
    assert counts[2] == 0
    assert counts[0] / 4000 == pytest.approx(3 / 7, abs=0.03)  # three standard errors are 0.024


@given(st.lists(st.sampled_from([0.0, 0.1, 0.25]), max_size=6), st.integers(0, 10), st.integers(1, 3))
def test_draws_keep_to_the_cap(values, num, cap):
    counts = capped_draws(values, num, cap, np.random.default_rng(0))
    assert (counts <= cap * (np.array(values) > 0)).all()
    assert counts.sum() == min(num, cap * np.count_nonzero(values))


def test_what_is_left_to_pay_bounds_the_rounds():
    def rounds(name, left):
        sampling = make_prompt_sampling(PromptConfig(name=name), left)
        return len(drive(sampling, 2, lambda i, copy: OPEN if i % 2 and name == "valuable" else FAILED)[1])

    assert [rounds("open", left) for left in (None, 1, 4, 99)] == [10, 1, 4, 10]
    assert [rounds("valuable", left) for left in (None, 1, 2)] == [2, 1, 2]
    for make in (open_prompts, valuable_prompts):
        with pytest.raises(ValueError, match="use 1 or more"):
            make(0)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 60))
def test_phases_of_the_call_limit_are_in_order_and_equally_long(phases, num_steps):
    limits = [call_limit(range(len(phases)), step, num_steps) for step in range(1, num_steps + 1)]
    assert limits == sorted(limits)
    lengths = [limits.count(phase) for phase in range(len(phases))]
    assert max(lengths) - min(lengths) <= 1
    assert call_limit((), 1, num_steps) is None
