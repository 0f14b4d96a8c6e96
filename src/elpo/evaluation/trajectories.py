"""Sampled trajectories as JSON records, and the numbers of them that an evaluation is made of.

One record a trajectory: all a reader needs to judge what the policy did, without tokens or model. Lost
trajectories have a record too, so that every problem has as many as were drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from elpo.evaluation.estimators import answer_classes
from elpo.tree import RolloutTree
from elpo.types import Step, StopReason, ToolStatus


@dataclass(frozen=True)
class Sample:
    """One trajectory as the estimators see it. `correct` is None where a fault of the tools lost it."""

    problem: str
    correct: bool | None
    answer_class: int | None = None  # among the problem's samples; None: no answer
    reward: float = 0.0
    turns: int = 0
    calls: int = 0  # well-formed ones
    failed_calls: int = 0  # of those, all that did not end `ok`
    sampled_tokens: int = 0
    entropy: float = 0.0  # nats, summed over the sampled tokens; NaN where nobody measured it


def trajectory_records(
    tree: RolloutTree, num_samples: int, equivalent: Callable[[str, str], bool] | None = None
) -> list[dict[str, Any]]:
    """A JSON record for each of the `num_samples` draws of a tree of independent rollouts; lost ones last.

    Of a problem whose metadata says `confidential` no text is kept: neither turns, calls, results nor the
    answer. Numbers, statuses and which samples gave the same answer stay.

    Args:
        tree: a finished tree.
        num_samples: draws made, lost ones included.
        equivalent: the grader's notion of the same answer, see `answer_classes`.
    """
    secret = bool(tree.problem.metadata.get("confidential"))
    outcomes = list(tree.outcomes.items())
    classes = answer_classes([outcome.answer for _, outcome in outcomes], equivalent)
    records: list[dict[str, Any]] = []
    for number, ((leaf, outcome), label) in enumerate(zip(outcomes, classes, strict=True)):
        steps = [tree.nodes[node].step for node in tree.path(leaf)]
        records.append(
            {
                "problem": tree.problem.id,
                "sample": number,
                "stop": outcome.stop.value,
                "correct": bool(outcome.correct),
                "reward": float(outcome.reward),
                "answer": None if secret else outcome.answer,
                "answer_class": label,
                "prompt_tokens": len(tree.prompt_ids),
                "sampled_tokens": sum(int(step.sampled.sum()) for step in steps),
                "feedback_tokens": sum(int((~step.sampled).sum()) for step in steps),
                "entropy": _measured(sum(step.entropies[step.sampled].sum(dtype=float) for step in steps)),
                "steps": [_step(step, secret) for step in steps],
            }
        )
    lost = range(len(records), num_samples)
    fault = StopReason.FAULT.value
    return records + [
        {"problem": tree.problem.id, "sample": number, "stop": fault, "correct": None} for number in lost
    ]


def sample_from_record(record: Mapping[str, Any]) -> Sample:
    """The numbers of a record.

    Raises:
        ValueError: it is no record of a trajectory.
    """
    try:
        if record["correct"] is None:
            return Sample(record["problem"], None)
        steps = record["steps"]
        statuses = [step["tool_result"]["status"] for step in steps if step["tool_call"] is not None]
        return Sample(
            problem=record["problem"],
            correct=bool(record["correct"]),
            answer_class=record["answer_class"],
            reward=float(record["reward"]),
            turns=len(steps),
            calls=len(statuses),
            failed_calls=sum(status != ToolStatus.OK for status in statuses),
            sampled_tokens=record["sampled_tokens"],
            entropy=math.nan if record["entropy"] is None else record["entropy"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a record of a trajectory: {type(error).__name__} {error}") from error


def _measured(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _step(step: Step, secret: bool) -> dict[str, Any]:
    call, result = step.tool_call, step.tool_result
    kept: dict[str, Any] = {"sampled_tokens": int(step.sampled.sum()), "tool_call": None, "tool_result": None}
    if call is not None:
        kept["tool_call"] = {"name": call.name}
    if result is not None:
        kept["tool_result"] = {"status": result.status.value, "seconds": result.seconds}
    if not secret:
        kept["text"] = step.text
        if call is not None:
            kept["tool_call"]["arguments"] = json.loads(json.dumps(call.arguments, default=str))
        if result is not None:
            kept["tool_result"]["output"] = result.output
    elif call is not None:
        # An unknown tool's name is the policy's own text.
        known = result is None or result.status is not ToolStatus.MALFORMED_CALL
        kept["tool_call"]["name"] = call.name if known else ""
    return kept
