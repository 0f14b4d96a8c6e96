"""Trackers: which ones a configuration asks for, what they are told, and that a run outlives them."""

from __future__ import annotations

import importlib.util
import json
import math
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from elpo.config import Config
from elpo.recipes import load_config
from elpo.training.metrics_log import MetricsLog
from elpo.training.run_folder import Phase, RunFolder
from elpo.training.trackers import TensorBoard, check_trackers, make_trackers


def setup(tmp_path: Path, *overrides: str) -> tuple[Config, RunFolder]:
    config = load_config(None, [f"run.dir={str(tmp_path / 'my-run')!r}", "run.tensorboard=false", *overrides])
    folder = RunFolder(config.run.dir)
    folder.prepare(config)
    return config, folder


def record(log: MetricsLog) -> None:
    log.log("sft", 1, {"grad/norm": 2.0, "kl/approx": math.nan})
    log.log("evaluation", 0, {"success/heldout": 0.125})
    log.log("rl", 1, {"success/train": 0.25, "clip/low_share": math.inf})
    log.log("evaluation", 1, {"success/heldout": 0.5})
    log.log("rl", 2, {"success/train": 0.75})


SHOWN = {
    "sft": [(1, {"grad/norm": 2.0})],
    "evaluation": [(0, {"success/heldout": 0.125}), (1, {"success/heldout": 0.5})],
    "rl": [(1, {"success/train": 0.25}), (2, {"success/train": 0.75})],
}


def test_tensorboard_is_the_default(tmp_path: Path) -> None:
    (tracker,) = make_trackers(Config(), RunFolder(tmp_path))
    assert isinstance(tracker, TensorBoard)
    assert make_trackers(*setup(tmp_path)) == []
    assert not (tmp_path / "tensorboard").exists()  # nothing before the first metrics


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, [f"run.{name}=true"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=rf"run\.{name} is true.*pip install 'elpo\[{name}\]'"):
        check_trackers(config.run)
    check_trackers(Config().run)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_each_phase_is_a_run_of_one_group(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told to a package with the signatures both have; the real ones are below."""
    runs: list[SimpleNamespace] = []

    def init(*, name: str, group: str, project: str, config: dict[str, Any], **_: Any) -> SimpleNamespace:
        run = SimpleNamespace(name=name, group=group, project=project, config=config, lines=[], finished=0)
        run.log = lambda metrics, step: run.lines.append((step, metrics))
        run.finish = lambda: setattr(run, "finished", run.finished + 1)
        runs.append(run)
        return run

    module = ModuleType(name)
    module.init, module.Settings = init, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    config, folder = setup(tmp_path, f"run.{name}=true")
    with MetricsLog(folder, make_trackers(config, folder)) as log:
        assert runs == []
        record(log)
    assert {run.name.removeprefix("my-run "): run.lines for run in runs} == SHOWN
    assert {(run.group, run.project, run.finished) for run in runs} == {("my-run", "elpo", 1)}
    assert runs[0].config["algorithm"]["name"] == "elpo"


def test_a_tracker_that_fails_is_left_behind(tmp_path: Path) -> None:
    class Down:
        calls = 0

        def log(self, phase: Phase, step: int, metrics: Mapping[str, float]) -> None:
            self.calls += 1
            raise ConnectionError("no route to host")

        def close(self) -> None:
            raise AssertionError("it is gone")

    down = Down()
    _, folder = setup(tmp_path)
    board = TensorBoard(folder.tensorboard)
    said = r"Down failed.*metrics\.jsonl has every number.*no route"
    with pytest.warns(UserWarning, match=said) as warned, MetricsLog(folder, [down, board]) as log:
        record(log)
    assert (down.calls, len(warned)) == (1, 1)
    assert len(folder.read_metrics()) == 5
    assert {file.name for file in folder.tensorboard.iterdir()} == {"sft", "rl", "evaluation"}


def test_wandb_itself_writes_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (pip install 'elpo[wandb]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config, folder = setup(tmp_path, "run.wandb=true")
    with MetricsLog(folder, make_trackers(config, folder)) as log:
        record(log)
    names = ("grad/norm", "success/heldout", "success/train", "kl/approx")
    wanted = {"sft": {"grad/norm"}, "evaluation": {"success/heldout"}, "rl": {"success/train"}}
    found: dict[str, set[str]] = {}
    end = time.monotonic() + 30
    while found != wanted and time.monotonic() < end:  # a process of wandb's own writes the files
        time.sleep(0.2)
        for file in folder.path.glob("wandb/offline-run-*/*.wandb"):
            data = file.read_bytes()
            for phase in SHOWN:
                if f"my-run {phase}".encode() in data:
                    found[phase] = {name for name in names if name.encode() in data}
    assert found == wanted


def test_trackio_itself_stores_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("trackio") is None:  # it reads its folder when it is imported
        pytest.skip("trackio is not installed (pip install 'elpo[trackio]')")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    config, folder = setup(tmp_path, "run.trackio=true")
    with MetricsLog(folder, make_trackers(config, folder)) as log:
        record(log)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics").fetchall()
    found: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for name, step, metrics in rows:
        found.setdefault(name.removeprefix("my-run "), []).append((step, json.loads(metrics)))
    assert {phase: sorted(lines, key=lambda line: line[0]) for phase, lines in found.items()} == SHOWN
