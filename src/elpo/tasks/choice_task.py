"""The family of tasks whose answers are the letters of options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, TypeVar

from elpo.graders.choice import grade_choice
from elpo.graders.grade import Grade
from elpo.schema import Flag
from elpo.tasks.dataset import DatasetOptions, DatasetTask, Row
from elpo.tasks.prompts import CHOICE, Template, ask, with_options
from elpo.types import Problem, ToolCall


class ChoiceOptions(DatasetOptions):
    """Options of multiple-choice tasks. With `search` the policy may search as well as compute."""

    prompt: Template = CHOICE
    search: Flag = False


ChoiceOptionsT = TypeVar("ChoiceOptionsT", bound=ChoiceOptions)


class ChoiceTask(DatasetTask[ChoiceOptionsT, Row]):
    """Answers are letters of options; `Problem.answer` is the right one."""

    def __init__(self, options: ChoiceOptionsT) -> None:
        super().__init__(options)
        self.tool_names = ("python", "search") if options.search else ("python",)

    def choice(
        self, problem_id: str, question: str, options: Sequence[str], right: int, metadata: Mapping[str, Any]
    ) -> Problem:
        """The problem that shows `options` in this order, `options[right]` being the right one.

        Raises:
            ValueError: there are fewer than two options or more than letters, or two are alike.
        """
        if not 2 <= len(options) <= len(ascii_uppercase):
            raise ValueError(f"options: there are {len(options)}, not 2 to {len(ascii_uppercase)}")
        if len({option.strip() for option in options}) < len(options):
            raise ValueError("options: two of them are alike")
        messages = ask(self.options.prompt, with_options(question, options))
        about = {"num_options": len(options), **metadata}
        return Problem(problem_id, messages, ascii_uppercase[right], about)

    def judge(self, problem: Problem, text: str) -> Grade:
        """The letter answered is the right one."""
        return grade_choice(text, problem.answer, int(problem.metadata["num_options"]))

    def gold_turns(self, problem: Problem) -> Sequence[ToolCall | str]:
        """The line with the letter."""
        return [f"Answer: {problem.answer}"]
