"""Surrogates of the table against their formulas, written out for one trajectory at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from elpo.algorithm_config import AlgorithmConfig
from elpo.algorithms.cispo import weighted_likelihood
from elpo.algorithms.credit_rules import assign_credits
from elpo.algorithms.gspo import sequence_surrogate
from elpo.algorithms.value_regression import value_regression
from elpo.config import RLConfig
from elpo.recipes import load_config
from elpo.training.policy_update import update_policy
from elpo.tree import RolloutTree
from tests.training.small import (
    assert_close,
    gradients_of,
    random_tree,
    record_gradients,
    small_learner,
    small_model,
)

TREES = [random_tree(seed, small_model(), off_policy=0.3) for seed in (0, 1)]
TREES.append(random_tree(5, small_model(), rewards="failed"))  # no advantage, unless the method gives it one


def scores(model: Any, tree: RolloutTree, leaf: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the sampled tokens of a trajectory, under the model and as they were sampled."""
    ids = torch.from_numpy(tree.context(leaf))
    logprobs = torch.log_softmax(model(ids[None]).logits[0], -1)
    new, old, at = [], [], len(tree.prompt_ids)
    for node in tree.path(leaf):
        step = tree.nodes[node].step
        for j, token in enumerate(step.token_ids):
            if step.sampled[j]:
                new.append(logprobs[at + j - 1, int(token)])
                old.append(float(step.logprobs[j]))
        at += len(step.token_ids)
    return torch.stack(new), torch.tensor(old)


def gspo(new: Tensor, old: Tensor, advantage: float, algorithm: AlgorithmConfig) -> Tensor:
    ratio = (new - old).mean().exp()
    clipped = ratio.clamp(1 - algorithm.clip.low, 1 + algorithm.clip.high)
    return torch.minimum(ratio * advantage, clipped * advantage)


def regression(new: Tensor, old: Tensor, advantage: float, algorithm: AlgorithmConfig) -> Tensor:
    return -((algorithm.loss.log_ratio_weight * (new - old).sum() - advantage) ** 2)


def reinforce(new: Tensor, old: Tensor, advantage: float, algorithm: AlgorithmConfig) -> Tensor:
    return advantage * new.sum()


def cispo(new: Tensor, old: Tensor, advantage: float, algorithm: AlgorithmConfig) -> Tensor:
    weight = (new - old).exp().clamp(max=1 + algorithm.clip.high).detach()
    return (weight * advantage * new).mean()


CASES: dict[str, tuple[Callable[..., Tensor], list[str]]] = {
    "gspo": (gspo, []),
    "a-star-po": (regression, ["algorithm.loss.log_ratio_weight=0.3"]),
    "rloo": (reinforce, []),
    "cispo": (cispo, ["algorithm.loss.aggregation=seq-mean-token-mean"]),
}


@pytest.mark.parametrize("packing", ["tree", "rows"])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_formula(name: str, packing: Any) -> None:
    """Over trajectories with shared prefixes; those of a tree have one advantage, as the formulas want it."""
    formula, overrides = CASES[name]
    algorithm = load_config(None, [f"algorithm.name={name}", *overrides]).algorithm
    credits = assign_credits(TREES, algorithm)
    for tree, credit in zip(TREES, credits, strict=True):
        credit.advantages[:] = credit.advantages[tree.leaves[0]]
    learner = small_learner(small_model(), packing)
    recorded = record_gradients(learner)
    size = len(TREES)
    rl = RLConfig(problems_per_step=size, problems_per_minibatch=size, microbatch_tokens=60)
    metrics = update_policy(learner, TREES, credits, algorithm, rl)
    model = small_model()
    objectives = [
        formula(*scores(model, tree, leaf), float(credit.advantages[leaf]), algorithm)
        for tree, credit in zip(TREES, credits, strict=True)
        for leaf in tree.leaves
    ]
    loss = -torch.stack(objectives).mean()
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert_close(recorded[0], gradients_of(model, loss))


@pytest.mark.parametrize("name", ["gspo-token", "elpo", "a-star-po"])
def test_packed_trees_have_the_loss_and_gradient_of_unrolled_rows(name: str) -> None:
    """With the credit of the row itself: advantages that differ along a trajectory."""
    algorithm = load_config(None, [f"algorithm.name={name}"]).algorithm
    rl = RLConfig(problems_per_step=3, problems_per_minibatch=3, microbatch_tokens=50)
    found = []
    for packing in ("tree", "rows"):
        learner = small_learner(small_model(), packing)  # type: ignore[arg-type]
        recorded = record_gradients(learner)
        metrics = update_policy(learner, TREES, assign_credits(TREES, algorithm), algorithm, rl)
        found.append((metrics, recorded[0]))
    (packed, a), (rows, b) = found
    for key in ("loss", "clip/low_share", "clip/high_share", "kl/approx", "logprob/sampler_difference"):
        assert packed[key] == pytest.approx(rows[key], rel=1e-4, abs=1e-7), key
    assert_close(a, b)


def test_a_sequence_is_clipped_as_a_whole() -> None:
    """Ratios 1.5 and 1 / 1.2: their geometric mean 1.118 is above 1.1, so no token learns from A > 0."""
    new = torch.tensor([1.5, 1 / 1.2], dtype=torch.float64).log().requires_grad_()
    old, trajectory = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    low, high = torch.full((2,), 0.9), torch.full((2,), 1.1)
    for advantage, value in ((1.0, 1.1), (-1.0, -((1.5 / 1.2) ** 0.5))):
        objective = sequence_surrogate(new, old, torch.full((2,), advantage), low, high, trajectory)
        assert objective.tolist() == pytest.approx([value, value])
        (gradient,) = torch.autograd.grad(objective.sum(), new)
        assert gradient.any() == (advantage < 0)


def test_the_weight_of_a_likelihood_is_capped_and_never_cut_off() -> None:
    new = torch.tensor([3.0, 0.5]).log().requires_grad_()
    (gradient,) = torch.autograd.grad(weighted_likelihood(new, torch.zeros(2), torch.ones(2), 1.2).sum(), new)
    assert gradient.tolist() == pytest.approx([1.2, 0.5])


def test_a_regression_is_at_rest_where_the_log_ratio_explains_the_advantage() -> None:
    new = torch.tensor([0.5, 1.5, -1.0]).requires_grad_()
    trajectory = torch.tensor([0, 0, 1])
    objective = value_regression(new, torch.zeros(3), torch.tensor([1.0, 1.0, 0.0]), trajectory, weight=0.5)
    assert objective.tolist() == pytest.approx([0.0, 0.0, -0.25])
    (gradient,) = torch.autograd.grad(objective.sum(), new)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, 0.5])


def test_nothing_is_a_batch_too() -> None:
    nothing = torch.zeros(0)
    none = torch.zeros(0, dtype=torch.int64)
    assert sequence_surrogate(nothing, nothing, nothing, nothing, nothing, none).shape == (0,)
    assert value_regression(nothing, nothing, nothing, none).shape == (0,)
