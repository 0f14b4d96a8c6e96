"""Tasks whose problems are the rows of a data set: reading, splitting, grading the final turn.

A task says what a row looks like (`row_type`), how it becomes a problem (`problem`) and how an answer is
judged (`judge`, which its family gives: `boxed_task`, `choice_task`, `code_task`).
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from elpo.graders.grade import Grade, Verdict
from elpo.interfaces import InfrastructureFault, Split
from elpo.schema import Fraction, Positive, Section
from elpo.tasks.prompts import Template
from elpo.tasks.rows import BadRow, NoSuchSplit, is_one_file, read_rows
from elpo.types import Outcome, Problem, Step, StopReason, ToolCall

CONTESTED = "another row has this question with another answer"

Reward = Annotated[float, Field(strict=True)]


class DatasetOptions(Section):
    """What every task over a data set can be told.

    `path` is what `elpo.tasks.rows.read_rows` takes. `limit` bounds the problems of each split.
    """

    path: str
    limit: Positive | None = None
    prompt: Template
    reward_correct: Reward = 1.0
    reward_wrong: Reward = -1.0

    @model_validator(mode="after")
    def _rewards_differ(self) -> DatasetOptions:
        if self.reward_wrong >= self.reward_correct:
            raise ValueError(
                f"reward_wrong {self.reward_wrong:g} is not below reward_correct {self.reward_correct:g}"
            )
        return self


class HeldOut(DatasetOptions):
    """Options of a task that cuts its validation or test problems out of a larger set by their content."""

    validation_share: Fraction = 0.05
    test_share: Fraction = 0.1  # only where the source has no test split

    @model_validator(mode="after")
    def _something_is_left(self) -> HeldOut:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share:g} + test_share {self.test_share:g} leave nothing "
                "to train on; keep the sum below 1"
            )
        return self


Row = TypeVar("Row", bound=BaseModel)
OptionsT = TypeVar("OptionsT", bound=DatasetOptions)


class DatasetTask(ABC, Generic[OptionsT, Row]):
    """A task (`elpo.interfaces.Task`) over rows. Nothing is read before the first problem is asked for.

    `bad_rows` are those left out: not of the row's type, or contested (a question that comes with two
    answers). A question that is repeated is kept once, in test before validation before train.
    """

    name: str
    tool_names: Sequence[str] = ("python",)
    row_type: type[Row]
    source_splits: tuple[str, ...] = ("test",)  # as the source calls them, the most protected first
    confidential = False

    def __init__(self, options: OptionsT) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._by_split: dict[Split, list[Problem]] | None = None
        self._missing: NoSuchSplit | None = None
        self._bad_rows: list[BadRow] = []

    @abstractmethod
    def problem(self, row: Row) -> Problem:
        """The problem of a row.

        Raises:
            ValueError: the row cannot be used; the message says why, without its content.
        """

    @abstractmethod
    def judge(self, problem: Problem, text: str) -> Grade:
        """The verdict on a final turn. Never raises for anything in `text`."""

    @abstractmethod
    def gold_turns(self, problem: Problem) -> Sequence[ToolCall | str]:
        """The turns of a right solution, as `elpo check` plays them; none where the data has none."""

    def close(self) -> None:
        """End what grading has started. Safe to call twice."""

    def usable(self, row: Mapping[str, Any]) -> bool:
        """False for rows that are not this task's, which are passed over and not counted as bad."""
        return True

    def split_of(self, problem: Problem, source_split: str | None) -> Split:
        """Where a problem belongs; `source_split` is None for a source that is one file."""
        return "test"

    def sources(self) -> Iterator[tuple[str, str]]:
        """(path, split) pairs to read, the most protected first."""
        for split in self.source_splits[:1] if is_one_file(self.options.path) else self.source_splits:
            yield self.options.path, split

    @property
    def bad_rows(self) -> Sequence[BadRow]:
        """The rows that were left out and why. Reads the data set where that has not happened yet."""
        self._load()
        return self._bad_rows

    def problems(self, split: Split, num: int) -> list[Problem]:
        """The first `num` problems of a split in the order of the source; empty where the task has none.

        Raises:
            ValueError: the source cannot be read, lacks the split, or no row of it can be used.
        """
        found = self._load()[split]
        if not found and self._missing is not None:
            raise self._missing
        return found[: num if self.options.limit is None else min(num, self.options.limit)]

    def grade(self, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
        """Judge the final turn; a trajectory that did not end with one has no answer and is wrong.

        Raises:
            InfrastructureFault: the grader itself failed; the trajectory is neither right nor wrong.
        """
        low, high = self.options.reward_wrong, self.options.reward_correct
        if stop is not StopReason.ANSWER or not steps or steps[-1].is_tool_step:
            return Outcome(low, False, stop)
        grade = self.judge(problem, steps[-1].text)
        if grade.verdict is Verdict.FAULT:
            raise InfrastructureFault(f"grading {problem.id}: {grade.detail}")
        share = float(grade.correct) if grade.correct else self.partial(grade)
        return Outcome(low + share * (high - low), grade.correct, stop, grade.answer)

    def partial(self, grade: Grade) -> float:
        """The share of the reward's range that an answer which is not correct earns."""
        return 0.0

    def _load(self) -> Mapping[Split, list[Problem]]:
        with self._lock:
            if self._by_split is None:
                self._by_split = self._read()
            return self._by_split

    def _read(self) -> dict[Split, list[Problem]]:
        whole = is_one_file(self.options.path)
        kept: dict[str, tuple[Split, Problem]] = {}
        contested: set[str] = set()
        num_rows = 0
        for path, source_split in self.sources():
            try:
                for place, row in read_rows(path, source_split, keep_no_copy=self.confidential):
                    if isinstance(row, Mapping) and not self.usable(row):
                        continue
                    num_rows += 1
                    problem = self._problem_or_reason(place, row)
                    if isinstance(problem, BadRow):
                        self._bad_rows.append(problem)
                        continue
                    split = self.split_of(problem, None if whole else source_split)
                    _, first = kept.setdefault(problem.id, (split, problem))
                    if first.answer != problem.answer:
                        contested.add(problem.id)
                        self._bad_rows.append(BadRow(place, CONTESTED))
            except NoSuchSplit as missing:
                self._missing = missing
        if not kept or len(kept) == len(contested):
            self._raise_empty(num_rows)
        if self._bad_rows:
            first_bad = self._bad_rows[0]
            warnings.warn(
                f"{self.name}: {len(self._bad_rows)} of {num_rows} rows left out, the first: "
                f"{first_bad.place}: {first_bad.reason}",
                stacklevel=4,
            )
        by_split: dict[Split, list[Problem]] = {"train": [], "validation": [], "test": []}
        for problem_id, (split, problem) in kept.items():
            if problem_id not in contested:
                by_split[split].append(problem)
        return by_split

    def _problem_or_reason(self, place: str, row: Mapping[str, Any] | BadRow) -> Problem | BadRow:
        if isinstance(row, BadRow):
            return row
        try:
            problem = self.problem(self.row_type.model_validate(row))
        except ValidationError as error:
            reasons = error.errors(include_input=False, include_url=False)
            found = (f"{'.'.join(map(str, r['loc']))}: {r['msg']}" for r in reasons)
            return BadRow(place, "; ".join(found))
        except ValueError as error:
            return BadRow(place, str(error))
        if self.confidential:
            return replace(problem, metadata={**problem.metadata, "confidential": True})
        return problem

    def _raise_empty(self, num_rows: int) -> None:
        where = f"task {self.name!r}, path {self.options.path!r}"
        if num_rows:
            first = self._bad_rows[0]
            raise ValueError(f"{where}: none of {num_rows} rows can be used; {first.place}: {first.reason}")
        raise self._missing or ValueError(f"{where}: there are no rows")


def content_id(name: str, text: str) -> str:
    """An id that only depends on what is asked, not on spacing, so that no file order can change it."""
    return f"{name}-{hashlib.sha256(' '.join(text.split()).encode(errors='replace')).hexdigest()[:16]}"


def held_out_split(problem: Problem, source_split: str | None, options: HeldOut) -> Split:
    """The split of a problem whose source has no validation split, or, being one file, no split at all.

    The id alone decides, so a problem stays where it is whatever else is in the source.
    """
    if source_split == "test":
        return "test"
    digest = hashlib.sha256(problem.id.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    test_share = options.test_share if source_split is None else 0.0
    if position < test_share:
        return "test"
    return "validation" if position < test_share + options.validation_share else "train"
