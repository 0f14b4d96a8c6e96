"""The ledger task: keep a book in ink, with an exact oracle for the step that could not be repaired.

A story changes a count line by line. The policy enters each line in a book that lives in its stateful
Python session, one entry per call, and answers with the final count. A wrong amount, a syntax error or
a look at the book cost a turn; an entry with the right amount and the wrong operation stands for good.
So every failure has one first irrecoverable step, and it is computed here rather than estimated.
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
from elpo.tasks.ledger_book import book_setup, written_entries
from elpo.tasks.ledger_demonstrations import demonstrate, demonstrator_success
from elpo.tasks.ledger_story import MAX_LINES, VERBS, Story, stories
from elpo.tasks.synthetic import Rate, SyntheticConfig, final_boxed, first_lost_step, same_integer
from elpo.types import Outcome, Problem, Step, StopReason, ToolCall

INSTRUCTION = (
    "Keep the book in Python, a line per call, in ink: book.add(n), book.sub(n) or book.mul(n). "
    "book.look() shows the count. Then answer \\boxed{count}."
)

NumLines = Annotated[int, Field(ge=4, le=MAX_LINES, strict=True)]


class LedgerConfig(SyntheticConfig):
    """Options of the task: its stories, its rewards, and how sloppy the clerk of the demonstrations is.

    `easy_error` and `hard_error` are the chances that the clerk enters a verb with the wrong operation;
    `hard_verbs` are those of the second kind. `syntax_error`, `wrong_amount` and `look` are its chances
    of a harmless detour before an entry.
    """

    detours = ("syntax_error", "wrong_amount", "look")

    min_lines: NumLines = 4
    max_lines: NumLines = 8
    slack: Count = 2  # turns beyond one per line and one for the answer
    easy_error: Rate = 0.05
    hard_verbs: tuple[str, ...] = ("collects", "wins", "breaks", "scales by")
    syntax_error: Rate = 0.02
    wrong_amount: Rate = 0.02
    look: Rate = 0.02

    @model_validator(mode="after")
    def _consistent(self) -> LedgerConfig:
        self.check("lines", VERBS)
        return self


class LedgerTask:
    """Procedural ledger problems (`Task`), their grader, oracle and demonstrations."""

    Options = LedgerConfig
    name = "ledger"
    tool_names: Sequence[str] = ("python",)
    python_state = "session"  # the book lives there

    def __init__(self, config: LedgerConfig | None = None) -> None:
        self.config = config or LedgerConfig()

    def problems(self, split: Split, num: int) -> list[Problem]:
        """The first `num` problems of a split. A story's content decides its split, for every seed."""
        sequence = stories(str(self.config.seed), split, self.config.min_lines, self.config.max_lines)
        return [self.problem(story) for story in islice(sequence, num)]

    def problem(self, story: Story) -> Problem:
        """`story` as a problem: the session's book in `python_setup`, the truth in `lines`."""
        return Problem(
            id=f"ledger-{story.digest[:16]}",
            messages=({"role": "user", "content": f"{story.text}\n{INSTRUCTION}"},),
            answer=str(story.counts[-1]),
            metadata={
                "python_setup": book_setup(story.start, [line.amount for line in story.lines]),
                "start": story.start,
                "lines": [(line.op, line.verb, line.amount) for line in story.lines],
                "max_turns": len(story.lines) + 1 + self.config.slack,
            },
        )

    def grade(self, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
        """Correct where the policy stopped with the right boxed count and every line rightly entered."""
        answer = final_boxed(steps) if stop is StopReason.ANSWER else None
        correct = answer is not None and recoverable(problem, steps)
        return Outcome(self.config.reward(correct), correct, stop, answer)

    def gold_turns(self, problem: Problem) -> Sequence[ToolCall | str]:
        """The turns of a right solution: an entry for each line, then the answer."""
        entries = [f"book.{op}({amount})" for op, _, amount in problem.metadata["lines"]]
        calls = (ToolCall("python", {"code": entry}) for entry in entries)
        return [*calls, f"\\boxed{{{problem.answer}}}"]

    def demonstrations(self, num: int, seed: int) -> list[dict[str, Any]]:
        """`num` conversations of the sloppy clerk on training problems, for a cold start."""
        sequence = stories(f"demonstrations {seed}", "train", self.config.min_lines, self.config.max_lines)
        return [
            demonstrate(self.problem(story), self.config, random.Random(f"clerk {seed}:{index}"))
            for index, story in enumerate(islice(sequence, num))
        ]

    def demonstrator_success(self, num_lines: int) -> float:
        """The probability that a demonstration of a story with `num_lines` lines is right."""
        return demonstrator_success(self.config, num_lines)


def recoverable(problem: Problem, steps: Sequence[Step]) -> bool:
    """True where the best possible policy could still succeed after `steps`.

    That is: every entry written is right, and the turns left suffice for the lines left and the answer;
    after a final answer, that it is right and every line is entered. Exact as long as the rollout's own
    turn limit is not below `metadata["max_turns"]`.
    """
    lines = problem.metadata["lines"]
    entries = written_entries([amount for _, _, amount in lines], steps)
    if entries is None or any(entry.op != op for entry, (op, _, _) in zip(entries, lines, strict=False)):
        return False
    if steps and not steps[-1].is_tool_step:
        return len(entries) == len(lines) and same_integer(final_boxed(steps), problem.answer)
    turns_left = int(problem.metadata["max_turns"]) - len(steps)
    return turns_left >= len(lines) - len(entries) + 1


first_irrecoverable_step = partial(first_lost_step, recoverable)
"""Of a problem, the steps of a trajectory and why it stopped: see `elpo.tasks.synthetic.first_lost_step`."""
