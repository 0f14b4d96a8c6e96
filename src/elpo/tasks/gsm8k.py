"""GSM8K: grade-school word problems with whole-number answers (Cobbe et al. 2021, MIT)."""

from __future__ import annotations

import random
from typing import Any

from pydantic import BaseModel

from elpo.interfaces import Split
from elpo.tasks.boxed_task import BoxedOptions, BoxedTask
from elpo.tasks.dataset import HeldOut, content_id, held_out_split
from elpo.tasks.gsm8k_demonstrations import demonstrate
from elpo.tasks.prompts import ask
from elpo.types import Problem


class GSM8KOptions(BoxedOptions, HeldOut):
    """Options; the source has train and test, validation is cut out of train."""

    path: str = "openai/gsm8k:main"


class GSM8KRow(BaseModel):
    """`answer` is a worked solution whose last line is `#### number`."""

    question: str
    answer: str


class GSM8K(BoxedTask[GSM8KOptions, GSM8KRow]):
    """The task."""

    Options = GSM8KOptions
    name = "gsm8k"
    row_type = GSM8KRow
    source_splits = ("test", "train")

    def __init__(self, options: GSM8KOptions) -> None:
        super().__init__(options)
        self._solutions: dict[str, str] = {}  # by problem

    def problem(self, row: GSM8KRow) -> Problem:
        """The question; the number after `####`, thousands separators removed."""
        _, marker, number = row.answer.rpartition("####")
        answer = number.strip().replace(",", "")
        if not marker or not answer:
            raise ValueError("answer: it does not end with #### and a number")
        problem = Problem(content_id(self.name, row.question), ask(self.options.prompt, row.question), answer)
        self._solutions[problem.id] = row.answer
        return problem

    def demonstrations(self, num: int, seed: int) -> list[dict[str, Any]]:
        """Up to `num` worked solutions of training problems, as conversations that calculate with Python."""
        train = self.problems("train", 1 << 30)
        order = random.Random(seed).sample(train, len(train))
        found = (demonstrate(problem, self._solutions[problem.id]) for problem in order)
        return [conversation for conversation in found if conversation is not None][:num]

    def split_of(self, problem: Problem, source_split: str | None) -> Split:
        """The source's own; a share of train is validation."""
        return held_out_split(problem, source_split, self.options)
