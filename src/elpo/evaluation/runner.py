"""`elpo eval`: sample test problems nobody trained on, keep every trajectory, say what they show.

    settings.json             what decides the samples: model, task, limits, seed
    trajectories/000000.jsonl a record for every sample of a block of problems (elpo.evaluation.trajectories)
    completions.jsonl         with an endpoint: all it has answered (elpo.endpoints.journal)
    result.json               the numbers

A block is written whole, and sampled by an engine of its own: an evaluation that was stopped or killed goes
on at the first missing block and ends with the same numbers as one that was not.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elpo import __version__
from elpo.config import Config
from elpo.endpoints.connection import Connection
from elpo.evaluation.sources import Source, endpoint_source, model_source
from elpo.evaluation.summary import Summary, summarize
from elpo.evaluation.trajectories import Sample, sample_from_record, trajectory_records
from elpo.settings_file import claim, digest, fingerprints
from elpo.tasks.loading import load_task
from elpo.training.checkpoint import Checkpoints
from elpo.training.model_loading import derived_seed
from elpo.training.progress import Progress, SilentProgress
from elpo.training.run_folder import RunFolder
from elpo.tree import RolloutTree
from elpo.types import Problem

FORMAT = 1
"""Version of the evaluation folder; part of the settings, so another one starts anew."""

FULL_BATCHES = 4
"""A block has about this many times the engine's slots: few idle slots at its end, little lost by a kill."""


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation and where it is kept."""

    folder: Path
    summary: Summary
    num_sampled: int  # samples drawn by this call; the others were there


def evaluate_run(
    config: Config,
    run: Path | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    connection: Connection | None = None,
) -> Evaluation:
    """Sample and grade test problems, or continue where an earlier call was stopped.

    A finished evaluation is only read. More problems (`evaluation.num_problems`) continue it; any other
    setting that changes what is sampled belongs to another folder.

    Args:
        config: `evaluation` says how many problems and samples, `rollout` the limits and temperature.
        run: a run folder whose best checkpoint is evaluated; None for `config.model.path`.
        out: folder of the evaluation; by default one named after the settings, in the run's `evaluation/`,
            or in `runs/evaluation/` for a model.
        progress: is told of every finished problem.
        connection: sample from the model behind this endpoint instead. Samples that were lost to faults are
            drawn again by the next call.

    Raises:
        InfrastructureError, LimitReached: the endpoint is down, or more might be spent than is allowed.
        ValueError: the run has no checkpoint, the configuration is unusable, or `out` holds something else.
    """
    progress = progress or SilentProgress()
    weights = None
    if run is not None:
        best = Checkpoints(RunFolder(run).checkpoints).path("best")
        if best is None:
            raise ValueError(f"{run} has no checkpoint that was evaluated; train it first")
        weights = best / "model"
    settings = sampling_settings(config, weights, connection)
    if out is None:
        home = RunFolder(run).evaluation if run is not None else Path("runs/evaluation")
        out = home / f"{settings['checkpoint']}-{digest(settings)}"
    folder = _Folder(out)
    claim(folder.path, settings, "evaluation")
    task = load_task(config.task.name, config.task.options)
    problems = task.problems("test", config.evaluation.num_problems)
    if not problems:
        raise ValueError(f"task {task.name!r} has no test problems")
    blocks = [problems[i : i + settings["block"]] for i in range(0, len(problems), settings["block"])]
    stored = [folder.read(number * settings["block"], block) for number, block in enumerate(blocks)]
    if connection is not None:
        lost = (block is not None and any(sample.correct is None for sample in block) for block in stored)
        stored = [None if again else block for block, again in zip(stored, lost, strict=True)]
    there = sum(map(len, filter(None, stored)))
    if None in stored:
        journal = folder.path / "completions.jsonl"
        source = (
            model_source(config, weights)
            if connection is None
            else endpoint_source(config, connection, journal)
        )
        sampler = _Sampler(config, source, progress, stored, len(problems))
        for number, records in sampler.missing(blocks, stored):
            stored[number] = folder.write(number * settings["block"], records)
    samples = [sample for block in stored for sample in block or ()]
    summary = summarize(samples, config.evaluation.samples_per_problem)
    folder.write_result(summary, settings)
    return Evaluation(folder.path, summary, len(samples) - there)


def sampling_settings(
    config: Config, weights: Path | None, connection: Connection | None = None
) -> dict[str, Any]:
    """Everything the samples of an evaluation depend on, as JSON; the number of problems is none of it.

    Weights in a local folder are known by the names, sizes and times of their files, those of a hub name
    by the name alone; so is a model behind an endpoint, with the endpoint's address.
    """
    n = config.evaluation.samples_per_problem
    place = weights if weights is not None else Path(config.model.path or "").expanduser()
    files = sorted(file for kind in ("*.safetensors", "*.bin") for file in place.glob(kind))
    endpoint = {}
    if connection is not None:
        files, endpoint = [], {"endpoint": {"url": connection.url, "model": connection.model}}
        name = re.sub(r"[^\w.]+", "-", connection.model).strip("-.") or "endpoint"
    elif weights is not None:
        name = weights.parent.name
    else:
        name = re.sub(r"[^\w.]+", "-", config.model.path or "tiny").strip("-.")
    return {
        "format": FORMAT,
        "checkpoint": name,
        **endpoint,
        "files": fingerprints(files),
        **config.model_dump(mode="json", include={"model", "task", "python", "search", "rollout"}),
        "seed": config.run.seed,
        "samples_per_problem": n,
        "block": max(1, math.ceil(FULL_BATCHES * config.rollout.num_slots / n)),
    }


class _Sampler:
    """Draws the blocks an evaluation lacks; the source is opened once."""

    def __init__(
        self,
        config: Config,
        source: AbstractContextManager[Source],
        progress: Progress,
        stored: Sequence[list[Sample] | None],
        num_problems: int,
    ) -> None:
        self._config = config
        self._source = source
        self._progress = progress
        self._num_samples = config.evaluation.samples_per_problem
        known = [sample.correct for block in stored for sample in block or () if sample.correct is not None]
        self._successes, self._judged = sum(known), len(known)
        self._done = sum(len(block) for block in stored if block) // self._num_samples
        progress.start("evaluation", num_problems, self._done)

    def missing(
        self, blocks: Sequence[Sequence[Problem]], stored: Sequence[list[Sample] | None]
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The number and the records of each block that is not stored, as soon as it is sampled."""
        with self._source as source:
            for number, block in enumerate(blocks):
                if stored[number] is None:
                    yield number, self._sample(source, block)

    def _sample(self, source: Source, block: Sequence[Problem]) -> list[dict[str, Any]]:
        seed = derived_seed(self._config.run.seed, "test")
        trees = source.sample(block, self._num_samples, seed, self._tell)
        equivalent = getattr(source.task, "equivalent", None)
        return [r for tree in trees for r in trajectory_records(tree, self._num_samples, equivalent)]

    def _tell(self, tree: RolloutTree) -> None:
        self._done += 1
        self._successes += sum(outcome.correct for outcome in tree.outcomes.values())
        self._judged += len(tree.outcomes)
        success = {"success/heldout": self._successes / self._judged} if self._judged else {}
        self._progress.update(self._done, success)


