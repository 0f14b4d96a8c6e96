"""The table of algorithms: a row is what its method sets differently from ELPO's defaults.

Plain data, so that reading it costs nothing. A row is applied first; what a recipe or the command
line says about the same field wins (`elpo.recipes.load_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# verl's PPO, on which these methods' codes are built: a symmetric, dual clip and the mean over tokens.
_PPO: Mapping[str, Any] = {
    "clip": {"low": 0.2, "high": 0.2, "elc": 0.0, "dual": 3.0},
    "loss": {"aggregation": "token-mean"},
}
_ARPO: dict[str, Any] = {
    "strategy": {"name": "entropy_branching", "num_chains": 8, "entropy_weight": 0.2},
    "credit": {"branch_weight": 0.0, "std": "sample"},
    **_PPO,
}

ALGORITHMS: Mapping[str, Mapping[str, Any]] = {
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
    "grpo": {
        "strategy": {"name": "independent"},
        "credit": {"branch_weight": 0.0, "std": "sample"},
        "clip": {"low": 0.2, "high": 0.2, "elc": 0.0},
    },
    # Methods that branch, or that credit single steps; each has a page in docs/algorithms/.
    "arpo": _ARPO,
    "arpo-code": _ARPO | {"strategy": _ARPO["strategy"] | {"branching": "code"}},
    "gigpo": {
        "strategy": {"name": "independent"},
        "credit": {"name": "anchor_group", "std": "sample"},
        **_PPO,
    },
    "gigpo-tree": {"credit": {"name": "anchor_group", "anchor": "prefix", "std": "sample"}, **_PPO},
    "tree-grpo": {
        "strategy": {"name": "random_prefix", "num_chains": 4},
        "credit": {"name": "tree_group", "num_trees": 4, "std": "sample"},
        **_PPO,
    },
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
