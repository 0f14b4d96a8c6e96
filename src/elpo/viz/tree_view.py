"""One rollout tree as the report page shows it: plain JSON with everything a reader of the page needs.

Unlike `elpo.tree_json` it is not read back. It has what was computed from the tree (values, paths, marks),
the texts of single tokens, and nothing of a confidential problem but shape, outcomes and measurements.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from elpo.algorithms.advantage import first_wrong_nodes, node_values
from elpo.algorithms.credit import Credit
from elpo.tree import RolloutTree
from elpo.tree_json import plain, without_text
from elpo.types import Step, ToolStatus
from elpo.viz.token_text import token_texts
from elpo.viz.tree import ranges

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tree_view(
    tree: RolloutTree, credit: Credit | None = None, tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
    """Problem, nodes, outcomes and searches of a tree.

    A node has its step's text, call, result and numbers; `entropy` is the mean over its sampled tokens in
    nats, None without any; `tokens` holds, one entry a token, text, sampled, log-probability and entropy.
    `credit` None leaves advantages and clip bounds None; `tokenizer` None leaves the texts of tokens out.
    """
    secret = bool(tree.problem.metadata.get("confidential"))
    if secret:
        tree = without_text(tree)
    number = {leaf: i for i, leaf in enumerate(tree.leaves)}
    values = node_values(tree)
    through = tree.leaves_below()
    nodes = [
        {
            "parent": node.parent,
            **_step(node.step, None if secret else tokenizer),
            "rollouts": ranges([number[leaf] for leaf in through[i]]),
            "value": _round(values[i]),
            "credit": None
            if credit is None
            else {
                "advantage": _round(credit.advantages[i]),
                "branch": _round(credit.branch[i]),
                "trajectory": _round(credit.trajectory[i]),
                "low": _round(credit.clip_low[i]),
                "high": _round(credit.clip_high[i]),
            },
        }
        for i, node in enumerate(tree.nodes)
    ]
    wrong: dict[int, list[int]] = {}
    for leaf, first in first_wrong_nodes(tree).items():
        wrong.setdefault(first, []).append(number[leaf])
    return {
        "problem": {
            "id": tree.problem.id,
            "messages": plain([dict(message) for message in tree.problem.messages]),
            "answer": tree.problem.answer,
        },
        "confidential": secret,
        "policy_version": tree.policy_version,
        "nodes": nodes,
        "outcomes": [
            {
                "leaf": leaf,
                "rollout": number[leaf],
                "reward": _round(outcome.reward),
                "correct": bool(outcome.correct),
                "stop": outcome.stop.value,
                "answer": outcome.answer,
            }
            for leaf, outcome in tree.outcomes.items()
        ],
        "searches": [
            {
                "rollout": number[found.leaf],
                "path": tree.path(found.leaf),
                "critical": found.critical,
                "exact": found.exact,
                "probes": [asdict(probe) for probe in found.probes],
            }
            for found in tree.localizations
        ],
        "first_wrong": {str(node): ranges(numbers) for node, numbers in wrong.items()},
    }


def _step(step: Step, tokenizer: Tokenizer | None) -> dict[str, Any]:
    call, result, entropies = step.tool_call, step.tool_result, step.entropies[step.sampled]
    return {
        "text": step.text,
        "call": None if call is None else {"name": call.name, "arguments": plain(call.arguments)},
        "result": None
        if result is None
        else {"status": result.status.value, "output": result.output, "seconds": _round(result.seconds)},
        "entropy": _round(entropies.mean()) if len(entropies) else None,
        "num_sampled": len(entropies),
        "num_tokens": len(step.token_ids),
        "tokens": {
            "texts": None if tokenizer is None else token_texts(tokenizer, step.token_ids.tolist()),
            "sampled": step.sampled.astype(int).tolist(),
            "logprobs": _floats(step.logprobs),
            "entropies": _floats(step.entropies),
        },
    }


def tree_summary(tree: RolloutTree) -> dict[str, Any]:
    """What a card of the gallery shows and what the page filters by: shape, outcomes, searches. No text."""
    return {
        "problem": tree.problem.id,
        "confidential": bool(tree.problem.metadata.get("confidential")),
        "parents": [node.parent for node in tree.nodes],
        "leaves": [
            [leaf, int(outcome.correct), outcome.stop.value] for leaf, outcome in tree.outcomes.items()
        ],
        "reward": _round(float(np.mean([o.reward for o in tree.outcomes.values()])))
        if tree.outcomes
        else None,
        "searches": len(tree.localizations),
        "critical": [found.critical for found in tree.localizations if found.critical is not None],
        "found": sum(found.exact and found.critical is not None for found in tree.localizations),
    }


def tree_statistics(tree: RolloutTree) -> dict[str, Any]:
    """What the page adds up over trees: calls of each tool by status, and what every search and probe did.

    Steps are counted from 1, as elsewhere. A probe's `step` is the last one kept of the rollout it cut.
    """
    tools: dict[str, dict[str, Any]] = {}
    secret = bool(tree.problem.metadata.get("confidential"))
    for node in tree.nodes:
        call, result = node.step.tool_call, node.step.tool_result
        if call is None or result is None:
            continue
        # The name of an unknown tool is the policy's own text.
        hidden = secret or result.status is ToolStatus.MALFORMED_CALL
        entry = tools.setdefault("(unknown)" if hidden else call.name, {"statuses": {}, "seconds": []})
        status = result.status.value
        entry["statuses"][status] = entry["statuses"].get(status, 0) + 1
        entry["seconds"].append(_round(result.seconds))
    return {
        "tools": tools,
        "calls": [
            [sum(tree.nodes[n].step.tool_call is not None for n in tree.path(leaf)), int(outcome.correct)]
            for leaf, outcome in tree.outcomes.items()
        ],
        "searches": [
            {
                "critical": None if found.critical is None else len(tree.path(found.critical)),
                "exact": found.exact,
                "length": len(tree.path(found.leaf)),
                "probes": [
                    [len(tree.path(probe.anchor)), probe.num_rollouts, probe.num_successes]
                    for probe in found.probes
                ],
            }
            for found in tree.localizations
        ],
    }


def _round(value: float) -> float | None:
    """4 significant digits; None for what JSON cannot hold."""
    return float(f"{float(value):.4g}") if math.isfinite(value) else None


def _floats(values: np.ndarray) -> list[float]:
    """4 decimals; what is not finite as the nearest number there is room for."""
    return np.nan_to_num(values.astype(float), nan=0.0, posinf=1e4, neginf=-1e4).round(4).tolist()  # type: ignore[no-any-return]
