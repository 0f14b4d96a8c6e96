"""What the oracle of the ledger would have done: which steps were errors, and the right turn instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elpo.graders.boxed import last_boxed
from elpo.tasks.ledger import first_irrecoverable_step
from elpo.tasks.ledger_book import written_entries
from elpo.tasks.ledger_story import apply
from elpo.tasks.tool_turns import tool_turn
from elpo.types import Problem, Step, StopReason, ToolStatus


def erroneous_steps(problem: Problem, steps: Sequence[Step]) -> list[int]:
    """Numbers, from 1, of the steps that did something wrong by themselves, whatever came before.

    Errors are: an entry with a wrong operation; a call that failed or was refused; a touch that spoils the
    book; an answer while lines are left, or one that is not the count as entered. A look or an aside is none.
    Steps after the book was spoilt are not judged.
    """
    return [number for number, _ in _errors(problem, steps)]


def irrecoverable_steps(
    problem: Problem, steps: Sequence[Step], stop: StopReason = StopReason.ANSWER
) -> list[int]:
    """The first irrecoverable step of a failed trajectory, then every later error that alone would fail it.

    Empty where the trajectory is right. Later ones are entries with a wrong operation, spoiling the book,
    and wrong answers; a further detour is none.
    """
    first = first_irrecoverable_step(problem, steps, stop)
    if first is None:
        return []
    return [first, *(number for number, fatal in _errors(problem, steps) if fatal and number > first)]


def right_turn(problem: Problem, steps: Sequence[Step]) -> dict[str, Any]:
    """The assistant message that continues `steps` rightly: the next line's entry, or the final answer.

    Raises:
        ValueError: the book is spoilt; nothing is right any more.
    """
    lines = problem.metadata["lines"]
    entries = written_entries([amount for _, _, amount in lines], steps)
    if entries is None:
        raise ValueError(f"problem {problem.id}: no turn is right after the book was spoilt")
    if len(entries) == len(lines):
        return {"role": "assistant", "content": f"\\boxed{{{problem.answer}}}"}
    op, verb, amount = lines[len(entries)]
    return tool_turn(f"{verb} {amount}", "python", code=f"book.{op}({amount})")


def _errors(problem: Problem, steps: Sequence[Step]) -> list[tuple[int, bool]]:
    """(number, whether it alone loses the trajectory) of every wrong step."""
    lines = problem.metadata["lines"]
    amounts = [amount for _, _, amount in lines]
    errors: list[tuple[int, bool]] = []
    written = 0
    for number, step in enumerate(steps, start=1):
        entries = written_entries(amounts, steps[:number])
        if entries is None:
            return [*errors, (number, True)]
        if len(entries) > written:
            if entries[-1].op != lines[written][0]:
                errors.append((number, True))
            written = len(entries)
        elif not step.is_tool_step:
            count = problem.metadata["start"]
            for entry in entries:
                count = apply(entry.op, count, entry.amount)
            answer = (last_boxed(step.text) or "").strip()
            if written < len(lines) or (answer.lstrip("+").lstrip("0") or "0") != str(count):
                errors.append((number, True))
        elif step.tool_result is not None and (
            step.tool_result.status is not ToolStatus.OK
            or step.tool_result.output.startswith(("refused", "'refused"))
        ):
            errors.append((number, False))
    return errors
