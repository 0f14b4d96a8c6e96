"""Two processes against one: the same losses, gradients, metrics and weights, whatever each has to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from elpo.algorithm_config import AlgorithmConfig, LossConfig
from elpo.algorithms.credit_rules import assign_credits
from elpo.config import LoraConfig, OptimizerConfig, RLConfig
from elpo.models.lora import add_lora
from elpo.rollout.faults import InfrastructureError
from elpo.rollout.scheduler import Scheduler
from elpo.training import trainer
from elpo.training.checkpoint import Checkpoints
from elpo.training.launching import make_accelerator
from elpo.training.learner import Learner
from elpo.training.policy_update import update_policy
from elpo.training.processes import Processes, ProcessFailed
from elpo.training.run_folder import RunFolder
from elpo.training.sft import Conversation, sft_update
from elpo.training.trainer import train
from elpo.tree import RolloutTree
from tests.coins import coins_config
from tests.training.small import VOCAB, assert_close, random_tree, record_gradients, small_model
from tests.training.two_processes import ends_of_two_processes, free_port, in_two_processes

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


def adapted_model(lora: bool) -> Any:
    """The small model, perhaps with adapters that change something."""
    model = small_model()
    if lora:
        add_lora(model, LoraConfig(rank=3), seed=0)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def rl_updates(
    packing: Literal["tree", "rows"], aggregation: Any, lora: bool = False
) -> tuple[list[Gradients], dict[str, float]]:
    """Gradients and metrics of one RL step: three mini-batches of three trees and one of a single tree, so
    that one process has fewer trees, other numbers of passes, and once nothing to do at all."""
    model = adapted_model(lora)
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
    found.append(rl_updates(*CASES[0], lora=True))
    return [([{n.removeprefix("module."): g for n, g in one.items()} for one in gs], m) for gs, m in found]


def test_gradients_and_metrics_are_those_of_one_process(tmp_path: Path) -> None:
    alone = everything()
    assert [len(gradients) for gradients, _ in alone] == [4, 4, 2, 2, 4]
    assert all("lora_" in name for name in alone[-1][0][0])
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
@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapters"])
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_a_run_in_two_processes_is_the_run_of_one_and_continues_in_any_number(
    tmp_path: Path, sharded: bool, lora: bool
) -> None:
    """Rollouts depend on seed, problem and draw alone, so that they are the same wherever they are drawn."""
    alone, together = RunFolder(tmp_path / "alone"), RunFolder(tmp_path / "together")
    short: tuple[str, ...] = SHORT
    if lora:  # of a model that has been through a cold start
        base = train(coins_config(tmp_path / "base", "rl.num_steps=0")).folder / "checkpoints"
        short += (f"model.path='{base / 'rl-000000' / 'model'}'", "model.lora.rank=4", "sft.num_steps=5")
    train(coins_config(alone.path, *short))
    in_two_processes(tmp_path, lambda: train(coins_config(together.path, *short)).folder, sharded)
    worst = 0.0
    for phase in ("sft", "rl", "evaluation"):
        mine, theirs = numbers(together, phase), numbers(alone, phase)
        assert len(mine) == len(theirs) > 0
        for a, b in zip(mine, theirs, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), (phase, name)
            worst = max(worst, *(abs(a[name] - b[name]) / (abs(b[name]) + 1e-2) for name in a))
    print(f"largest difference of a metric of the whole run, relative to its size plus 0.01: {worst:.1e}")
    # from two processes to one, and from one to two
    longer = (*short, "rl.num_steps=3")
    train(coins_config(together.path, *longer), resume=True)
    in_two_processes(tmp_path, lambda: train(coins_config(alone.path, *longer), resume=True).folder, sharded)
    mine, theirs = numbers(together, "rl"), numbers(alone, "rl")
    assert [line["step"] for line in mine] == [line["step"] for line in theirs] == [1, 2, 3]
    assert mine[2]["updates"] > 0
    for name in ("loss", "grad/norm", "tokens/sampled", "success/train", "lr"):
        assert mine[2][name] == pytest.approx(theirs[2][name], rel=1e-3, abs=1e-4), name


STEP = RLConfig(problems_per_step=6, problems_per_minibatch=3, microbatch_tokens=40)


def five_trees(model: Any) -> list[RolloutTree]:
    return [random_tree(seed, model, 0.3) for seed in range(5)]


def sharded(lora: bool) -> tuple[list[Gradients], dict[str, float], Gradients, Gradients]:
    """An RL step with FSDP2 through accelerate; the gradients and the weights after it put together, and what
    a sampler was given."""
    accelerator = make_accelerator(coins_config(Path()))
    model, replica = adapted_model(lora), adapted_model(lora)
    trees = five_trees(model)
    config = OptimizerConfig(learning_rate=1e-2, max_grad_norm=1e9)
    learner = Learner.prepare(accelerator, model, config, num_updates=100)
    assert learner.is_sharded
    recorded: list[Gradients] = []

    def record(*_: Any) -> None:
        named: Any = learner.scorer.named_parameters()
        recorded.append({name: p.grad.full_tensor() for name, p in named if p.grad is not None})

    learner._plain_optimizer.register_step_pre_hook(record)
    algorithm = AlgorithmConfig()
    mine = learner.processes.share(trees)
    metrics = update_policy(learner, mine, assign_credits(mine, algorithm), algorithm, STEP)
    learner.copy_weights(replica)
    state = learner.processes.every(learner.optimizer_state())[0]  # the main process has it, as it writes it
    again = Learner.prepare(accelerator, model, config, num_updates=100, before=learner)
    again.load_optimizer_state(state)
    found = learner.processes.every(again.optimizer_state())[0]
    for name, value in state["state"].items():
        assert_close(found["state"][name], value)
    whole = learner.full_weights()
    assert whole is not None
    return recorded, metrics, whole, dict(replica.state_dict())


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapters"])
def test_sharded_weights_learn_the_same(tmp_path: Path, lora: bool) -> None:
    model = adapted_model(lora)
    trees = five_trees(model)
    learner = learner_of(model, "tree")
    gradients = record_gradients(learner)
    algorithm = AlgorithmConfig()
    metrics = update_policy(learner, trees, assign_credits(trees, algorithm), algorithm, STEP)
    ends = in_two_processes(tmp_path, lambda: sharded(lora), sharded=True)
    for rank, (found, found_metrics, whole, sampler) in enumerate(ends):
        assert len(found) == len(gradients) == 2
        for mine, theirs in zip(found, gradients, strict=True):
            assert_close(mine, theirs)
        assert found_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-4, abs=1e-6)
        assert found_metrics["grad/norm"] == pytest.approx(metrics["grad/norm"], rel=1e-4)
        if rank == 0:  # the main process writes
            assert_close(whole, sampler)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1 is not supported; launch with --fsdp_version 2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
    ],
)
def test_what_is_not_supported_is_refused(
    environment: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=reason):
        train(coins_config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def fail(how: str) -> tuple[str, float]:
    """What process 0 hears, and after how many seconds, of process 1 that fails where all are to do work."""
    processes = make_accelerator(coins_config(Path())).process_index, 2

    def work() -> int:
        if processes[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else int("seven")
        return 7

    started = time.monotonic()
    with pytest.raises(ProcessFailed if processes[0] == 0 else ValueError) as caught:
        Processes(*processes).together(work)
    return f"{caught.type.__name__}: {caught.value}", time.monotonic() - started


def test_a_process_that_fails_or_is_killed_is_an_error_of_all(tmp_path: Path) -> None:
    (heard, seconds), (own, _) = in_two_processes(tmp_path, lambda: fail("raised"))
    assert "ProcessFailed: process 1 of 2 failed: ValueError: invalid literal" in heard
    assert own.startswith("ValueError: invalid literal")
    assert seconds < 20
    (ended, (heard, seconds)), (killed, _) = ends_of_two_processes(tmp_path, lambda: fail("killed"))
    assert (ended, os.WTERMSIG(killed)) == (0, signal.SIGKILL)
    assert heard.startswith("ProcessLost: process 0 of 2 has lost another one")
    assert "--resume" in heard
    assert seconds < 20


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_what_was_learned_before_a_process_failed_is_saved(
    tmp_path: Path, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second step's rollouts, in one process, far from the next checkpoint."""
    run = RunFolder(tmp_path / "run")
    config = coins_config(run.path, *SHORT, "run.checkpoint_every=100")

    def failing() -> None:
        grow, steps = Scheduler.grow, []

        def grow_or_fail(self: Scheduler, *arguments: Any) -> Any:
            steps.append(1)
            if os.environ["RANK"] == "1" and len(steps) == 3:  # after an evaluation and a step
                raise InfrastructureError("the sandbox is gone")
            return grow(self, *arguments)

        monkeypatch.setattr(Scheduler, "grow", grow_or_fail)
        train(config)

    (_, other), (_, own) = ends_of_two_processes(tmp_path, failing, sharded)
    assert "ProcessFailed: process 1 of 2 failed: InfrastructureError: the sandbox is gone" in other
    assert "InfrastructureError: the sandbox is gone" in own
    last = Checkpoints(run.checkpoints).path("last")
    assert last is not None and last.name == "rl-000001"
    in_two_processes(tmp_path, lambda: train(config, resume=True).folder, sharded)
    assert [line["step"] for line in run.read_metrics("rl")] == [1, 2]
    assert [line["step"] for line in run.read_metrics("evaluation")] == [0, 2]


