"""The sloppy clerk of the ledger task: demonstrations to imitate, and how often they succeed.

The clerk reads every line rightly but enters some verbs with the wrong operation, always the same wrong
one, and never notices: reinforcement learning has that to repair. It also makes harmless detours (a
syntax error, a wrong amount, a look at the book) and recovers from them, which is worth imitating.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from elpo.tasks.ledger_story import VERBS, Operation
from elpo.tasks.setup_session import SetupSession
from elpo.tasks.synthetic import mean_success
from elpo.tasks.tool_turns import PYTHON_SCHEMA
from elpo.types import Problem

if TYPE_CHECKING:
    from elpo.tasks.ledger import LedgerConfig

CONFUSED_WITH: dict[Operation, Operation] = {"add": "mul", "sub": "add", "mul": "sub"}
"""The operation that a confused clerk enters instead."""


def demonstrate(problem: Problem, config: LedgerConfig, rng: random.Random) -> dict[str, Any]:
    """One conversation of the clerk: `messages` with tool calls and feedback, and the `tools` offered.

    The feedback is what the code really gave, run against the problem's own book. Detours never use
    more turns than the problem's slack, so a clerk without confusion always succeeds.
    """
    session = SetupSession(problem)
    messages: list[Mapping[str, Any]] = [*problem.messages]

    detours_left = config.slack
    for op, verb, amount in problem.metadata["lines"]:
        thought = f"{verb} {amount}"
        entered = CONFUSED_WITH[op] if rng.random() < config.error_rate(verb) else op
        while detours_left and (detour := config.draw_detour(rng)):
            detours_left -= 1
            if detour == "look":
                messages += session.turn("look", "book.look()")
            elif detour == "syntax_error":
                messages += session.turn(thought, f"book.{entered}({amount}")
            else:
                wrong = rng.choice([other for other in range(2, 10) if other != amount])
                messages += session.turn(thought, f"book.{entered}({wrong})")
        messages += session.turn(thought, f"book.{entered}({amount})")
    messages.append({"role": "assistant", "content": f"\\boxed{{{session.run('book.look()')}}}"})
    return {"messages": messages, "tools": [PYTHON_SCHEMA]}


def demonstrator_success(config: LedgerConfig, num_lines: int) -> float:
    """The probability that the clerk gets a story of `num_lines` lines right.

    `mean_success` of q_v = 1 - error rate of verb v.

    Raises:
        ValueError: stories cannot have that many lines.
    """
    if not 0 < num_lines <= len(VERBS):
        raise ValueError(f"a story of {num_lines} lines does not exist; choose 1 to {len(VERBS)}")
    return mean_success([1 - config.error_rate(verb) for verb in VERBS], num_lines)
