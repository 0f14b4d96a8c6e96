"""Rollout trees as JSON: everything a tree and its credit hold, readable without the model or tokenizer.

Token ids, rewards and outcomes come back exactly; measured floats (log-probabilities, entropies,
credit, seconds) are kept to 6 significant digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from elpo.algorithms.credit import Credit
from elpo.tree import Node, RolloutTree
from elpo.types import (
    Localization,
    Outcome,
    Probe,
    Problem,
    Step,
    StopReason,
    ToolCall,
    ToolResult,
    ToolStatus,
)

FORMAT = 1
"""Version of the JSON layout; raised when a reader of the old one would misread the new one."""

CONFIDENTIAL = "[confidential]"
"""Stands for whatever a confidential problem does not let be stored."""


def tree_to_json(tree: RolloutTree, credit: Credit | None = None) -> dict[str, Any]:
    """`tree`, and `credit` where it was assigned, as JSON values only; `tree_from_json` is the inverse.

    Arrays become lists. In the metadata of a problem, what JSON does not have becomes its text. Of a problem
    whose metadata has `confidential` true, nothing that was asked or written is told (`without_text`).
    """
    if tree.problem.metadata.get("confidential"):
        tree = without_text(tree)
    problem = tree.problem
    return {
        "format": FORMAT,
        "problem": {
            "id": problem.id,
            "messages": [dict(message) for message in problem.messages],
            "answer": problem.answer,
            "metadata": plain(problem.metadata),
        },
        "prompt_ids": tree.prompt_ids.tolist(),
        "policy_version": tree.policy_version,
        "nodes": [{"parent": node.parent, **_step_to_json(node.step)} for node in tree.nodes],
        "outcomes": [
            {
                "leaf": leaf,
                "reward": float(outcome.reward),
                "correct": bool(outcome.correct),
                "stop": outcome.stop.value,
                "answer": outcome.answer,
            }
            for leaf, outcome in tree.outcomes.items()
        ],
        "localizations": [
            {
                "leaf": found.leaf,
                "critical": found.critical,
                "exact": found.exact,
                "falls": list(found.falls),
                "probes": [
                    {
                        "anchor": probe.anchor,
                        "num_rollouts": probe.num_rollouts,
                        "num_successes": probe.num_successes,
                    }
                    for probe in found.probes
                ],
            }
            for found in tree.localizations
        ],
        "credit": None
        if credit is None
        else {name: _floats(values) for name, values in vars(credit).items() if values is not None},
    }


def without_text(tree: RolloutTree) -> RolloutTree:
    """The tree with its shape, outcomes and measurements, and not a word or token of what was asked, written,
    called or answered. Token ids are 0, as many as there were."""
    nodes = [
        Node(
            node.parent,
            replace(
                node.step,
                token_ids=np.zeros_like(node.step.token_ids),
                text=CONFIDENTIAL,
                tool_call=node.step.tool_call and ToolCall(CONFIDENTIAL, {}),
                tool_result=node.step.tool_result and replace(node.step.tool_result, output=CONFIDENTIAL),
            ),
        )
        for node in tree.nodes
    ]
    question = ({"role": "user", "content": CONFIDENTIAL},)
    return replace(
        tree,
        problem=Problem(tree.problem.id, question, CONFIDENTIAL, {"confidential": True}),
        prompt_ids=np.zeros_like(tree.prompt_ids),
        nodes=nodes,
        outcomes={leaf: replace(outcome, answer=None) for leaf, outcome in tree.outcomes.items()},
    )


def tree_from_json(data: Mapping[str, Any]) -> tuple[RolloutTree, Credit | None]:
    """The tree that `tree_to_json` wrote, and its credit or None.

    Raises:
        ValueError: if `data` is not such a tree.
    """
    if data.get("format") != FORMAT:
        raise ValueError(
            f"this is not a rollout tree of format {FORMAT}: its `format` is {data.get('format')!r}"
        )
    try:
        problem = data["problem"]
        tree = RolloutTree(
            problem=Problem(
                id=problem["id"],
                messages=tuple(problem["messages"]),
                answer=problem["answer"],
                metadata=problem["metadata"],
            ),
            prompt_ids=np.asarray(data["prompt_ids"], dtype=np.int64),
            policy_version=data["policy_version"],
            nodes=[Node(node["parent"], _step_from_json(node)) for node in data["nodes"]],
            outcomes={
                outcome["leaf"]: Outcome(
                    outcome["reward"], outcome["correct"], StopReason(outcome["stop"]), outcome["answer"]
                )
                for outcome in data["outcomes"]
            },
            localizations=[
                Localization(
                    leaf=found["leaf"],
                    critical=found["critical"],
                    probes=tuple(
                        Probe(p["anchor"], p["num_rollouts"], p["num_successes"]) for p in found["probes"]
                    ),
                    exact=found["exact"],
                    falls=tuple(found.get("falls", ())),
                )
                for found in data["localizations"]
            ],
        )
        if data["credit"] is None:
            return tree, None
        names = [field.name for field in fields(Credit) if field.name != "own" or "own" in data["credit"]]
        arrays = {name: np.asarray(data["credit"][name], dtype=np.float64) for name in names}
        return tree, Credit(**arrays)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a rollout tree: {type(error).__name__} {error}") from error


def _step_to_json(step: Step) -> dict[str, Any]:
    call, result = step.tool_call, step.tool_result
    return {
        "text": step.text,
        "tool_call": None if call is None else {"name": call.name, "arguments": plain(call.arguments)},
        "tool_result": None
        if result is None
        else {"status": result.status.value, "output": result.output, "seconds": _round(result.seconds)},
        "token_ids": step.token_ids.tolist(),
        "sampled": step.sampled.astype(int).tolist(),
        "logprobs": _floats(step.logprobs),
        "entropies": _floats(step.entropies),
    }


def _step_from_json(data: Mapping[str, Any]) -> Step:
    call, result = data["tool_call"], data["tool_result"]
    return Step(
        token_ids=np.asarray(data["token_ids"], dtype=np.int64),
        sampled=np.asarray(data["sampled"], dtype=np.bool_),
        logprobs=np.asarray(data["logprobs"], dtype=np.float32),
        entropies=np.asarray(data["entropies"], dtype=np.float32),
        text=data["text"],
        tool_call=None if call is None else ToolCall(call["name"], call["arguments"]),
        tool_result=None
        if result is None
        else ToolResult(ToolStatus(result["status"]), result["output"], result["seconds"]),
    )


def _floats(values: np.ndarray) -> list[float | None]:
    """What was not measured (NaN) is null, and comes back as NaN."""
    return [None if math.isnan(value) else _round(value) for value in values.tolist()]


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def plain(value: Any) -> Any:
    """`value` in JSON's own types: mappings and sequences recursively, anything foreign as its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
