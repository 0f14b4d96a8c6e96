"""The training loop: cold start, then grow trees, assign credit, update, and again.

Every step's data and random numbers are a pure function of the run's seed and the step, so a run that
continues from a checkpoint is the run that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elpo.algorithms.credit import Credit
from elpo.algorithms.credit_rules import assign_credits
from elpo.config import Config, OptimizerConfig
from elpo.evaluation.success import sample_success, success_of
from elpo.rollout.counts import RolloutCounts
from elpo.training.assembly import Assembly, assemble
from elpo.training.checkpoint import Checkpoints, Position
from elpo.training.collection import collect_step
from elpo.training.demonstrations import load_conversations
from elpo.training.interruption import Interrupted, Interruption
from elpo.training.launching import make_accelerator
from elpo.training.learner import Learner
from elpo.training.metrics_log import MetricsLog
from elpo.training.model_loading import autocast_dtype, cast_weights, derived_seed
from elpo.training.policy_update import update_policy
from elpo.training.processes import Processes, ProcessLost
from elpo.training.progress import Progress, SilentProgress
from elpo.training.reference import Reference
from elpo.training.rollout_metrics import discarded_metrics, engine_metrics, rollout_metrics
from elpo.training.run_folder import Phase, RunFolder
from elpo.training.sft import batch_indices, sft_update
from elpo.training.trackers import check_trackers, make_trackers
from elpo.training.vllm_sampling import sync_weights
from elpo.tree import RolloutTree

if TYPE_CHECKING:
    from accelerate import Accelerator


MAX_SAMPLER_DIFFERENCE = 1e-3
"""Nats, mean over tokens, up to which sampler and trainer are the same policy: rounding of float32 is 1e-6,
of bfloat16 1e-2."""


@dataclass(frozen=True)
class Result:
    """What a run achieved: held-out success after the cold start and after RL."""

    folder: Path
    success_before: float
    success_after: float
    best_success: float


def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, progress: Progress | None = None
) -> Result:
    """Run the configured cold start and RL in `config.run.dir`, or continue it.

    Raises:
        ValueError: the configuration, the folder, the model or a checkpoint is unusable.
        InfrastructureError: the tools fail by themselves too often.
        Interrupted: after Ctrl-C, once the current step is finished and saved.
    """
    accelerator = make_accelerator(config)
    processes = Processes(accelerator.process_index, accelerator.num_processes)
    folder = RunFolder(config.run.dir)
    if processes.is_main:  # where it refuses, the launcher ends the others
        folder.check(config, resume=resume, overwrite=overwrite)
    check_trackers(config.run)
    checkpoints = Checkpoints(folder.checkpoints)
    last = checkpoints.path("last") if resume else None
    state = checkpoints.read(last) if last else None
    assembly = assemble(config, accelerator.device, last / "model" if last else None, training=True)
    claim = ExitStack()
    try:
        processes.wait()  # all have read what the folder holds
        # from here on the folder is written to: what can be wrong with the settings has been found
        if processes.is_main:
            claim.enter_context(folder.claimed())
            folder.prepare(config, resume=resume, overwrite=overwrite)
        position = Position(**state["position"]) if state else None
        after = (position.phase, position.step) if position else None
        with (
            MetricsLog(folder, make_trackers(config, folder, after), after=after)
            if processes.is_main
            else nullcontext()
        ) as log:
            shown = (progress if processes.is_main else None) or SilentProgress()
            run = _Run(
                config,
                folder,
                checkpoints,
                shown,
                log,
                accelerator,
                processes,
                assembly,
                Interruption(processes, shown),
                position or Position("sft", 0),
            )
            return run.run(state)
    finally:
        claim.close()
        assembly.close()


@dataclass(eq=False)
class _Run:
    """One run: what it works with and how far it is."""

    config: Config
    folder: RunFolder
    checkpoints: Checkpoints
    progress: Progress
    log: MetricsLog | None  # the main process's
    accelerator: Accelerator
    processes: Processes
    assembly: Assembly
    interruption: Interruption
    position: Position
    learner: Learner | None = None  # of the phase before
    replica: Any = None  # what the engine samples from where the trained model is sharded
    stale: bool = True  # the weights have changed since the engine last had them

    def run(self, state: dict[str, object] | None) -> Result:
        """Everything that is still to do."""
        with self.interruption.watched():
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
        assembly = self.assembly
        conversations, notes = load_conversations(assembly.task, self.config, assembly.dialogue)
        for note in notes:
            self.progress.note(note)
        seed = derived_seed(self.config.run.seed, "sft order")
        self.progress.start("sft", sft.num_steps, self.position.step)
        self.assembly.model.train()
        for step in range(self.position.step, sft.num_steps):
            started = self._begin("sft", step + 1)
            index = batch_indices(len(conversations), sft.batch_size, step, seed)
            metrics = sft_update(learner, [conversations[i] for i in index], sft.microbatch_tokens)
            metrics["time/total"] = time.perf_counter() - started
            self._record("sft", step + 1, metrics)
            due = (step + 1) % sft.checkpoint_every == 0 or step + 1 == sft.num_steps
            if due or self.interruption.stopping:
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
        reference = None
        if self.config.algorithm.loss.kl_weight:
            reference = Reference.kept(learner, self.folder.reference_file, begin=self.position.step == 0)
        recorded = sum(line["rollouts/total"] for line in self.folder.read_metrics("rl"))
        evaluated = [line["step"] for line in self.folder.read_metrics("evaluation")]
        # as the one that writes the folder has read it
        spent, evaluated = self.processes.every((recorded, evaluated))[0]
        if self.position.step not in evaluated and self._evaluation_is_due(spent):
            self._evaluate(learner)
        self.progress.start("rl", rl.num_steps, self.position.step)
        for step in range(self.position.step + 1, rl.num_steps + 1):
            rounds_left = self._rounds_left(spent)
            if rounds_left == 0:
                break
            started = self._begin("rl", step)
            self._refresh_sampler(learner)
            engine = self.assembly.scheduler.engine
            engine_before = replace(engine.counts)
            with self._saved_on_failure(learner):
                found = collect_step(
                    self.config, self.assembly.scheduler, problems, step, rounds_left, self.processes
                )
            grown, trees = time.perf_counter(), found.kept
            credits = assign_credits(trees, self.config.algorithm)
            self.assembly.model.train()
            share = self.processes.share
            mine = share(trees), share(credits)
            algorithm = self.config.algorithm
            updated = update_policy(learner, *mine, algorithm, rl, self._recomputes(), reference)
            self.stale = True
            difference = updated.get("logprob/sampler_difference", self.position.sampler_difference)
            self.position = replace(self.position, sampler_difference=difference)
            metrics = rollout_metrics(found.grown, found.counts) | discarded_metrics(found.grown, trees)
            engines = self.processes.every((engine_before, replace(engine.counts)))
            metrics |= engine_metrics(engines, engine.num_slots) | updated
            done = time.perf_counter()
            metrics |= {
                "time/rollout": grown - started,
                "time/train": done - grown,
                "time/total": done - started,
            }
            self._record("rl", step, metrics)
            self._keep_trees(step, trees, credits)
            spent += metrics["rollouts/total"]
            if self._evaluation_is_due(spent):
                self._evaluate(learner)
            elif step % self.config.run.checkpoint_every == 0 or self.interruption.stopping:
                self._save(learner)
            self._stop_if_asked()

    def _evaluation_is_due(self, spent: float) -> bool:
        """After the step that the run is at: as often as configured, and before and after all of RL."""
        step, every = self.position.step, self.config.evaluation.every
        ends = step in (0, self.config.rl.num_steps) or self._rounds_left(spent) == 0
        return ends or bool(every and step % every == 0)

    @contextmanager
    def _saved_on_failure(self, learner: Learner) -> Iterator[None]:
        """Where rollouts fail (an engine or tools that are gone), what has been learned so far is saved.

        Of several processes all are told of a failure (`Processes.together`), since a checkpoint needs all.
        """
        try:
            yield
        except ProcessLost:
            raise
        except Exception:
            last = self.checkpoints.path("last")
            saved = last is not None and last.name == self.position.name
            if not self.processes.every(saved)[0]:
                self._save(learner)
            raise

    def _recomputes(self) -> bool:
        """Whether the sampler's log-probabilities are not good enough to be the old ones of this step."""
        wanted, difference = self.config.rl.old_logprobs, self.position.sampler_difference
        differs = difference is None or difference > MAX_SAMPLER_DIFFERENCE
        return wanted == "recompute" or (wanted == "auto" and differs)

    def _rounds_left(self, spent: float) -> int | None:
        """Batches of groups that the run's rollouts still pay for, where they are limited."""
        rl = self.config.rl
        if rl.max_rollouts is None:
            return None
        return int(rl.max_rollouts - spent) // (rl.problems_per_step * self.config.algorithm.num_rollouts)

    # shared by both

    def _learner(self, optimizer: OptimizerConfig, num_updates: int, temperature: float) -> Learner:
        before, self.learner = self.learner, None
        self.accelerator.free_memory(before and before.optimizer)  # of the phase before
        if before is None and self.accelerator.distributed_type == "FSDP":
            self.replica = deepcopy(self.assembly.model)
            if dtype := autocast_dtype(self.config.model):
                cast_weights(self.replica, dtype)
            engine: Any = self.assembly.scheduler.engine
            engine.model = self.replica
        model, packing = self.assembly.model, self.config.model.packing
        learner = Learner.prepare(
            self.accelerator, model, optimizer, num_updates, temperature, packing, before
        )
        if learner.obstacle and before is None:
            self.progress.note(f"training forwards a padded row for each trajectory: {learner.obstacle}")
        self.learner = learner
        return learner

    def _refresh_sampler(self, learner: Learner) -> None:
        """Let the engine sample from the weights as they are now, where it has not the model itself."""
        self.assembly.model.eval()
        if not self.stale:
            return
        if self.replica is not None:
            learner.copy_weights(self.replica)
            self.replica.eval()
        sync_weights(self.assembly.scheduler, self.assembly.model if self.replica is None else self.replica)
        self.stale = False

    def _begin(self, phase: Phase, step: int) -> float:
        """Seed what torch draws in this step (dropout); returns the time."""
        import torch

        torch.manual_seed(derived_seed(self.config.run.seed, "torch", phase, step))
        return time.perf_counter()

    def _evaluate(self, learner: Learner) -> None:
        """Measure held-out success, record it, and save; the best so far is kept."""
        evaluation, step = self.config.evaluation, self.position.step
        self._refresh_sampler(learner)
        started = time.perf_counter()
        problems = self.assembly.task.problems("validation", evaluation.num_problems)
        seed = derived_seed(self.config.run.seed, "evaluation")
        share = self.processes.share(problems)
        sample = partial(sample_success, self.assembly.scheduler, share, evaluation.samples_per_problem, seed)
        with self._saved_on_failure(learner):
            trees, counts = self.processes.together(sample)
        counts = sum(self.processes.every(counts), RolloutCounts())
        success = success_of(self.processes.gather(trees), counts)
        metrics = {
            "success/heldout": success.mean,
            "success/heldout_standard_error": success.standard_error,
            "time/total": time.perf_counter() - started,
        }
        if self.log:
            self.log.log("evaluation", step, metrics)
            kept = [(tree, None) for tree in success.trees[: self.config.run.trees_kept]]
            self.folder.write_trees(step, kept, "evaluation")
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
        if self.log:
            self.log.log(phase, step, metrics)
        self.progress.update(step, metrics)
        self.interruption.agree()

    def _save(self, learner: Learner, best: bool = False) -> None:
        model = self.assembly.model if self.replica is None else self.replica
        self.checkpoints.save(self.position, model, self.assembly.tokenizer, learner, best)

    def _keep_trees(self, step: int, trees: list[RolloutTree], credits: list[Credit]) -> None:
        run = self.config.run
        if self.processes.is_main and (step == 1 or step % run.trees_every == 0):
            self.folder.write_trees(step, list(zip(trees, credits, strict=True))[: run.trees_kept])

    def _result(self) -> Result:
        held_out = {line["step"]: line["success/heldout"] for line in self.folder.read_metrics("evaluation")}
        before, after = held_out.get(0, float("nan")), held_out.get(self.position.step, float("nan"))
        return Result(self.folder.path, before, after, self.position.best_success)

    def _stop_if_asked(self) -> None:
        if self.interruption.stopping:
            raise Interrupted(f"stopped after {self.position.name}; continue with --resume")
