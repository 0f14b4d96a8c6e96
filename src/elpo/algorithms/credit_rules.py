"""The credit rules by name. A rule says how much better than expected each node of a finished tree was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from elpo.algorithm_config import AlgorithmConfig, CreditConfig
from elpo.algorithms.advantage import (
    branch_advantages,
    hierarchical_advantages,
    standardize,
    trajectory_advantages,
)
from elpo.algorithms.anchor_groups import anchor_group_advantages
from elpo.algorithms.baselines import (
    floored_advantages,
    leave_one_out_advantages,
    optimal_value_advantages,
    raw_rewards,
)
from elpo.algorithms.clipping import clip_bounds
from elpo.algorithms.credit import Credit
from elpo.algorithms.prefix_reward import prefix_reward_advantages
from elpo.algorithms.tree_groups import tree_group_advantages
from elpo.algorithms.vine import step_values
from elpo.algorithms.whitening import whiten
from elpo.by_name import function_by_name
from elpo.tree import RolloutTree

CreditRule = Callable[[RolloutTree, CreditConfig], np.ndarray]
"""From a finished tree and `algorithm.credit` to one advantage a node, float64 [N]; no rollouts give [0]."""

CREDIT_RULES: Mapping[str, CreditRule] = {
    "hierarchical": lambda tree, c: hierarchical_advantages(tree, c.branch_weight, c.std, c.scale, c.eps),
    "reward": lambda tree, c: raw_rewards(tree),
    "leave_one_out": lambda tree, c: leave_one_out_advantages(tree),
    "floored": lambda tree, c: floored_advantages(tree, c.floor),
    "optimal_value": lambda tree, c: optimal_value_advantages(tree, c.value_temperature),
    "tree_group": lambda tree, c: tree_group_advantages(tree, c.num_trees, c.std, c.scale, c.eps),
    "anchor_group": lambda tree, c: anchor_group_advantages(
        tree, c.anchor, c.discount, c.step_weight, c.std, c.scale, c.eps
    ),
    "step_value": lambda tree, c: step_values(tree),
    "prefix_reward": lambda tree, c: prefix_reward_advantages(tree, c.prefix_reward),
}
"""What `credit.name` may be. A new rule: a pure function in a file of its own, a line here, a name in the
Literal of `CreditConfig`."""


def credit_rule(name: str) -> CreditRule:
    """The rule `credit.name` means: a row of the table, or a function of a tree by its `module:name`.

    Raises:
        ValueError: there is no such function; or, when called, it does not give one finite number a node.
    """
    if name in CREDIT_RULES:
        return CREDIT_RULES[name]
    own = function_by_name(name, "algorithm.credit.name: ")

    def rule(tree: RolloutTree, credit: CreditConfig) -> np.ndarray:
        advantages = np.asarray(own(tree), dtype=np.float64)
        if advantages.shape != (len(tree.nodes),) or not np.isfinite(advantages).all():
            raise ValueError(
                f"algorithm.credit.name: {name} gave {advantages!r:.80} for {len(tree.nodes)} nodes; return "
                "one finite number a node"
            )
        return advantages

    return rule


def own_advantages(tree: RolloutTree, credit: CreditConfig) -> np.ndarray:
    """The z-score of every trajectory, for all its tokens: shared prefixes do not share credit. By leaf."""
    rewards = np.array([outcome.reward for outcome in tree.outcomes.values()])
    return standardize(rewards, credit.std, credit.scale, credit.eps)


def assign_credits(trees: Sequence[RolloutTree], algorithm: AlgorithmConfig) -> list[Credit]:
    """Advantages and clip bounds of every node of the trees of one RL step, by the configured rule."""
    credit, clip = algorithm.credit, algorithm.clip
    rule = credit_rule(credit.name)
    advantages = whiten(trees, [rule(tree, credit) for tree in trees], credit.whiten, credit.eps)
    credits = []
    for tree, of_node in zip(trees, advantages, strict=True):
        clip_low, clip_high = clip_bounds(tree, clip.low, clip.high, clip.elc, clip.scope)
        credits.append(
            Credit(
                advantages=of_node,
                branch=branch_advantages(tree, credit.std, credit.scale, credit.eps),
                trajectory=trajectory_advantages(tree, credit.std, credit.scale, credit.eps),
                clip_low=clip_low,
                clip_high=clip_high,
                own=own_advantages(tree, credit) if credit.shared_steps == "own" else None,
            )
        )
    return credits
