"""The family of tasks whose answers are values in a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from elpo.graders.grade import Grade
from elpo.graders.math import MathGrader, check_gold
from elpo.interfaces import Split
from elpo.schema import Flag, Positive, PositiveFloat
from elpo.tasks.dataset import DatasetOptions, DatasetTask, Row
from elpo.tasks.prompts import MATH, Template
from elpo.types import Problem, ToolCall


class BoxedOptions(DatasetOptions):
    """Options of tasks with values as answers. `strict` and `timeout` (seconds) are those of
    `elpo.graders.math.MathGrader`."""

    prompt: Template = MATH
    strict: Flag = False
    timeout: PositiveFloat = 5.0
    num_workers: Positive = 1


BoxedOptionsT = TypeVar("BoxedOptionsT", bound=BoxedOptions)


class BoxedTask(DatasetTask[BoxedOptionsT, Row]):
    """Answers are values in a box; `Problem.answer` is the true one, as LaTeX."""

    def __init__(self, options: BoxedOptionsT) -> None:
        super().__init__(options)
        self._grader = MathGrader(options.strict, options.timeout, options.num_workers)

    def problems(self, split: Split, num: int) -> list[Problem]:
        """As every task over a data set.

        Raises:
            ValueError: also where an answer is beyond what the installed packages can compare.
        """
        found = super().problems(split, num)
        for problem in found:
            check_gold(problem.answer)
        return found

    def judge(self, problem: Problem, text: str) -> Grade:
        """Equality of values."""
        return self._grader.grade(text, problem.answer)

    def gold_turns(self, problem: Problem) -> Sequence[ToolCall | str]:
        """The true value in a box."""
        return [f"The answer is \\boxed{{{problem.answer}}}."]

    def close(self) -> None:
        """End the grader's workers."""
        self._grader.close()
