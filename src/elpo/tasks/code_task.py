"""The family of tasks whose answers are programs, judged by tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field

from elpo.graders.code_tests import CodeTests
from elpo.graders.grade import Grade
from elpo.schema import Flag, Positive, PositiveFloat
from elpo.tasks.dataset import DatasetOptions, DatasetTask, Row
from elpo.tasks.prompts import FUNCTION, Template, ask
from elpo.types import Problem, ToolCall

if TYPE_CHECKING:
    from elpo.graders.code import CodeGrader


class CodeOptions(DatasetOptions):
    """Options of programming tasks. With `partial_credit` a share of the tests passed earns that share of
    the reward's range; `correct` always means all of them. Seconds and megabytes are a solution's limits."""

    prompt: Template = FUNCTION
    partial_credit: Flag = False
    timeout: PositiveFloat = 10.0
    memory_mb: Annotated[int, Field(ge=16, strict=True)] = 1024
    num_workers: Positive = 1


CodeOptionsT = TypeVar("CodeOptionsT", bound=CodeOptions)


@dataclass(frozen=True)
class HiddenTests:
    """The tests in a problem's metadata; as text, which is what a run folder stores, only their number."""

    tests: CodeTests = field(repr=False)
    num: int


class CodeTask(DatasetTask[CodeOptionsT, Row]):
    """Answers are programs; `Problem.answer` is a right one, empty where the data set has none."""

    def __init__(self, options: CodeOptionsT) -> None:
        super().__init__(options)
        self._started: CodeGrader | None = None

    def program(self, problem_id: str, prompt: str, question: str, tests: CodeTests, answer: str) -> Problem:
        """The problem that asks for code which passes `tests`."""
        hidden = HiddenTests(tests, len(tests.tests))
        return Problem(problem_id, ask(prompt, question), answer, {"tests": hidden})

    def judge(self, problem: Problem, text: str) -> Grade:
        """The last code block passes every test."""
        return self._grader.grade(text, problem.metadata["tests"].tests)

    def partial(self, grade: Grade) -> float:
        """The share of tests passed, where the options ask for partial credit."""
        return grade.score if self.options.partial_credit else 0.0

    def gold_turns(self, problem: Problem) -> Sequence[ToolCall | str]:
        """The known solution in a code block."""
        return [f"```python\n{problem.answer}\n```"] if problem.answer else []

    def close(self) -> None:
        """End the grader's processes."""
        with self._lock:
            if self._started is not None:
                self._started.close()

    @property
    def _grader(self) -> CodeGrader:
        """Started with the first answer: a run that only prints its settings needs no sandbox."""
        with self._lock:
            if self._started is None:
                from elpo.graders.code import CodeGrader

                limits = (self.options.timeout, self.options.memory_mb)
                self._started = CodeGrader(*limits, self.options.num_workers, self.options.partial_credit)
            return self._started
