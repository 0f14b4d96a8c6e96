"""Mixed data for tool-using agents in verl's format, that of Open-AgentRL-30K: the source decides the grader.

A row has `data_source`, `prompt` (chat messages), `reward_model.ground_truth` and `extra_info`. Programs are
judged by the tests in `ground_truth`, multiple choice by the letter in the box, all else by the value in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from elpo.graders.choice import grade_choice
from elpo.graders.code_tests import CodeTests
from elpo.graders.grade import Grade
from elpo.graders.math import MathGrader, check_gold
from elpo.interfaces import Split
from elpo.schema import Flag
from elpo.tasks.code_task import CodeOptions, CodeTask, HiddenTests
from elpo.tasks.dataset import HeldOut, content_id, held_out_split
from elpo.tasks.prompts import QUESTION, Template
from elpo.types import Problem, ToolCall

Kind = Literal["value", "choice", "code"]

SOURCES: tuple[tuple[str, Kind], ...] = (
    (r"code|leetcode|taco|apps\b|mbpp|humaneval", "code"),
    (r"gpqa", "choice"),
    (r"math|aime|amc|gsm8k|dapo|science|olympiad|minerva|skywork|numina|deepscaler", "value"),
)
"""What a `data_source` that contains one of these is graded by; the first that fits."""


class AgentRLOptions(CodeOptions, HeldOut):
    """Options. `prompt` is put around the last user message, which the rows have whole; `graders` says what
    data sources are graded by that the table does not know. `strict` is that of the value grader."""

    path: str = "Gen-Verse/Open-AgentRL-30K"
    prompt: Template = QUESTION
    graders: Mapping[str, Kind] = {}
    strict: Flag = False


class ChatMessage(BaseModel):
    """One message of a prompt."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class RewardModel(BaseModel):
    """What an answer is compared with; tests of programs are JSON text."""

    ground_truth: str = Field(min_length=1)

    @field_validator("ground_truth", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, dict | list):
            return json.dumps(value)
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class AgentRLRow(BaseModel):
    """One problem as verl stores it; a mapping may be JSON text."""

    data_source: str = Field(min_length=1)
    prompt: list[ChatMessage] = Field(min_length=1)
    reward_model: RewardModel
    extra_info: Any = None

    @field_validator("prompt", "reward_model", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value


class AgentRL(CodeTask[AgentRLOptions, AgentRLRow]):
    """The task. Validation and test problems are cut out by content, where the source has no such split."""

    Options = AgentRLOptions
    name = "agent_rl"
    row_type = AgentRLRow
    source_splits = ("train",)

    def __init__(self, options: AgentRLOptions) -> None:
        super().__init__(options)
        self._values = MathGrader(options.strict, 5.0, options.num_workers)

    def problem(self, row: AgentRLRow) -> Problem:
        """The row's own messages, with the template around the last one."""
        if row.prompt[-1].role != "user":
            raise ValueError("prompt: the last message is not the user's")
        before, _, after = self.options.prompt.partition(QUESTION)
        messages = [message.model_dump() for message in row.prompt]
        question = messages[-1]["content"]
        messages[-1]["content"] = f"{before}{question}{after}"
        kind, truth = self._kind(row.data_source), row.reward_model.ground_truth.strip()
        about: dict[str, Any] = {"data_source": row.data_source, "grader": kind}
        if kind == "code":
            tests = code_tests(truth)
            about["tests"], truth = HiddenTests(tests, len(tests.tests)), ""
        elif kind == "choice":
            truth = truth.strip("()").upper()
            if len(truth) != 1 or truth not in ascii_uppercase:
                raise ValueError("reward_model.ground_truth: not the letter of an option")
        else:
            check_gold(truth)
        return Problem(content_id(self.name, question), tuple(messages), truth, about)

    def judge(self, problem: Problem, text: str) -> Grade:
        """By the grader of the problem's source."""
        match problem.metadata["grader"]:
            case "code":
                return super().judge(problem, text)
            case "choice":
                return grade_choice(text, problem.answer, len(ascii_uppercase))
        return self._values.grade(text, problem.answer)

    def gold_turns(self, problem: Problem) -> Sequence[ToolCall | str]:
        """The true value or letter in a box; none for programs, whose solutions the data does not have."""
        return [f"The answer is \\boxed{{{problem.answer}}}."] if problem.answer else []

    def split_of(self, problem: Problem, source_split: str | None) -> Split:
        """By content: the source has only a train split."""
        return held_out_split(problem, None, self.options)

    def close(self) -> None:
        """End the graders."""
        super().close()
        self._values.close()

    def _kind(self, source: str) -> Kind:
        if source in self.options.graders:
            return self.options.graders[source]
        for pattern, kind in SOURCES:
            if re.search(pattern, source, re.IGNORECASE):
                return kind
        raise ValueError(
            f"data_source: no grader is known for {source!r:.80}; name one in task.options.graders, "
            "such as {" + source[:40] + ": value}"
        )


def code_tests(ground_truth: str) -> CodeTests:
    """The tests of a program, in one of three forms of JSON: a list of asserts, `inputs` and `outputs` (with
    `fn_name` for a function), or `test_code` with a `check`, its `entry_point` and `import_prefix`.

    Raises:
        ValueError: it is none of these, or has no tests; without their content.
    """
    try:
        tests = json.loads(ground_truth)
    except ValueError as error:
        raise ValueError("reward_model.ground_truth: tests of a program must be JSON") from error
    match tests:
        case list() if all(isinstance(test, str) for test in tests):
            return CodeTests.from_asserts(tests)
        case {"test_code": str(code), "entry_point": str(entry), **rest}:
            return CodeTests.from_check(code, entry.rpartition(".")[2], str(rest.get("import_prefix", "")))
        case {"inputs": list(inputs), "outputs": list(outputs), "fn_name": str(name)}:
            return CodeTests.from_calls(name, inputs, outputs)
        case {"inputs": list(inputs), "outputs": list(outputs)}:
            return CodeTests.from_stdio([_text(i) for i in inputs], [_text(o) for o in outputs])
    raise ValueError("reward_model.ground_truth: neither asserts, nor inputs and outputs, nor a check")


def _text(value: Any) -> str:
    """What a program reads or prints; some sets store its lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
