"""What the rollouts of one RL step looked like, under the names of docs/METRICS.md."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elpo.interfaces import EngineCounts
from elpo.rollout.counts import RolloutCounts
from elpo.tree import RolloutTree
from elpo.types import ToolStatus


def rollout_metrics(trees: Sequence[RolloutTree], counts: RolloutCounts) -> dict[str, float]:
    """Success, reward, lengths, tools and search of some grown trees. A mean over nothing is left out."""
    outcomes = [outcome for tree in trees for outcome in tree.outcomes.values()]
    steps = [node.step for tree in trees for node in tree.nodes]
    entropies = np.concatenate([step.entropies[step.sampled] for step in steps]) if steps else np.empty(0)
    searches = [(tree, found) for tree in trees for found in tree.localizations]
    critical = [len(tree.path(found.critical)) for tree, found in searches if found.critical is not None]
    failed_calls = counts.tool_calls - counts.statuses.get(ToolStatus.OK, 0)
    lengths = [len(tree.path(leaf)) for tree in trees for leaf in tree.leaves]
    metrics = {
        "rollouts/total": float(counts.rollouts),
        "faults/count": float(counts.faults),
        "faults/grader": float(counts.grader_faults),
        "tokens/sampled": float(counts.sampled_tokens),
        "tokens/feedback": float(sum((~step.sampled).sum() for step in steps)),
        "tool/calls": float(counts.tool_calls),
        "tool/seconds": counts.tool_seconds,
        "localization/searches": float(len(searches)),
    }
    means: dict[str, Sequence[float] | np.ndarray] = {
        "success/train": [float(outcome.correct) for outcome in outcomes],
        "reward/mean": [outcome.reward for outcome in outcomes],
        "entropy/mean": entropies,
        "turns/mean": [float(length) for length in lengths],
        "localization/finished_share": [float(found.exact) for _, found in searches],
        "localization/step_mean": [float(step) for step in critical],
        "trees/all_failed_share": [float(not any(o.correct for o in t.outcomes.values())) for t in trees],
        "trees/all_solved_share": [float(all(o.correct for o in t.outcomes.values())) for t in trees],
        "tool/failed_share": [failed_calls / counts.tool_calls] if counts.tool_calls else [],
    }
    return metrics | {name: float(np.mean(values)) for name, values in means.items() if len(values)}


def discarded_metrics(grown: Sequence[RolloutTree], kept: Sequence[RolloutTree]) -> dict[str, float]:
    """What was paid for and is not trained on, because the prompt sampling threw its tree away."""
    ids = {id(tree) for tree in kept}
    discarded = [tree for tree in grown if id(tree) not in ids]
    steps = [node.step for tree in discarded for node in tree.nodes]
    return {
        "rollouts/discarded": float(sum(len(tree.leaves) for tree in discarded)),
        "tokens/discarded": float(sum(step.sampled.sum() for step in steps)),
        "tool/discarded_calls": float(sum(step.tool_call is not None for step in steps)),
    }


def engine_metrics(counts: Sequence[tuple[EngineCounts, EngineCounts]], num_slots: int) -> dict[str, float]:
    """What the engines of all processes, each of `num_slots`, did between two counts."""

    def total(name: str) -> float:
        return float(sum(getattr(now, name) - getattr(before, name) for before, now in counts))

    steps = total("decode_steps")
    return {
        "engine/decode_steps": steps,
        "engine/occupancy": total("decoded_tokens") / (steps * num_slots) if steps else 0.0,
        "engine/reused_tokens": total("reused_tokens"),
        "engine/fed_tokens": total("fed_tokens"),
        "engine/evicted_tokens": total("evicted_tokens"),
    }
