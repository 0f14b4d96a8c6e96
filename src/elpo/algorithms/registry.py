"""The table of algorithms: a row is what its method sets differently from ELPO's defaults.

Plain data, so that reading it costs nothing. A row is applied first; what a recipe or the command
line says about the same field wins (`elpo.recipes.load_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


def row(base: Row, **sections: Any) -> Row:
    """Another row with some sections, or settings of them, changed."""
    changed = {k: {**base.get(k, {}), **v} if isinstance(v, dict) else v for k, v in sections.items()}
    return {**base, **changed}


GRPO: Row = {
    "strategy": {"name": "independent"},
    "credit": {"branch_weight": 0.0, "std": "sample"},
    "clip": {"low": 0.2, "high": 0.2, "elc": 0.0},
}
RF_BASELINE = row(GRPO, credit={"scale": False, "whiten": "trajectories"})
VERL_PPO: Row = {
    "credit": {"branch_weight": 0.0, "std": "sample"},
    "clip": {"low": 0.2, "high": 0.2, "elc": 0.0, "dual": 3.0},
    "loss": {"aggregation": "token-mean"},
}
ARPO = row(
    VERL_PPO,
    strategy={"name": "entropy_branching", "num_chains": 8, "entropy_weight": 0.2},
    credit={"shared_steps": "own"},
)
AEPO = row(
    ARPO,
    strategy={"branch_penalty": 0.05, "pre_monitor": "reused"},
    loss={"surrogate": "balanced", "entropy_bonus": 0.2},
)

ALGORITHMS: Mapping[str, Row] = {
    # The paper's method; its settings are the defaults of `AlgorithmConfig`.
    "elpo": {},
    # Ablations, one component each.
    "elpo-no-bel": {"strategy": {"name": "random_prefix"}},
    "elpo-no-branch": {"credit": {"branch_weight": 0.0}},
    "elpo-no-trajectory": {"credit": {"branch_weight": 1.0}},
    "elpo-no-elc": {"clip": {"elc": 0.0}},
    # Ours: branch from proven prefixes instead of searching failures; nothing is localized, so no ELC.
    "elpo-frontier": {"strategy": {"name": "frontier"}, "clip": {"elc": 0.0}},
    # Ours: a posterior over the critical step instead of bisection.
    "elpo-posterior": {"strategy": {"name": "posterior"}},
    # Independent rollouts, one z-score per group (its code divides by the sample standard deviation), a
    # symmetric clip range.
    "grpo": GRPO,
    # Single-turn relatives of GRPO.
    "dr-grpo": row(
        GRPO,
        credit={"scale": False},
        loss={"aggregation": "seq-mean-token-sum-norm", "divisor": 3000},
    ),
    "rloo": row(
        GRPO,
        credit={"name": "leave_one_out"},
        loss={"surrogate": "reinforce", "aggregation": "seq-mean-token-sum-norm", "divisor": 1},
    ),
    "reinforce++": row(GRPO, credit={"name": "reward", "whiten": "trajectories"}),
    "reinforce++-baseline": RF_BASELINE,
    "dapo": row(
        GRPO,
        prompts={"name": "open", "max_rounds": 10},
        reward={"overlong_buffer": 0.2},
        clip={"high": 0.28},
        loss={"aggregation": "token-mean"},
    ),
    "gspo": row(GRPO, clip={"low": 3e-4, "high": 4e-4}, loss={"surrogate": "gspo"}),
    # GSPO's token form, for the credit of a tree: ELPO's.
    "gspo-token": {"clip": {"low": 3e-4, "high": 4e-4, "elc": 0.0}, "loss": {"surrogate": "gspo"}},
    "cispo": row(GRPO, clip={"high": 0.2}, loss={"surrogate": "cispo", "aggregation": "token-mean"}),
    "corpo": row(GRPO, credit={"name": "floored", "floor": 0.0}),
    "a-star-po": row(
        GRPO,
        credit={"name": "optimal_value", "value_temperature": 0.5},
        loss={"surrogate": "value_regression", "log_ratio_weight": 1e-3},
    ),
    # With tools.
    "torl": row(GRPO, max_calls=[1], loss={"aggregation": "token-mean"}),
    "cir": row(
        RF_BASELINE,
        max_calls=[2, 4, 5, 8, 10],
        credit={"whiten": "tokens"},
        clip={"high": 0.28},
        loss={"aggregation": "token-mean"},
    ),
    "grpo-tcr": row(
        GRPO,
        reward={"overlong_buffer": 0.2},
        clip={"high": 0.28, "dual": 10.0},
        loss={"aggregation": "token-mean"},
    ),
    # Ideas whose published formulas are not available, built on GRPO under names of their own.
    "progressive-reward": row(GRPO, reward={"stages": [0.1, 0.2]}),
    "valuable-prompts": row(GRPO, prompts={"name": "valuable", "max_copies": 2}),
    # Methods that branch, or that credit single steps. Their codes are built on verl's PPO.
    "arpo": ARPO,
    "arpo-hard": row(ARPO, credit={"shared_steps": "mean"}),
    "arpo-code": row(ARPO, strategy={"branching": "code"}),
    "aepo": AEPO,
    "aepo-code": row(AEPO, strategy={"branching": "code"}),
    "gigpo": row(VERL_PPO, strategy={"name": "independent"}, credit={"name": "anchor_group"}),
    "gigpo-tree": row(VERL_PPO, credit={"name": "anchor_group", "anchor": "prefix"}),
    "tree-grpo": row(
        VERL_PPO,
        strategy={"name": "random_prefix", "num_chains": 4},
        credit={"name": "tree_group", "num_trees": 4},
    ),
    "vineppo": {
        "strategy": {"name": "vine", "num_chains": 2, "num_samples": 3},
        "credit": {"name": "step_value"},
        "clip": {"low": 0.2, "high": 0.2, "elc": 0.0},
        "loss": {"aggregation": "token-mean", "shared_tokens": "once"},
    },
    "vppo": {
        "credit": {"name": "prefix_reward", "prefix_reward": 0.5},
        "clip": {"low": 0.2, "high": 0.2, "elc": 0.0},
    },
}
"""Settings of the section `algorithm` by algorithm name."""
