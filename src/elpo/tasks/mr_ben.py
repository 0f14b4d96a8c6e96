"""Mr-Ben's multiple-choice questions in biology, chemistry, physics and medicine (Zeng et al. 2024, MIT).

The data set is about judging solutions: it holds, for every question, solutions of models and what human
experts say of them. Only the questions are used here; solutions and analyses are never read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from string import ascii_uppercase
from typing import Any

from pydantic import BaseModel, Field

from elpo.interfaces import Split
from elpo.schema import Fraction
from elpo.tasks.choice_task import ChoiceOptions, ChoiceTask
from elpo.tasks.dataset import HeldOut, content_id, held_out_split
from elpo.tasks.rows import files_in
from elpo.types import Problem

_OPTION = re.compile(r"^([A-Z]): ?(.*)$", re.MULTILINE)


class MrBenOptions(ChoiceOptions, HeldOut):
    """Options. `path` is the folder `data` of github.com/dvlab-research/Mr-Ben, or a file of it."""

    validation_share: Fraction = 0.1


class MrBenRow(BaseModel):
    """One model's solution of a question; of it only what is the question's own. The experts corrected
    some answers (`Ground_Truth_Answer_Modified`)."""

    uuid: str = Field(validation_alias="Question_UUID", min_length=1)
    question: str = Field(validation_alias="Question", min_length=1)
    options: str = Field(validation_alias="Options")
    answer: str = Field(validation_alias="Ground_Truth_Answer_Modified")


class MrBen(ChoiceTask[MrBenOptions, MrBenRow]):
    """The task. A question is left out where its rows disagree about it or its answer, or where
    it has several answers."""

    Options = MrBenOptions
    name = "mr_ben"
    row_type = MrBenRow

    def __init__(self, options: MrBenOptions) -> None:
        super().__init__(options)
        self._ids: dict[str, str] = {}  # of the problem, by Question_UUID

    def sources(self) -> Iterator[tuple[str, str]]:
        """Every file, one a subject."""
        return ((file, "") for file in files_in(self.options.path))

    def usable(self, row: Mapping[str, Any]) -> bool:
        """True for multiple-choice questions; those of coding and some of math have no options."""
        return bool(row.get("Options"))

    def problem(self, row: MrBenRow) -> Problem:
        """The question with its options in their own order."""
        options = _OPTION.findall(row.options)
        letters = "".join(letter for letter, _ in options)
        if not ascii_uppercase.startswith(letters):
            raise ValueError(f"Options: lettered {letters!r}")
        answer = row.answer.strip()
        if len(answer) != 1 or answer not in letters:
            raise ValueError(f"Ground_Truth_Answer_Modified: {answer!r} is not one of the letters {letters}")
        problem_id = content_id(self.name, f"{row.question} {row.options}")
        if self._ids.setdefault(row.uuid, problem_id) != problem_id:
            raise ValueError("Question or Options: another row of this Question_UUID has it otherwise")
        return self.choice(problem_id, row.question, [text for _, text in options], letters.index(answer), {})

    def split_of(self, problem: Problem, source_split: str | None) -> Split:
        """By id; the source has no splits."""
        return held_out_split(problem, None, self.options)
