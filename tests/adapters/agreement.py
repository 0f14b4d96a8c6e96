"""Whether another trainer learns from some trees what ours does: `pytest -s` shows the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from elpo.algorithm_config import AlgorithmConfig
from elpo.algorithms.credit_rules import assign_credits
from elpo.config import RLConfig
from elpo.training.policy_update import update_policy
from elpo.tree import RolloutTree
from tests.training.small import record_gradients, small_learner, small_model

TOLERANCE = 1e-5
"""Of the gradient's difference, relative to its norm."""


def moved(model: Any) -> Any:
    """The model after some update: no ratio is 1 any more, and some are clipped."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.06 * torch.randn(parameter.shape, generator=generator) * parameter.std())
    return model


def flat(gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def our_update(
    trees: Sequence[RolloutTree], algorithm: AlgorithmConfig, rl: RLConfig
) -> tuple[dict[str, float], torch.Tensor]:
    """Metrics and gradient of one update of our trainer, packed, on the model after the move."""
    learner = small_learner(moved(small_model()))
    recorded = record_gradients(learner)
    metrics = update_policy(learner, trees, assign_credits(trees, algorithm), algorithm, rl)
    return metrics, flat({name.removeprefix("model."): value for name, value in recorded[0].items()})


def check_agreement(
    name: str, loss: float, model: Any, trees: Sequence[RolloutTree], algorithm: AlgorithmConfig, rl: RLConfig
) -> None:
    """`loss` and the gradients in `model` against ours; and that ELC and the clip mattered."""
    metrics, expected = our_update(trees, algorithm, rl)
    found = flat({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    difference = float((found - expected).norm() / expected.norm())
    print(f"\n{name}: loss {loss:.7f}, ours {metrics['loss']:.7f}, gradient differs by {difference:.1e}")
    assert metrics["clip/low_share"] > 0
    assert loss == pytest.approx(metrics["loss"], rel=1e-4, abs=1e-6)
    assert difference < TOLERANCE
    clip = algorithm.clip.model_copy(update={"elc": 0.0})
    _, other = our_update(trees, algorithm.model_copy(update={"clip": clip}), rl)
    assert (other - expected).norm() > 1000 * TOLERANCE * expected.norm()
