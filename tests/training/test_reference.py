"""The KL to the policy that RL began with: in the loss, in a run, in two processes."""

from __future__ import annotations

import copy
import signal
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from elpo.algorithm_config import AlgorithmConfig, LossConfig
from elpo.algorithms.credit_rules import assign_credits
from elpo.config import OptimizerConfig, RLConfig
from elpo.training.interruption import Interrupted
from elpo.training.launching import make_accelerator
from elpo.training.learner import Learner
from elpo.training.policy_update import packed, update_policy
from elpo.training.reference import Reference
from elpo.training.run_folder import RunFolder
from elpo.training.trainer import train
from elpo.tree import RolloutTree
from elpo.types import Outcome
from tests.coins import coins_config
from tests.training.killed_run import Until
from tests.training.same_run import assert_same_run, timeless
from tests.training.small import (
    assert_close,
    gradients_of,
    random_tree,
    record_gradients,
    small_learner,
    small_model,
)
from tests.training.test_policy_update import direct_loss, rl_of
from tests.training.two_processes import in_two_processes

WEIGHT = 0.7


def algorithm_of(weight: float = WEIGHT) -> AlgorithmConfig:
    return AlgorithmConfig(loss=LossConfig(kl_weight=weight, kl_estimator="k2"))


def moved(learner: Learner) -> None:
    """Some training, so that policy and reference differ."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for weight in learner.scorer.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


def unanimous(tree: RolloutTree) -> RolloutTree:
    """The tree with nothing to choose between its trajectories."""
    for leaf in tree.outcomes:
        tree.outcomes[leaf] = Outcome(1.0, correct=True)
    return tree


def direct_kl(model: Any, reference: Any, trees: list[RolloutTree]) -> torch.Tensor:
    """Mean over trajectories of the mean over sampled tokens of (log π − log π_ref)² / 2, token by token."""
    means = []
    for tree in trees:
        for leaf in tree.leaves:
            context, found = list(tree.prompt_ids), []
            for node in tree.path(leaf):
                step = tree.nodes[node].step
                for token, sampled in zip(step.token_ids, step.sampled, strict=True):
                    if sampled:
                        ours, theirs = (
                            torch.log_softmax(policy(torch.tensor([context])).logits[0, -1], -1)[int(token)]
                            for policy in (model, reference)
                        )
                        found.append((ours - theirs.detach()) ** 2 / 2)
                    context.append(int(token))
            means.append(torch.stack(found).mean())
    return torch.stack(means).mean()


@pytest.mark.parametrize("packing", ["tree", "rows"])
def test_equals_the_equation(packing: Literal["tree", "rows"]) -> None:
    """A tree without any advantage is trained on as well: there the penalty is all there is."""
    start, model = small_model(), small_model()
    trees = [random_tree(1, start, off_policy=0.6), unanimous(random_tree(2, start, off_policy=0.6))]
    learner = small_learner(model, packing)
    reference = Reference(learner)
    moved(learner)
    policy = copy.deepcopy(model)
    gradients = record_gradients(learner)
    algorithm = algorithm_of()
    credits = assign_credits(trees, algorithm)
    metrics = update_policy(learner, trees, credits, algorithm, rl_of(2), reference=reference)

    kl = direct_kl(policy, start, trees)
    expected = direct_loss(policy, trees, algorithm)[0] + WEIGHT * kl
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert metrics["kl/reference"] > 0.01
    assert_close(gradients[0], gradients_of(policy, expected))


def test_the_model_is_itself_again_after_scoring() -> None:
    learner = small_learner(small_model())
    reference = Reference(learner)
    trees = [random_tree(seed, small_model()) for seed in (1, 2)]
    credits = assign_credits(trees, algorithm_of())
    parts = packed(trees, credits, algorithm_of().loss, 1000).parts
    at_start = learner.logprobs(parts)
    moved(learner)
    weights = [weight.detach().clone() for weight in learner.scorer.parameters()]
    now = learner.logprobs(parts)
    for _ in range(2):
        for found, expected in zip(reference.logprobs(parts), at_start, strict=True):
            assert torch.equal(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(weights, learner.scorer.parameters(), strict=True))
    assert not torch.equal(now[0], at_start[0])
    with pytest.raises(RuntimeError, match="broken"), reference._in_place():
        raise RuntimeError("broken")
    assert all(torch.equal(a, b) for a, b in zip(weights, learner.scorer.parameters(), strict=True))


def after_updates(weight: float) -> float:
    """The KL after some updates with the same trees."""
    learner = small_learner(small_model())
    reference = Reference(learner)
    trees = [random_tree(seed, small_model()) for seed in (1, 2)]
    algorithm = algorithm_of(weight)
    credits = assign_credits(trees, algorithm)
    rl = RLConfig(problems_per_step=2, problems_per_minibatch=2)
    for _ in range(12):
        metrics = update_policy(learner, trees, credits, algorithm, rl, reference=reference)
    return metrics["kl/reference"]


def test_the_penalty_holds_the_policy_back() -> None:
    assert after_updates(50.0) < 0.5 * after_updates(1e-6)


KL = ("algorithm.loss.kl_weight=0.05", "rl.num_steps=2")


def test_a_run_that_goes_on_has_the_same_reference(tmp_path: Path) -> None:
    train(coins_config(tmp_path / "straight", *KL))
    straight = RunFolder(tmp_path / "straight")
    assert all(step["kl/reference"] > 1e-4 for step in straight.read_metrics("rl"))
    config = coins_config(tmp_path / "run", *KL)
    with pytest.raises(Interrupted):
        train(config, progress=Until("rl", 1, lambda: signal.raise_signal(signal.SIGINT)))
    train(config, resume=True)
    assert_same_run(RunFolder(tmp_path / "run"), straight)

    (tmp_path / "run" / "reference.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"reference\.pt.*put it back, or start again with --overwrite"):
        train(coins_config(tmp_path / "run", *KL, "rl.num_steps=3"), resume=True)
    train(coins_config(tmp_path / "run", "rl.num_steps=0", "sft.num_steps=1"), overwrite=True)
    assert not (tmp_path / "run" / "reference.pt").exists()


def test_adapters_alone_are_the_reference(tmp_path: Path) -> None:
    lora = ("model.lora.rank=2", "model.lora.target_modules=[q_proj]")
    train(coins_config(tmp_path / "run", *KL, *lora, "rl.num_steps=1", "sft.num_steps=2"))
    state = torch.load(tmp_path / "run" / "reference.pt", weights_only=True)
    assert state and all("lora" in name for name in state)
    assert "kl/reference" in timeless(RunFolder(tmp_path / "run"))[-2]


def in_a_share(folder: Path, sharded: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Metrics and weights after an update, of a process with its share of two trees."""
    config = OptimizerConfig(learning_rate=1e-2)
    learner = Learner.prepare(make_accelerator(coins_config(folder)), small_model(), config, num_updates=9)
    assert learner.is_sharded == sharded
    first = Reference.kept(learner, folder / "reference.pt", begin=True)
    trees = [random_tree(1, small_model()), random_tree(2, small_model())]
    algorithm = algorithm_of()
    mine = learner.processes.share(trees), learner.processes.share(assign_credits(trees, algorithm))
    metrics: dict[str, float] = {}
    for reference in (first, Reference.kept(learner, folder / "reference.pt", begin=False)):
        metrics = update_policy(learner, *mine, algorithm, rl_of(2), reference=reference)
        metrics = update_policy(learner, *mine, algorithm, rl_of(2), reference=reference)
    return metrics["kl/reference"], learner.trained_weights()


@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP2"])
def test_two_processes_have_one_reference(tmp_path: Path, sharded: bool) -> None:
    kl, weights = in_a_share(tmp_path, sharded=False)  # of one
    assert kl > 1e-4
    first, second = in_two_processes(tmp_path / "two", partial(in_a_share, tmp_path, sharded), sharded)
    assert first[0] == second[0] == pytest.approx(kl, rel=1e-3)
    assert weights.keys() == first[1].keys()
    for name, value in weights.items():
        torch.testing.assert_close(first[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
