"""The training loop: cold start, then grow trees, assign credit, update, and again.

Every step's data and random numbers are a pure function of the run's seed and the step, so a run that
continues from a checkpoint is the run that was never interrupted.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from elpo.algorithms.credit import Credit
from elpo.config import Config, OptimizerConfig
from elpo.evaluation.success import measure_success
from elpo.training.assembly import Assembly, assemble, choose_device, derived_seed, make_strategy
from elpo.training.checkpoint import Checkpoints, Position
from elpo.training.learner import Learner
from elpo.training.metrics_log import MetricsLog
from elpo.training.policy_update import credit_of, update_policy
from elpo.training.progress import Progress, SilentProgress
from elpo.training.rollout_metrics import engine_metrics, rollout_metrics
from elpo.training.run_folder import Phase, RunFolder
from elpo.training.sft import batch_indices, conversation_tokens, sft_update
from elpo.training.trackers import check_trackers, make_trackers
from elpo.tree import RolloutTree

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Result:
    """What a run achieved: held-out success after the cold start and after RL."""

    folder: Path
    success_before: float
    success_after: float
    best_success: float


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; a checkpoint of the last finished step was written."""


def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, progress: Progress | None = None
) -> Result:
    """Run the configured cold start and RL in `config.run.dir`, or continue it.

    Raises:
        ValueError: the configuration, the folder, the model or a checkpoint is unusable.
        InfrastructureError: the tools fail by themselves too often.
        Interrupted: after Ctrl-C, once the current step is finished and saved.
    """
    from accelerate import Accelerator

    folder = RunFolder(config.run.dir)
    folder.check(config, resume=resume, overwrite=overwrite)
    check_trackers(config.run)
    checkpoints = Checkpoints(folder.checkpoints)
    last = checkpoints.path("last") if resume else None
    state = checkpoints.read(last) if last else None
    choose_device(config.run.device)
    accelerator = Accelerator(cpu=config.run.device == "cpu")
    assembly = assemble(config, accelerator.device, last / "model" if last else None)
    try:
        if config.rl.num_steps and not assembly.task.problems("train", 1):
            raise ValueError(f"task {assembly.task.name!r} has no training problems; use it for evaluation")
        # from here on the folder is written to: what can be wrong with the settings has been found
        folder.prepare(config, resume=resume, overwrite=overwrite)
        position = Position(**state["position"]) if state else None
        after = (position.phase, position.step) if position else None
        with MetricsLog(folder, make_trackers(config, folder, after), after=after) as log:
            run = _Run(
                config,
                folder,
                checkpoints,
                progress or SilentProgress(),
                log,
                accelerator,
                assembly,
                position or Position("sft", 0),
            )
            return run.run(state)
    finally:
        assembly.close()


