"""A scripted policy behind a real HTTP server: it counts up to a number, and sometimes far beyond it.

What was added can never be taken away, so the first step whose total is above the target is the first
irrecoverable one: the truth is known.
"""

from __future__ import annotations

import contextlib
import copy
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

from elpo.engines.scripted import ScriptedEngine
from elpo.serving.http import ChatServer
from elpo.serving.model import ServedModel
from elpo.types import Step
from tests.rollout.conftest import call

OVERSHOOT = 9


def total_of(context: str) -> int:
    """The last total the counter answered."""
    totals = re.findall(r"<tool_response>\n(-?\d+)\n</tool_response>", context)
    return int(totals[-1]) if totals else 0


def target_of(context: str) -> int:
    return int(re.findall(r"reach (\d+)", context)[0])


def counting(error: float) -> Callable[[str, float], str]:
    """Adds 1 until the target is reached, then answers; overshoots with probability `error` a step."""

    def policy(context: str, uniform: float) -> str:
        total, target = total_of(context), target_of(context)
        if total == target:
            return f"\\boxed{{{total}}}"
        if total > target + OVERSHOOT:
            return f"\\boxed{{{total - 1}}}"
        return call(OVERSHOOT if uniform < error else 1)

    return policy


def truth(target: int, steps: list[Step]) -> int:
    """The first irrecoverable step, from 1: the first total above the target."""
    for number, step in enumerate(steps, 1):
        if step.tool_result is not None and int(step.tool_result.output) > target:
            return number
    return len(steps)


@contextlib.contextmanager
def serving(policy: Any, tokenizer: Any, key: str | None = None, context: int = 4096) -> Iterator[ChatServer]:
    """A server on a free port; its model is called `counter`."""
    own = copy.deepcopy(tokenizer)  # it writes in the decode thread, beside the server's
    engine = ScriptedEngine(policy, own, num_slots=16)
    with running(ServedModel(engine, tokenizer, "counter", context), key) as server:
        yield server


@contextlib.contextmanager
def running(model: ServedModel, key: str | None = None) -> Iterator[ChatServer]:
    """`model` behind a server on a free port."""
    with ChatServer(model, "127.0.0.1", 0, key) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            model.close()
