"""The sloppy programmer of the programs task: demonstrations to imitate, and how often they succeed.

The programmer reads every line rightly but writes some verbs with the wrong operation, always the same wrong
one. Where the visible test shows it, the line is refused and written again; where it does not, nobody
notices, and reinforcement learning has that to repair. Syntax errors, wrong amounts and looks at the program
are harmless detours that are worth imitating.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from elpo.tasks.programs_spec import BLIND, COMPUTE, CONFUSED_WITH, EXPRESSIONS, VERBS, Operation
from elpo.tasks.setup_session import SetupSession
from elpo.tasks.synthetic import mean_success
from elpo.tasks.tool_turns import PYTHON_SCHEMA
from elpo.types import Problem

if TYPE_CHECKING:
    from elpo.tasks.programs import ProgramsConfig


def demonstrate(problem: Problem, config: ProgramsConfig, rng: random.Random) -> dict[str, Any]:
    """One conversation of the programmer: `messages` with tool calls and feedback, and the `tools` offered.

    The feedback is what the code really gave, run against the problem's own program. Detours, a refused line
    among them, never use more turns than the slack, so a programmer without blind confusion always succeeds.
    """
    session = SetupSession(problem)
    messages: list[Mapping[str, Any]] = [*problem.messages]

    detours_left = config.slack
    value = problem.metadata["start"]
    for (op, verb, amount), right in zip(problem.metadata["lines"], problem.metadata["values"], strict=True):
        thought = f"{verb} {amount}"
        written = CONFUSED_WITH[op] if rng.random() < config.error_rate(verb) else op
        while detours_left and (detour := config.draw_detour(rng)):
            detours_left -= 1
            refused = [n for n in range(2, 10) if COMPUTE[written](value, n) != right]
            if detour == "syntax_error":
                messages += session.turn(thought, definition(written, amount)[:-1])
            elif detour == "wrong_amount" and refused:
                messages += session.turn(thought, definition(written, rng.choice(refused)))
            else:
                messages += session.turn("look", "f.look()")
        if COMPUTE[written](value, amount) != right:  # the visible test will show it
            if detours_left:
                detours_left -= 1
                messages += session.turn(thought, definition(written, amount))
            written = op
        messages += session.turn(thought, definition(written, amount))
        value = right
    messages.append({"role": "assistant", "content": f"\\boxed{{{session.run('f.look()')}}}"})
    return {"messages": messages, "tools": [PYTHON_SCHEMA]}


def definition(op: Operation, amount: int) -> str:
    """The call that defines a line.

    >>> definition("cap", 7)
    'f.then(lambda x: min(x, 7))'
    """
    return f"f.then(lambda x: {EXPRESSIONS[op].format(n=amount)})"


def demonstrator_success(config: ProgramsConfig, num_lines: int) -> float:
    """The probability that the programmer gets a specification of `num_lines` lines right.

    `mean_success` of q_v = 1 - error rate of verb v, or 1 where the visible test shows the error.

    Raises:
        ValueError: specifications cannot have that many lines.
    """
    if not 0 < num_lines <= len(VERBS):
        raise ValueError(f"there are no specifications of {num_lines} lines; choose 1 to {len(VERBS)}")
    right = [1 - config.error_rate(verb) if op in BLIND else 1.0 for verb, op in VERBS.items()]
    return mean_success(right, num_lines)
