"""Which problems the rounds of a step are about, and that costs add up."""

from __future__ import annotations

from itertools import chain, islice

from elpo.rollout.counts import RolloutCounts
from elpo.training.collection import problem_batches
from elpo.training.model_loading import derived_seed
from elpo.types import Problem, ToolStatus

PROBLEMS = [Problem(str(i), (), "") for i in range(40)]


def batches(step: int, num: int) -> list[list[str]]:
    found = problem_batches(PROBLEMS, 4, step, 2, lambda purpose: derived_seed(7, purpose))
    return [[problem.id for problem in batch] for batch in islice(found, num)]


def test_own_and_spare_batches_each_go_through_all_problems() -> None:
    own = [batches(step, 1)[0] for step in range(1, 11)]
    spare = [batch for step in range(1, 6) for batch in batches(step, 3)[1:]]
    for of_a_kind in (own, spare):
        assert sorted(chain.from_iterable(of_a_kind)) == sorted(problem.id for problem in PROBLEMS)
    assert own != spare
    assert batches(3, 3) == batches(3, 3)


def test_costs_add_up() -> None:
    a = RolloutCounts(3, 1, 0, 9, 100, 5, 0.5, {ToolStatus.OK: 4, ToolStatus.TIMEOUT: 1})
    b = RolloutCounts(2, 0, 0, 4, 50, 2, 0.25, {ToolStatus.OK: 2})
    assert a + b == RolloutCounts(5, 1, 0, 13, 150, 7, 0.75, {ToolStatus.OK: 6, ToolStatus.TIMEOUT: 1})
    assert a + RolloutCounts() == a
