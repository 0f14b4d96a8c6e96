"""The programs task: write a function line by line, against visible tests that do not see everything.

A specification changes a number line by line. The policy defines each line in its stateful Python session,
one definition a call. The session runs the line's visible test: a line that fails is refused, which costs a
turn, and one that passes is committed for good. Hidden unit tests judge every committed line, also where the
visible ones are blind, so every failure has one first irrecoverable step, and it is computed here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Any

from pydantic import Field, model_validator

from elpo.interfaces import Split
from elpo.schema import Count
from elpo.tasks.programs_demonstrations import definition, demonstrate, demonstrator_success
from elpo.tasks.programs_session import Definition, committed, program_setup
from elpo.tasks.programs_spec import MAX_LINES, VERBS, Line, Spec, specs
from elpo.tasks.synthetic import Rate, SyntheticConfig, final_boxed, first_lost_step, same_integer
from elpo.types import Outcome, Problem, Step, StopReason, ToolCall

INSTRUCTION = (
    "Write this as a function f in Python, a line per call, in ink: f.then(lambda x: ...). A line that fails "
    "its visible test is refused. f.look() shows what f gives so far. Then answer \\boxed{what f gives}."
)

NumLines = Annotated[int, Field(ge=4, le=MAX_LINES, strict=True)]


class ProgramsConfig(SyntheticConfig):
    """Options of the task: its specifications, its rewards, and how sloppy the demonstrator is.

    `easy_error` and `hard_error` are the chances that the demonstrator writes a verb with the wrong
    operation; `hard_verbs` are those of the second kind. `syntax_error`, `wrong_amount` and `look` are the
    chances of a harmless detour before a line.
    """

    detours = ("syntax_error", "wrong_amount", "look")

    min_lines: NumLines = 4
    max_lines: NumLines = 8
    slack: Count = 3  # turns beyond one per line and one for the answer
    easy_error: Rate = 0.1
    hard_verbs: tuple[str, ...] = ("cut by", "empty by", "differ from", "cycle at", "stop at")
    syntax_error: Rate = 0.02
    wrong_amount: Rate = 0.02
    look: Rate = 0.02

    @model_validator(mode="after")
    def _consistent(self) -> ProgramsConfig:
        self.check("lines", VERBS)
        return self


class ProgramsTask:
    """Procedural programming problems (`Task`), their grader, oracle and demonstrations."""

    Options = ProgramsConfig
    name = "programs"
    tool_names: Sequence[str] = ("python",)
    python_state = "session"  # the program lives there

    def __init__(self, config: ProgramsConfig | None = None) -> None:
        self.config = config or ProgramsConfig()

    def problems(self, split: Split, num: int) -> list[Problem]:
        """The first `num` problems of a split. Content decides the split, for every seed."""
        sequence = specs(str(self.config.seed), split, self.config.min_lines, self.config.max_lines)
        return [self.problem(spec) for spec in islice(sequence, num)]

    def problem(self, spec: Spec) -> Problem:
        """`spec` as a problem: the session's program in `python_setup`, the truth in `lines`."""
        return Problem(
            id=f"programs-{spec.digest[:16]}",
            messages=({"role": "user", "content": f"{spec.text}\n{INSTRUCTION}"},),
            answer=str(spec.values[-1]),
            metadata={
                "python_setup": program_setup(spec.start, spec.values),
                "start": spec.start,
                "lines": [(line.op, line.verb, line.amount) for line in spec.lines],
                "values": list(spec.values),
                "max_turns": len(spec.lines) + 1 + self.config.slack,
            },
        )

    def grade(self, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
        """Correct where the policy stopped with the right value boxed, and every line is committed and passes
        its hidden unit tests."""
        answer = final_boxed(steps) if stop is StopReason.ANSWER else None
        correct = answer is not None and recoverable(problem, steps)
        return Outcome(self.config.reward(correct), correct, stop, answer)

    def gold_turns(self, problem: Problem) -> Sequence[ToolCall | str]:
        """The turns of a right solution: a definition for each line, then the answer."""
        calls = [definition(op, amount) for op, _, amount in problem.metadata["lines"]]
        return [*(ToolCall("python", {"code": code}) for code in calls), f"\\boxed{{{problem.answer}}}"]

    def demonstrations(self, num: int, seed: int) -> list[dict[str, Any]]:
        """`num` conversations of the sloppy programmer on training problems, for a cold start."""
        sequence = specs(f"demonstrations {seed}", "train", self.config.min_lines, self.config.max_lines)
        return [
            demonstrate(self.problem(spec), self.config, random.Random(f"programmer {seed}:{index}"))
            for index, spec in enumerate(islice(sequence, num))
        ]

    def demonstrator_success(self, num_lines: int) -> float:
        """The probability that a demonstration of a specification with `num_lines` lines is right."""
        return demonstrator_success(self.config, num_lines)


def recoverable(problem: Problem, steps: Sequence[Step]) -> bool:
    """True where the best possible policy could still succeed after `steps`.

    That is: every line committed passes its hidden unit tests, and the turns left suffice for the lines left
    and the answer; after a final answer, that it is right and every line is committed. Exact as long as the
    rollout's own turn limit is not below `metadata["max_turns"]`.
    """
    lines = [Line(*line) for line in problem.metadata["lines"]]
    written = written_program(problem, steps)
    if written is None or not all(d.passes(line.unit_tests) for d, line in zip(written, lines, strict=False)):
        return False
    if steps and not steps[-1].is_tool_step:
        return len(written) == len(lines) and same_integer(final_boxed(steps), problem.answer)
    turns_left = int(problem.metadata["max_turns"]) - len(steps)
    return turns_left >= len(lines) - len(written) + 1


first_irrecoverable_step = partial(first_lost_step, recoverable)
"""Of a problem, the steps of a trajectory and why it stopped: see `elpo.tasks.synthetic.first_lost_step`."""


def written_program(problem: Problem, steps: Sequence[Step]) -> tuple[Definition, ...] | None:
    """The lines that the policy has committed, in order; None where it has spoilt its program."""
    return committed(problem.metadata["start"], problem.metadata["values"], steps)
