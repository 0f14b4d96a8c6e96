"""The table of algorithms: a row is what its method sets differently from ELPO's defaults.

Plain data, so that reading it costs nothing. A row is applied first; what a recipe or the command
line says about the same field wins (`elpo.recipes.load_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
}
"""Settings of the section `algorithm` by algorithm name."""
