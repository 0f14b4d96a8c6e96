"""Two processes against one: the same losses, gradients, metrics and weights, whatever each has to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from elpo.algorithms.credit_rules import assign_credits
from elpo.config import AlgorithmConfig, LossConfig, OptimizerConfig, RLConfig
from elpo.training.learner import Learner
from elpo.training.policy_update import update_policy
from elpo.training.processes import Processes
from elpo.training.run_folder import RunFolder
from elpo.training.sft import Conversation, sft_update
from elpo.training.trainer import train
from tests.coins import coins_config
from tests.training.small import VOCAB, assert_close, random_tree, record_gradients, small_model
from tests.training.two_processes import accelerator, free_port, in_two_processes

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

ROOT = Path(__file__).parents[2]
Gradients = dict[str, torch.Tensor]
CASES: list[tuple[Literal["tree", "rows"], str]] = [
    ("tree", "seq-mean-token-mean"),
    ("rows", "token-mean"),
]


def learner_of(model: Any, packing: Literal["tree", "rows"]) -> Learner:
    config = OptimizerConfig(learning_rate=1e-2, max_grad_norm=1e9)
    return Learner.prepare(Accelerator(cpu=True), model, config, num_updates=100, packing=packing)


def rl_updates(
    packing: Literal["tree", "rows"], aggregation: Any
) -> tuple[list[Gradients], dict[str, float]]:
    """Gradients and metrics of one RL step: three mini-batches of three trees and one of a single tree, so
    that one process has fewer trees, other numbers of passes, and once nothing to do at all."""
    model = small_model()
    trees = [random_tree(seed, model, 0.3, "all wrong" if seed in (1, 4) else "mixed") for seed in range(10)]
    learner = learner_of(model, packing)
    gradients = record_gradients(learner)
    algorithm = AlgorithmConfig(loss=LossConfig(aggregation=aggregation))
    rl = RLConfig(problems_per_step=12, problems_per_minibatch=3, microbatch_tokens=40)
    mine = learner.processes.share(trees)
    metrics = update_policy(learner, mine, assign_credits(mine, algorithm), algorithm, rl)
    return gradients, metrics


def sft_updates(packing: Literal["tree", "rows"]) -> tuple[list[Gradients], dict[str, float]]:
    """The same of a cold start; the first batch is a single conversation."""
    learner = learner_of(small_model(), packing)
    gradients = record_gradients(learner)
    rng = np.random.default_rng(0)
    batch = []
    for length in (9, 30, 12, 25, 7):
        sampled = rng.random(length) < 0.5
        sampled[:2] = [False, True]
        batch.append(Conversation(rng.integers(0, VOCAB, length), sampled))
    sft_update(learner, batch[:1], 40)
    return gradients, sft_update(learner, batch, 40)


def everything() -> list[tuple[list[Gradients], dict[str, float]]]:
    found = [rl_updates(*case) for case in CASES] + [sft_updates("tree"), sft_updates("rows")]
    return [([{n.removeprefix("module."): g for n, g in one.items()} for one in gs], m) for gs, m in found]


def test_gradients_and_metrics_are_those_of_one_process(tmp_path: Path) -> None:
    alone = everything()
    assert [len(gradients) for gradients, _ in alone] == [4, 4, 2, 2]
    for together in in_two_processes(tmp_path, everything):
        for (gradients, metrics), (expected, expected_metrics) in zip(together, alone, strict=True):
            assert len(gradients) == len(expected)
            for mine, theirs in zip(gradients, expected, strict=True):
                assert_close(mine, theirs)
            layout = {"tokens/forwarded_per_unique"}  # other micro-batches, other padding
            assert metrics.keys() == expected_metrics.keys()
            for name in metrics.keys() - layout:
                assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-4, abs=1e-6), name


def test_a_share_goes_back_to_its_place() -> None:
    items = list("abcdefg")
    shares = [Processes(rank, 3) for rank in range(3)]
    found = {p.position(i): item for p in shares for i, item in enumerate(p.share(items))}
    assert [found[i] for i in range(7)] == items
    assert Processes().gather(items) == Processes().share(items) == items


SHORT = ("rl.num_steps=2", "evaluation.every=0", "rl.problems_per_step=4")


def numbers(folder: RunFolder, phase: Any) -> list[dict[str, Any]]:
    left_out = ("phase", "time/", "tool/seconds", "engine/", "tokens/forwarded")
    return [
        {name: value for name, value in line.items() if not name.startswith(left_out)}
        for line in folder.read_metrics(phase)
    ]


@pytest.mark.slow
def test_a_run_in_two_processes_is_the_run_of_one_and_continues_in_any_number(tmp_path: Path) -> None:
    """Rollouts depend on seed, problem and draw alone, so that they are the same wherever they are drawn."""
    alone, together = RunFolder(tmp_path / "alone"), RunFolder(tmp_path / "together")
    train(coins_config(alone.path, *SHORT))
    in_two_processes(tmp_path, lambda: train(coins_config(together.path, *SHORT)).folder)
    for phase in ("sft", "rl", "evaluation"):
        mine, theirs = numbers(together, phase), numbers(alone, phase)
        assert len(mine) == len(theirs) > 0
        for a, b in zip(mine, theirs, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), (phase, name)
    # from two processes to one, and from one to two
    longer = (*SHORT, "rl.num_steps=3")
    train(coins_config(together.path, *longer), resume=True)
    in_two_processes(tmp_path, lambda: train(coins_config(alone.path, *longer), resume=True).folder)
    mine, theirs = numbers(together, "rl"), numbers(alone, "rl")
    assert [line["step"] for line in mine] == [line["step"] for line in theirs] == [1, 2, 3]
    assert mine[2]["updates"] > 0
    for name in ("loss", "grad/norm", "tokens/sampled", "success/train", "lr"):
        assert mine[2][name] == pytest.approx(theirs[2][name], rel=1e-3, abs=1e-4), name


def sharded() -> tuple[list[Gradients], dict[str, float], Gradients, Gradients]:
    """An RL step with FSDP2 through accelerate, which by itself uses it on GPUs only; the gradients and the
    weights after it put together, and what a sampler was given."""
    model, replica = small_model(), small_model(1)
    config = OptimizerConfig(learning_rate=1e-2, max_grad_norm=1e9)
    sharding = accelerator(sharded=True)
    learner = Learner.prepare(sharding, model, config, num_updates=100)
    assert learner.is_sharded
    recorded: list[Gradients] = []

    def record(*_: Any) -> None:
        named: Any = learner.scorer.named_parameters()
        recorded.append({name: p.grad.full_tensor() for name, p in named if p.grad is not None})

    learner._plain_optimizer.register_step_pre_hook(record)
    trees = [random_tree(seed, small_model(), 0.3) for seed in range(5)]
    algorithm = AlgorithmConfig()
    rl = RLConfig(problems_per_step=6, problems_per_minibatch=3, microbatch_tokens=40)
    mine = learner.processes.share(trees)
    metrics = update_policy(learner, mine, assign_credits(mine, algorithm), algorithm, rl)
    learner.copy_weights(replica)
    state = learner.processes.every(learner.optimizer_state())[0]  # the main process has it, as it writes it
    again = Learner.prepare(sharding, model, config, num_updates=100, before=learner)
    again.load_optimizer_state(state)
    found = learner.processes.every(again.optimizer_state())[0]
    for name, value in state["state"].items():
        assert_close(found["state"][name], value)
    whole = learner.full_weights()
    assert whole is not None
    return recorded, metrics, whole, dict(replica.state_dict())


def test_sharded_weights_learn_the_same(tmp_path: Path) -> None:
    model = small_model()
    learner = learner_of(model, "tree")
    gradients = record_gradients(learner)
    trees = [random_tree(seed, small_model(), 0.3) for seed in range(5)]
    algorithm = AlgorithmConfig()
    rl = RLConfig(problems_per_step=6, problems_per_minibatch=3, microbatch_tokens=40)
    metrics = update_policy(learner, trees, assign_credits(trees, algorithm), algorithm, rl)
    for rank, (found, found_metrics, whole, sampler) in enumerate(in_two_processes(tmp_path, sharded)):
        assert len(found) == len(gradients) == 2
        for mine, theirs in zip(found, gradients, strict=True):
            assert_close(mine, theirs)
        assert found_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-4, abs=1e-6)
        assert found_metrics["grad/norm"] == pytest.approx(metrics["grad/norm"], rel=1e-4)
        if rank == 0:  # the main process writes
            assert_close(whole, sampler)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_costs_one_step(tmp_path: Path) -> None:
    """Through torchrun: the others do not wait for it, and what was saved is continued."""
    run = RunFolder(tmp_path / "run")

    def launch(*arguments: str) -> int:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        command += [
            "--master_port",
            str(free_port()),
            "-m",
            "tests.training.launched_run",
            str(run.path),
        ]
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run(
            [*command, *arguments], env=environment, cwd=ROOT, timeout=500, capture_output=True, check=False
        )
        return done.returncode

    assert launch("die") != 0
    assert [line["step"] for line in run.read_metrics("rl")] == [1]
    assert launch() == 0
    assert [line["step"] for line in run.read_metrics("rl")] == [1, 2, 3]