@dataclass(eq=False)
class _Run:
    """One run: what it works with and how far it is."""

    config: Config
    folder: RunFolder
    checkpoints: Checkpoints
    progress: Progress
    log: MetricsLog
    accelerator: Accelerator
    assembly: Assembly
    position: Position
    stopping: bool = False

    def run(self, state: dict[str, object] | None) -> Result:
        """Everything that is still to do."""
        with self._graceful_interrupt():
            if self.position.phase == "sft":
                self._cold_start(state)
                self.position = Position("rl", 0)
                state = None
            self._reinforce(state)
        return self._result()

    # cold start

    def _cold_start(self, state: dict[str, object] | None) -> None:
        sft = self.config.sft
        if not sft.num_steps:
            return
        learner = self._learner(sft.optimizer, sft.num_steps, temperature=1.0)
        if state:
            self.checkpoints.restore(state, learner)
        task: Any = self.assembly.task  # one with demonstrations: `assemble` has seen to it
        conversations = [
            conversation_tokens(self.assembly.dialogue, demonstration["messages"])
            for demonstration in task.demonstrations(sft.num_demonstrations, seed=self.config.run.seed)
        ]
        seed = derived_seed(self.config.run.seed, "sft order")
        self.progress.start("sft", sft.num_steps, self.position.step)
        self.assembly.model.train()
        for step in range(self.position.step, sft.num_steps):
            started = self._begin("sft", step + 1)
            index = batch_indices(len(conversations), sft.batch_size, step, seed)
            metrics = sft_update(learner, [conversations[i] for i in index], sft.microbatch_tokens)
            metrics["time/total"] = time.perf_counter() - started
            self._record("sft", step + 1, metrics)
            if (step + 1) % sft.checkpoint_every == 0 or self.stopping:
                self._save(learner)
            self._stop_if_asked()

    # reinforcement learning

    def _reinforce(self, state: dict[str, object] | None) -> None:
        rl = self.config.rl
        num_updates = rl.num_steps * rl.num_epochs * (rl.problems_per_step // rl.problems_per_minibatch)
        learner = self._learner(rl.optimizer, num_updates, self.config.rollout.temperature)
        if state:
            self.checkpoints.restore(state, learner)
        problems = self.assembly.task.problems("train", rl.num_problems)
        strategy = make_strategy(self.config.algorithm.strategy)
        if state is None:
            self._evaluate(learner)
        self.progress.start("rl", rl.num_steps, self.position.step)
        order_seed = derived_seed(self.config.run.seed, "problems")
        for step in range(self.position.step + 1, rl.num_steps + 1):
            started = self._begin("rl", step)
            index = batch_indices(len(problems), rl.problems_per_step, step - 1, order_seed)
            self.assembly.model.eval()
            engine_before = replace(self.assembly.scheduler.engine.counts)
            trees, counts = self.assembly.scheduler.grow(
                [problems[i] for i in index],
                strategy,
                self.config.algorithm.num_rollouts,
                seed=derived_seed(self.config.run.seed, "rollouts", step),
                policy_version=step - 1,
            )
            grown = time.perf_counter()
            credits = [credit_of(tree, self.config.algorithm) for tree in trees]
            self.assembly.model.train()
            metrics = rollout_metrics(trees, counts)
            metrics |= engine_metrics(engine_before, self.assembly.scheduler.engine)
            metrics |= update_policy(learner, trees, credits, self.config.algorithm, rl)
            done = time.perf_counter()
            metrics |= {
                "time/rollout": grown - started,
                "time/train": done - grown,
                "time/total": done - started,
            }
            self._record("rl", step, metrics)
            self._keep_trees(step, trees, credits)
            every = self.config.evaluation.every
            if step == rl.num_steps or (every and step % every == 0):
                self._evaluate(learner)
            elif step % self.config.run.checkpoint_every == 0 or self.stopping:
                self._save(learner)
            self._stop_if_asked()

    # shared by both

    def _learner(self, optimizer: OptimizerConfig, num_updates: int, temperature: float) -> Learner:
        self.accelerator.free_memory()  # lets go of the optimizer of the phase before
        packing = self.config.model.packing
        learner = Learner.prepare(
            self.accelerator, self.assembly.model, optimizer, num_updates, temperature, packing
        )
        if learner.obstacle:
            self.progress.note(f"training forwards a padded row for each trajectory: {learner.obstacle}")
        return learner

    def _begin(self, phase: Phase, step: int) -> float:
        """Seed what torch draws in this step (dropout); returns the time."""
        import torch

        torch.manual_seed(derived_seed(self.config.run.seed, "torch", phase, step))
        return time.perf_counter()

    def _evaluate(self, learner: Learner) -> None:
        """Measure held-out success, record it, and save; the best so far is kept."""
        evaluation, step = self.config.evaluation, self.position.step
        self.assembly.model.eval()
        started = time.perf_counter()
        success = measure_success(
            self.assembly.scheduler,
            self.assembly.task.problems("validation", evaluation.num_problems),
            evaluation.samples_per_problem,
            seed=derived_seed(self.config.run.seed, "evaluation"),
        )
        metrics = {
            "success/heldout": success.mean,
            "success/heldout_standard_error": success.standard_error,
            "time/total": time.perf_counter() - started,
        }
        self.log.log("evaluation", step, metrics)
        kept = success.trees[: self.config.run.trees_kept]
        self.folder.write_trees(step, [(tree, None) for tree in kept], "evaluation")
        self.progress.note(
            f"step {step}: held-out success {success.mean:.3f} ± {success.standard_error:.3f} "
            f"({evaluation.num_problems} problems x {evaluation.samples_per_problem})"
        )
        best = success.mean > self.position.best_success
        if best:
            self.position = replace(self.position, best_success=success.mean)
        self._save(learner, best)

    def _record(self, phase: Phase, step: int, metrics: dict[str, float]) -> None:
        self.position = replace(self.position, phase=phase, step=step)
        self.log.log(phase, step, metrics)
        self.progress.update(step, metrics)

    def _save(self, learner: Learner, best: bool = False) -> None:
        self.checkpoints.save(self.position, self.assembly.model, self.assembly.tokenizer, learner, best)

    def _keep_trees(self, step: int, trees: list[RolloutTree], credits: list[Credit]) -> None:
        run = self.config.run
        if step == 1 or step % run.trees_every == 0:
            self.folder.write_trees(step, list(zip(trees, credits, strict=True))[: run.trees_kept])

    def _result(self) -> Result:
        held_out = {line["step"]: line["success/heldout"] for line in self.folder.read_metrics("evaluation")}
        before, after = held_out.get(0, float("nan")), held_out.get(self.config.rl.num_steps, float("nan"))
        return Result(self.folder.path, before, after, self.position.best_success)

    @contextmanager
    def _graceful_interrupt(self) -> Iterator[None]:
        """The first Ctrl-C lets the step finish and saves it; the second stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask_to_stop(signum: int, frame: FrameType | None) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True
            self.progress.note("stopping after this step; press Ctrl-C again to stop at once")

        previous = signal.signal(signal.SIGINT, ask_to_stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _stop_if_asked(self) -> None:
        if self.stopping:
            raise Interrupted(f"stopped after {self.position.name}; continue with --resume")
