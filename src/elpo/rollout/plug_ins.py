"""A tool or a grader of somebody else's may break its promises: raise, or return what it should not.

Then the rollout is lost to a fault that says who failed, how and where; the run goes on with the others, and
`elpo.rollout.faults` says when that is too often.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from elpo.interfaces import InfrastructureFault, Tool, ToolSession
from elpo.rollout.faults import InfrastructureError
from elpo.types import Outcome, Problem, Step, StopReason, ToolCall, ToolResult, ToolStatus

MAX_OUTPUT_CHARS = 1_000_000
"""Of a tool's result; more would not fit into any context, and costs memory in every tree."""


def opened(tool: Tool, problem: Problem) -> ToolSession | ToolResult:
    """A session of `tool`, or the fault that there is none.

    Raises:
        ValueError: the problem asks for something impossible (`Tool.open`).
    """
    try:
        return tool.open(problem)
    except ValueError:
        raise
    except Exception as error:
        return ToolResult(ToolStatus.INFRASTRUCTURE_FAULT, f"[no session: {_said(error)}]")


def called(session: ToolSession, call: ToolCall) -> tuple[ToolResult, ToolSession]:
    """What `session` answers and the session after it; a fault and the same session where it cannot say.

    The output is made valid Unicode of at most `MAX_OUTPUT_CHARS`.
    """
    try:
        found: Any = session.call(call)
    except InfrastructureError:
        raise
    except Exception as error:
        return _fault(call, _said(error)), session
    match found:
        case (ToolResult(output=str() as text) as result, after):
            return replace(result, output=_shown(text)), after
        case (ToolResult() as result, _):
            return _fault(call, f"its output is {result.output!r:.80}, not text"), session
    return _fault(call, f"call returned {found!r:.80}, not (ToolResult, session)"), session


def graded(
    grade: Callable[[Problem, Sequence[Step], StopReason], Outcome],
    problem: Problem,
    steps: Sequence[Step],
    stop: StopReason,
) -> Outcome:
    """The verdict of `grade`.

    Raises:
        InfrastructureFault: it says so, or it raised something else, gave no outcome, or a reward that is no
            finite number.
    """
    try:
        outcome = grade(problem, steps, stop)
    except (InfrastructureFault, InfrastructureError):
        raise
    except Exception as error:
        said = type(error).__name__ if problem.metadata.get("confidential") else _said(error)
        raise InfrastructureFault(f"the grader raised {said} on problem {problem.id}") from error
    if not isinstance(outcome, Outcome):
        raise InfrastructureFault(f"the grader returned {outcome!r:.80}, not an elpo.types.Outcome")
    if not math.isfinite(outcome.reward):
        raise InfrastructureFault(f"the grader gave the reward {outcome.reward} on problem {problem.id}")
    return outcome


def _fault(call: ToolCall, reason: str) -> ToolResult:
    return ToolResult(ToolStatus.INFRASTRUCTURE_FAULT, f"[the tool {call.name} failed: {reason}]")


def _shown(text: str) -> str:
    if len(text) > MAX_OUTPUT_CHARS:
        text = f"{text[:MAX_OUTPUT_CHARS]}\n[{len(text) - MAX_OUTPUT_CHARS} more characters]"
    return text.encode(errors="replace").decode()


def _said(error: Exception) -> str:
    """Type, message and place of an exception, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})"
