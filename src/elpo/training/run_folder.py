"""What a run leaves on disk, and how it is written so that a crash or a full disk loses nothing.

    config.yaml             every setting of the run
    metrics.jsonl           one JSON object a line: step, phase, metrics (docs/METRICS.md)
    trees/step-000010.jsonl sampled trees of RL step 10, one a line (elpo.tree_json)
    trees/heldout-000010.jsonl of the evaluation after it: the same problems every time
    reference.pt            the weights that RL began with, where the loss has a KL to them
    checkpoints/  plots/  tensorboard/
    evaluation/             what `elpo eval` found, a folder for each choice of settings
    report.html             the page that `elpo report` writes
    error.log               the traceback, where the run ended with an error

Files appear whole (written aside, then renamed); metrics are appended a line at a time, and a line that
could not be written completely is taken back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from elpo.algorithms.credit import Credit
from elpo.config import Config
from elpo.recipes import changed_keys, dump_config, load_config
from elpo.tree import RolloutTree
from elpo.tree_json import tree_from_json, tree_to_json

Phase = Literal["sft", "rl", "evaluation"]

TREE_FILES: dict[Phase, str] = {"rl": "step-", "evaluation": "heldout-"}
"""How the names of the files with trees begin, by the phase that grew them."""

RESUMABLE = re.compile(r"run\.(?!seed$).*|rl\.num_steps|rl\.max_rollouts|evaluation\.every")
"""Settings that may differ when a run is continued: how long and where, not what is learned."""


class RunFolderError(ValueError):
    """The run folder cannot be used as asked; the message names the path and the remedy."""


class RunFolder:
    """The files of one run. Reading needs no more than the folder; nothing is created before a write."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.trees = self.path / "trees"
        self.checkpoints = self.path / "checkpoints"
        self.reference_file = self.path / "reference.pt"
        self.plots = self.path / "plots"
        self.evaluation = self.path / "evaluation"
        self.tensorboard = self.path / "tensorboard"
        self.error_file = self.path / "error.log"
        self.report_file = self.path / "report.html"

    def check(self, config: Config, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse a folder that `prepare` could not use; nothing is written.

        Raises:
            RunFolderError: if another process trains in the folder, it cannot be written, holds something
                other than a run, or holds a run whose settings differ in more than `RESUMABLE` ones.
        """
        self._refuse_misuse(config, resume, overwrite)
        if self.path.is_dir():
            with self.claimed():
                pass

    def _refuse_misuse(self, config: Config, resume: bool, overwrite: bool) -> None:
        if resume and overwrite:
            raise RunFolderError("resume continues a run and overwrite deletes it; choose one of them")
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; choose another run.dir")
        ground = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not (ground.is_dir() and os.access(ground, os.W_OK)):
            raise RunFolderError(
                f"cannot write {self.path}: {ground} is no writable folder; choose another run.dir"
            )
        if not self.path.is_dir() or all(file.name.startswith(".") for file in self.path.iterdir()):
            return
        if not self.config_file.exists():
            raise RunFolderError(f"{self.path} holds files but no run; choose another run.dir")
        if resume:
            self._refuse_changes(config)
        elif not overwrite:
            raise RunFolderError(
                f"{self.path} already holds a run; continue it with --resume, replace it with --overwrite, "
                "or choose another run.dir"
            )

    def prepare(self, config: Config, *, resume: bool = False, overwrite: bool = False) -> None:
        """Make the folder ready for `config` and write config.yaml.

        A folder with something in it is refused, unless `resume` continues the run it holds or
        `overwrite` deletes that run first. `resume` on an empty folder starts a run.

        Raises:
            RunFolderError: as `check`, but for other processes (`claimed`), or if it cannot be written.
        """
        self._refuse_misuse(config, resume, overwrite)
        if overwrite:
            self._clear()
        self.write_text(self.config_file, dump_config(config))

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Nobody else trains in this folder meanwhile. The claim ends with the process, however that ends.

        Raises:
            RunFolderError: somebody does, or the folder cannot be made.
        """
        with _reported(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(
                    f"{self.path} is being trained in by another process; wait for it, or choose another "
                    "run.dir"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield
        finally:
            os.close(descriptor)

    def config(self) -> Config:
        """The settings of the run.

        Raises:
            RunFolderError: if there is no run here.
        """
        if not self.config_file.exists():
            raise RunFolderError(f"there is no run in {self.path}: it has no config.yaml")
        return load_config(self.config_file)

    def append_metrics(self, phase: Phase, step: int, metrics: Mapping[str, float]) -> None:
        """Add one line. Numbers that are not finite are written as null, which JSON can hold."""
        record: dict[str, Any] = {"step": step, "phase": phase}
        record |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = (json.dumps(record) + "\n").encode()
        with _reported(self.metrics_file):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.metrics_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                before = os.fstat(descriptor).st_size
                try:
                    _write_all(descriptor, line)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(descriptor, before)
                    raise
            finally:
                os.close(descriptor)

    def read_metrics(self, phase: Phase | None = None) -> list[dict[str, Any]]:
        """The recorded lines in the order written, of one phase or of all; null is NaN.

        A last line cut by a crash is left out; there is no run without it.

        Raises:
            RunFolderError: if a line in the middle is not JSON.
        """
        records = [record for _, record in self._metric_lines()]
        for record in records:
            record.update({name: math.nan for name, value in record.items() if value is None})
        return [record for record in records if phase in (None, record["phase"])]

    def truncate_metrics(self, phase: Phase | None = None, step: int = 0) -> None:
        """Drop every line written after `step` of `phase` ("sft" or "rl"); without a phase, all of them.

        The cold start comes before RL. An evaluation belongs to the RL step it follows (0: the one before
        RL), so it stays if its step does: evaluate before the checkpoint of a step is saved.
        """
        if phase is None:
            kept = []
        else:
            last = _order(phase, step)
            kept = [line for line, r in self._metric_lines() if _order(r["phase"], r["step"]) <= last]
        if self.metrics_file.exists():
            self.write_text(self.metrics_file, "".join(kept))

    def write_trees(
        self, step: int, trees: Sequence[tuple[RolloutTree, Credit | None]], phase: Phase = "rl"
    ) -> Path:
        """Store sampled trees of an RL step, or of the evaluation after it, replacing those of the same."""
        lines = (json.dumps(tree_to_json(tree, credit)) + "\n" for tree, credit in trees)
        return self.write_text(self.trees_file(step, phase), "".join(lines))

    def read_trees(self, step: int, phase: Phase = "rl") -> list[tuple[RolloutTree, Credit | None]]:
        """The trees of an RL step, or of the evaluation after it.

        Raises:
            RunFolderError: if none were saved at this step; the message lists the steps that have some.
        """
        steps = self.tree_steps(phase)
        if step not in steps:
            known = ", ".join(map(str, steps)) or "none yet"
            raise RunFolderError(f"{self.path} has no trees of step {step}; steps with trees: {known}")
        path = self.trees_file(step, phase)
        try:
            return [
                tree_from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()
            ]
        except ValueError as error:
            raise RunFolderError(f"{path} is damaged: {error}") from error

    def tree_steps(self, phase: Phase = "rl") -> list[int]:
        """RL steps at which trees of training, or of the evaluation after them, were saved, ascending."""
        prefix = TREE_FILES[phase]
        return sorted(int(path.stem.removeprefix(prefix)) for path in self.trees.glob(f"{prefix}*.jsonl"))

    def trees_file(self, step: int, phase: Phase = "rl") -> Path:
        """Where the trees of a step are."""
        return self.trees / f"{TREE_FILES[phase]}{step:06d}.jsonl"

    def write_text(self, path: Path, text: str) -> Path:
        """Write a file of the folder so that it is either the old one or the new one, never a part.

        Raises:
            RunFolderError: if the disk is full or the place cannot be written.
        """
        aside = path.with_name(f".{path.name}.tmp")
        with _reported(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                try:
                    _write_all(descriptor, text.encode())
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                os.replace(aside, path)
            except OSError:
                aside.unlink(missing_ok=True)
                raise
        return path

    def _metric_lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Complete lines with what they say."""
        if not self.metrics_file.exists():
            return
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise RunFolderError(f"{self.metrics_file}:{number} is damaged: {error}") from error
            yield line, record

    def _clear(self) -> None:
        """Delete the run, and only what a run writes."""
        for folder in (self.trees, self.checkpoints, self.plots, self.tensorboard, self.evaluation):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (
            self.metrics_file,
            self.reference_file,
            self.error_file,
            self.report_file,
            self.config_file,
        ):
            file.unlink(missing_ok=True)

    def _refuse_changes(self, config: Config) -> None:
        changed = [key for key in changed_keys(self.config(), config) if not RESUMABLE.fullmatch(key)]
        if changed:
            raise RunFolderError(
                f"the run in {self.path} differs from these settings in {', '.join(changed)}; continue it "
                f"with its own (elpo train {self.path} --resume), or choose another run.dir"
            )


def _order(phase: str, step: int) -> tuple[int, int]:
    """The place of a line in the course of a run."""
    return (0 if phase == "sft" else 1, step)


def _write_all(descriptor: int, data: bytes) -> None:
    """`os.write` until nothing is left; one call may write a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn an `OSError` of a write to `path` into a `RunFolderError` with its remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space, then continue the run with --resume; what was written before is intact"
        else:
            remedy = "choose a run.dir that can be written"
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error