class _Folder:
    """The files of one evaluation. Each appears whole: written aside, then renamed."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self._files = RunFolder(self.path)

    def read(self, first: int, block: Sequence[Problem]) -> list[Sample] | None:
        """The samples of a block of problems; None where they are not all there."""
        file = self._block(first)
        if not file.exists():
            return None
        wanted = [problem.id for problem in block]
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            samples = [sample_from_record(json.loads(line)) for line in lines]
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged ({error}); delete it to sample its problems again"
            ) from error
        found = list(dict.fromkeys(sample.problem for sample in samples))
        if found[: len(wanted)] != wanted:  # a last block that was shorter
            return None
        return [sample for sample in samples if sample.problem in set(wanted)]

    def write(self, first: int, records: Sequence[dict[str, Any]]) -> list[Sample]:
        """Store the block that begins with problem `first`, and return its samples."""
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        self._files.write_text(self._block(first), "".join(lines))
        return [sample_from_record(record) for record in records]

    def write_result(self, summary: Summary, settings: dict[str, Any]) -> None:
        """Store the numbers; what could not be computed is null."""
        result = {
            "format": FORMAT,
            "elpo": __version__,
            "date": time.strftime("%Y-%m-%d"),
            "checkpoint": settings["checkpoint"],
            "num_problems": summary.num_problems,
            "samples_per_problem": summary.num_samples,
            "faults": summary.num_faults,
            "metrics": {
                name: {
                    "value": estimate.value,
                    "low": _finite(estimate.low),
                    "high": _finite(estimate.high),
                    "num_problems": estimate.num_problems,
                }
                for name, estimate in summary.estimates.items()
            },
            "accuracy_by_calls": [
                {"calls": calls, "samples": num, "correct": share}
                for calls, (num, share) in summary.accuracy_by_calls.items()
            ],
        }
        self._files.write_text(self.path / "result.json", json.dumps(result, indent=1) + "\n")

    def _block(self, first: int) -> Path:
        return self.path / "trajectories" / f"{first:06d}.jsonl"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
