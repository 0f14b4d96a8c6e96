"""Views of a run's metrics in other programs: TensorBoard, Weights & Biases, trackio.

Each has one run for each phase, since their steps count separately, and names metrics as docs/METRICS.md
does. metrics.jsonl stays the record; a tracker that fails is left behind, not the run.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from elpo.config import Config, RunConfig
from elpo.training.run_folder import Phase, RunFolder

PACKAGES = ("wandb", "trackio")
"""Trackers that are extras of their own: each is a package, a setting of `run` and an extra, of one name."""


class Tracker(Protocol):
    """Something that shows metrics."""

    def log(self, phase: Phase, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step, all of them finite."""
        ...

    def close(self) -> None:
        """The run is over: write what was held back."""
        ...


def check_trackers(run: RunConfig) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        ValueError: naming the setting and what to install.
    """
    for name in PACKAGES:
        if getattr(run, name) and importlib.util.find_spec(name) is None:
            raise ValueError(f"run.{name} is true, but {name} is not installed: pip install 'elpo[{name}]'")


def make_trackers(config: Config, folder: RunFolder, after: tuple[Phase, int] | None = None) -> list[Tracker]:
    """The trackers that `config.run` asks for; nothing is written before the first metrics.

    `after` is the (phase, step) of the checkpoint the run continues from. TensorBoard then forgets what is
    done again; the others get new runs of the same group.
    """
    trackers: list[Tracker] = []
    if config.run.tensorboard and importlib.util.find_spec("tensorboard") is not None:
        trackers.append(TensorBoard(folder.tensorboard, after))
    settings = config.model_dump(mode="json")
    name = folder.path.absolute().name
    if config.run.wandb:
        trackers.append(RunPerPhase(lambda phase: _wandb_run(name, phase, settings, folder.path)))
    if config.run.trackio:
        trackers.append(RunPerPhase(lambda phase: _trackio_run(name, phase, settings)))
    return trackers


class TensorBoard:
    """Event files, a folder for each phase."""

    def __init__(self, folder: Path, after: tuple[Phase, int] | None = None) -> None:
        self._folder = folder
        self._after = after
        self._writers: dict[Phase, Any] = {}

    def log(self, phase: Phase, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        if phase not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            # Points written after the checkpoint stay visible until TensorBoard is told to forget them.
            last_phase, last_step = self._after or (phase, -1)
            redone = last_step + 1 if (last_phase == "sft") == (phase == "sft") else 0
            self._writers[phase] = SummaryWriter(self._folder / phase, purge_step=redone)
        for name, value in metrics.items():
            self._writers[phase].add_scalar(name, value, step)

    def close(self) -> None:
        """See `Tracker`."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


class RunPerPhase:
    """A service whose runs have `log(metrics, step=)` and `finish()`; `start` opens the one of a phase."""

    def __init__(self, start: Callable[[Phase], Any]) -> None:
        self._start = start
        self._runs: dict[Phase, Any] = {}

    def log(self, phase: Phase, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        if phase not in self._runs:
            self._runs[phase] = self._start(phase)
        self._runs[phase].log(dict(metrics), step=step)

    def close(self) -> None:
        """See `Tracker`."""
        for run in self._runs.values():
            run.finish()
        self._runs.clear()


def _wandb_run(name: str, phase: Phase, settings: dict[str, Any], folder: Path) -> Any:
    """A run of Weights & Biases. WANDB_PROJECT, WANDB_MODE and the like work as usual."""
    import wandb

    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "elpo"),
        name=f"{name} {phase}",
        group=name,
        job_type=phase,
        config=settings,
        dir=folder,
        reinit="create_new",  # the phases' runs are open side by side
        settings=wandb.Settings(console="off"),  # numbers only, not what the terminal shows
    )


def _trackio_run(name: str, phase: Phase, settings: dict[str, Any]) -> Any:
    """A run of trackio. TRACKIO_PROJECT chooses the project, TRACKIO_DIR the place."""
    import trackio

    return trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", "elpo"),
        name=f"{name} {phase}",
        group=name,
        config=settings,
        embed=False,
    )