@pytest.mark.slow
def test_asking_one_process_to_stop_stops_all_after_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    config = coins_config(run.path, *SHORT, "sft.num_steps=5", "run.checkpoint_every=100")

    def asked() -> None:
        update = trainer.update_policy

        def ask_and_update(*arguments: Any) -> Any:
            if os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGINT)
            return update(*arguments)

        monkeypatch.setattr(trainer, "update_policy", ask_and_update)
        train(config)

    for _, value in ends_of_two_processes(tmp_path, asked):
        assert "Interrupted: stopped after rl-000001" in value
    last = Checkpoints(run.checkpoints).path("last")
    assert last is not None and last.name == "rl-000001"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_process_that_dies_ends_the_run_and_costs_one_step(tmp_path: Path, name: str) -> None:
    """Through `accelerate launch` and the examples of it: the other one does not wait for ever in its update,
    and what was saved is continued."""
    run = RunFolder(tmp_path / "run")

    def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
        settings = ["--config_file", f"examples/accelerate/{name}.yaml", "--main_process_port"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *settings, str(free_port())]
        command += ["-m", "tests.training.launched_run", str(run.path), *arguments]
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths}
        return subprocess.run(
            command, env=environment, cwd=ROOT, timeout=500, capture_output=True, check=False, text=True
        )

    died = launch("die")
    assert died.returncode != 0
    assert "Signal 9 (SIGKILL)" in died.stderr  # the launcher names the cause
    assert [line["step"] for line in run.read_metrics("rl")] == [1]
    done = launch()
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in run.read_metrics("rl")] == [1, 2, 3]
