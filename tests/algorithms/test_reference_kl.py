"""The KL to a reference against torch's own divergences, by enumeration, and against verl's estimators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from elpo.algorithms.reference_kl import ESTIMATORS, KLEstimator, reference_kl

VERL = json.loads((Path(__file__).parents[1] / "fixtures" / "verl" / "outputs.json").read_text())


def logits(seed: int) -> torch.Tensor:
    return torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mean_gradient_is_that_of_a_divergence(estimator: KLEstimator) -> None:
    policy, reference = logits(1).requires_grad_(), Categorical(logits=logits(2))
    logprobs = torch.log_softmax(policy, -1)
    drawn = logprobs.exp().detach()  # how often each token is drawn
    mean = (drawn * reference_kl(logprobs, reference.logits, estimator)).sum()
    (found,) = torch.autograd.grad(mean, policy)

    ours = Categorical(logits=policy)
    divergence = {"k2": (ours, reference), "k3": (reference, ours)}[estimator]
    (expected,) = torch.autograd.grad(kl_divergence(*divergence), policy)
    torch.testing.assert_close(found, expected)


def test_the_mean_of_k3_is_the_divergence() -> None:
    ours, reference = Categorical(logits=logits(1)), Categorical(logits=logits(2))
    mean = (ours.probs * reference_kl(ours.logits, reference.logits, "k3")).sum()
    torch.testing.assert_close(mean, kl_divergence(ours, reference))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_same_as_verl(estimator: KLEstimator) -> None:
    made_up = VERL["made_up"]
    new, old, mask = (torch.tensor(made_up[key]).double() for key in ("logprobs", "old_logprobs", "mask"))
    found = reference_kl(new, old, estimator) * mask
    if estimator == "k3":
        found = found.clamp(max=10)  # verl's, for which ours has no need: the log-ratio is bounded
    torch.testing.assert_close(found, torch.tensor(VERL["kl"][estimator]).double())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_finite_whatever_the_distance(estimator: KLEstimator) -> None:
    far = torch.tensor([-1e4, -1e-3, -5.0], requires_grad=True)
    found = reference_kl(far, torch.tensor([-1e-3, -1e4, -5.0]), estimator)
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(far.grad).all()  # type: ignore[arg-type]
    assert (found >= 0).all() and found[2] == 0
