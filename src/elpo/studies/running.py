"""Run the trainings of a study as processes of their own, several side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from elpo.studies.study import Run, Study
from elpo.training.checkpoint import Checkpoints
from elpo.training.progress import Progress
from elpo.training.run_folder import RunFolder


class StudyFailed(ValueError):
    """Some trainings of a study ended with an error; the others are finished and kept."""


def default_jobs(study: Study) -> int:
    """A training for every core, or one where some variant may use a GPU."""
    on_cpu = all(config.run.device == "cpu" for config in study.configs.values())
    return (os.cpu_count() or 1) if on_cpu else 1


def run_study(study: Study, jobs: int, progress: Progress) -> None:
    """Run what is not finished: cold starts first, then every variant from them.

    Each training is an ordinary `elpo train --resume` in its own folder, so that a study which was stopped
    goes on where it was. A training that fails stops none of the others.

    Raises:
        StudyFailed: naming the trainings that failed and their logs.
    """
    _run_all("cold starts", study.recipe, study.cold_starts(), jobs, progress)
    checkpoints: dict[Path, Path] = {}
    for run in study.cold_starts():
        last = Checkpoints(RunFolder(run.folder).checkpoints).path("last")
        assert last is not None, f"{run.folder} ended well and left no checkpoint"
        checkpoints[run.folder] = last / "model"
    _run_all("trainings", study.recipe, study.trainings(checkpoints), jobs, progress)


def _run_all(what: str, recipe: Path, runs: Sequence[Run], jobs: int, progress: Progress) -> None:
    started = time.perf_counter()
    failed: list[Path] = []
    progress.start(what, len(runs))
    live: set[subprocess.Popen[bytes]] = set()

    def run(run: Run) -> tuple[Path, bool]:
        return run.folder, _train(recipe, run, jobs, live.add, live.discard)

    pool = ThreadPoolExecutor(jobs)
    try:
        for number, future in enumerate(as_completed([pool.submit(run, one) for one in runs]), 1):
            folder, good = future.result()
            if not good:
                failed.append(folder)
            minutes = (time.perf_counter() - started) / 60
            progress.note(f"{'finished' if good else 'FAILED'} after {minutes:.1f} min: {folder}")
            progress.update(number, {})
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(live):
            process.send_signal(signal.SIGINT)  # each finishes its step and saves
        try:
            pool.shutdown(wait=True)
        except KeyboardInterrupt:
            for process in list(live):
                process.terminate()
        raise
    pool.shutdown()
    if failed:
        logs = "\n".join(f"  {folder.with_suffix('.log')}" for folder in failed)
        raise StudyFailed(f"{len(failed)} of {len(runs)} {what} failed; mend it and start again:\n{logs}")


def _train(
    recipe: Path,
    run: Run,
    jobs: int,
    started: Callable[[subprocess.Popen[bytes]], None],
    ended: Callable[[subprocess.Popen[bytes]], None],
) -> bool:
    """One training to its end; what it prints goes to a log beside its folder."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    command = [sys.executable, "-m", "elpo.cli", "train", str(recipe), f"run.dir={str(run.folder)!r}"]
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(run.folder.with_suffix(".log"), "ab") as log:
        process = subprocess.Popen(
            [*command, *run.overrides, "--resume"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches it once, from us
        )
        started(process)
        try:
            return process.wait() == 0
        finally:
            ended(process)
