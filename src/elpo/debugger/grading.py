"""What counts as success: an answer, a pattern, unit tests, a command, or a task's own grader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from elpo.graders.code_tests import CodeTests
from elpo.graders.grade import Grade, Verdict
from elpo.interfaces import InfrastructureFault
from elpo.rollout.messages import messages_of
from elpo.types import Outcome, Problem, Step, StopReason

GraderKind = Literal["answer", "regex", "tests", "command"]
Judge = Callable[[Problem, Sequence[Step], StopReason], Outcome]


@dataclass(frozen=True)
class GraderChoice:
    """One way to judge; `value` is the answer, the pattern, the file of the tests or the command."""

    kind: GraderKind
    value: str
    timeout: float = 60.0  # of a command, seconds

    @contextmanager
    def open(self) -> Iterator[Judge]:
        """The judge, for the length of a `with`.

        Raises:
            ValueError: the answer cannot be compared, the pattern or the tests are none, no such command.
        """
        match self.kind:
            case "answer":
                from elpo.graders.math import MathGrader, check_gold

                check_gold(self.value)
                with MathGrader() as math:
                    yield _final_text(lambda text: _answer(math.grade(text, self.value), text, self.value))
            case "regex":
                from elpo.graders.regex import RegexGrader

                with closing(RegexGrader(self.value)) as regex:
                    yield _final_text(regex.grade)
            case "tests":
                from elpo.graders.code import CodeGrader

                tests = read_tests(Path(self.value))
                with closing(CodeGrader()) as code:
                    yield _final_text(lambda text: code.grade(text, tests))
            case "command":
                from elpo.graders.command import CommandGrader

                command = CommandGrader(self.value, self.timeout)

                def judge(problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
                    return _outcome(command.grade(as_record(problem, steps, stop)), stop)

                yield judge


def _final_text(grade: Callable[[str], Grade]) -> Judge:
    """A judge of the final answer alone; a trajectory that was cut off has none."""

    def judge(problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
        if stop is not StopReason.ANSWER or not steps or steps[-1].is_tool_step:
            return Outcome(0.0, False, stop)
        return _outcome(grade(steps[-1].text), stop)

    return judge


def _answer(grade: Grade, text: str, gold: str) -> Grade:
    r"""A text that states no answer (`\boxed{}` or "Answer: ...") but is nothing else counts as one."""
    if grade.verdict is Verdict.NO_ANSWER and text.strip().casefold() == gold.strip().casefold():
        return Grade(Verdict.CORRECT, text.strip(), 1.0)
    return grade


def _outcome(grade: Grade, stop: StopReason) -> Outcome:
    if grade.verdict is Verdict.FAULT:
        raise InfrastructureFault(f"the grader failed: {grade.detail}")
    return Outcome(float(grade.correct), grade.correct, stop, grade.answer)


def as_record(problem: Problem, steps: Sequence[Step], stop: StopReason) -> dict[str, Any]:
    """A trajectory as a grading command reads it: the problem, all messages, and the final text or null."""
    final = steps[-1].text if stop is StopReason.ANSWER and steps and not steps[-1].is_tool_step else None
    return {
        "problem": {"id": problem.id, "answer": problem.answer, "metadata": json_only(problem.metadata)},
        "messages": [*problem.messages, *(message for step in steps for message in messages_of(step))],
        "stop": stop.value,
        "final": final,
    }


def json_only(value: Any) -> Any:
    """`value` as JSON, anything foreign as its text."""
    return json.loads(json.dumps(value, default=str))


def read_tests(path: Path) -> CodeTests:
    """Tests from a file: Python assert statements (.py), or JSON with `inputs` and `outputs` of a program,
    and with `entry_point` those of a function.

    Raises:
        ValueError: it is neither.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the tests cannot be read: {error}") from error
    try:
        if path.suffix != ".json":
            return CodeTests.from_asserts(text)
        found = json.loads(text)
        if "entry_point" in found:
            return CodeTests.from_calls(found["entry_point"], found["inputs"], found["outputs"])
        return CodeTests.from_stdio(found["inputs"], found["outputs"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no tests: {error}") from error
