"""Runs that are stopped, killed or lose their engine continue as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import elpo
from elpo.training.checkpoint import Checkpoints, Position
from elpo.training.interruption import Interrupted
from elpo.training.run_folder import RunFolder
from elpo.training.trainer import Result, train
from tests.coins import coins_config
from tests.training import killed_run
from tests.training.killed_run import Until
from tests.training.same_run import assert_identical, assert_same_run, timeless

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{Path(elpo.__file__).parents[1]}{os.pathsep}{ROOT}"}


def test_stopped_runs_continue_as_if_nothing_had_happened(
    straight: tuple[RunFolder, Result], tmp_path: Path
) -> None:
    config = coins_config(tmp_path / "run")
    for phase, step in (("sft", 1), ("sft", 25), ("sft", 60), ("rl", 1), ("rl", 2), ("rl", 4)):
        stop = Until(phase, step, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted, match=f"stopped after {Position(phase, step).name}; .*--resume"):
            train(config, resume=True, progress=stop)
        path = Checkpoints(RunFolder(tmp_path / "run").checkpoints).path("last")
        assert path is not None and path.name == Position(phase, step).name
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    result = train(config, resume=True)
    assert_same_run(RunFolder(tmp_path / "run"), straight[0])
    assert result.best_success == straight[1].best_success


@pytest.mark.slow
def test_dropout_repeats_and_continues_as_well(tmp_path: Path) -> None:
    """Torch's own random numbers are a function of the step, whatever was drawn before in this process."""
    train(coins_config(tmp_path / "start", "sft.num_steps=1", "rl.num_steps=0"))
    start = Checkpoints(RunFolder(tmp_path / "start").checkpoints).path("last")
    assert start is not None
    overrides = (f"model.path={str(start / 'model')!r}", "sft.num_steps=3", "rl.num_steps=0")
    train(coins_config(tmp_path / "plain", *overrides))
    settings = json.loads((start / "model" / "config.json").read_text())
    (start / "model" / "config.json").write_text(json.dumps(settings | {"attention_dropout": 0.3}))
    train(coins_config(tmp_path / "straight", *overrides))
    config = coins_config(tmp_path / "stopped", *overrides)
    with pytest.raises(Interrupted):
        train(config, progress=Until("sft", 1, lambda: signal.raise_signal(signal.SIGINT)))
    torch.rand(7)
    train(config, resume=True)
    assert_same_run(RunFolder(tmp_path / "stopped"), RunFolder(tmp_path / "straight"))
    with_dropout, without = (RunFolder(tmp_path / name).read_metrics("sft") for name in ("straight", "plain"))
    assert with_dropout[0]["loss"] != without[0]["loss"]


def test_the_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stop:
        train(coins_config(tmp_path / "run"), progress=Until("sft", 3, twice))
    assert not isinstance(stop.value, Interrupted)
    assert not RunFolder(tmp_path / "run").checkpoints.exists()


def test_killed_runs_continue_as_if_nothing_had_happened(
    straight: tuple[RunFolder, Result], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_run", str(run)],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    deaths = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(point, status) for point, status, _ in deaths] == [
        (point.__name__, signal.SIGKILL) for point in killed_run.POINTS
    ]
    assert [last for *_, last in deaths] == [
        "sft-000025",
        "rl-000000",
        "rl-000000",
        "rl-000000",
        "rl-000000",
        "rl-000000",
        "rl-000001",
    ]
    train(coins_config(run), resume=True)
    assert_same_run(RunFolder(run), straight[0])


def test_ctrl_c_in_a_terminal_reaches_the_tools_as_well(
    straight: tuple[RunFolder, Result], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    overrides = ("rl.num_steps=100000", "evaluation.every=0")
    config = coins_config(run.path, *overrides)
    run.prepare(config)
    code = "import sys; from elpo.cli import main; sys.exit(main(['train', sys.argv[1], '--resume']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and len(run.read_metrics("rl")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after this step" in out
    assert f"continue with: elpo train {run.path} --resume" in err
    lines = run.read_metrics("rl")
    assert {line["faults/count"] for line in lines} == {0.0}
    path = Checkpoints(run.checkpoints).path("last")
    assert path is not None and path.name == Position("rl", lines[-1]["step"]).name
    expected = [line for line in timeless(straight[0]) if line["phase"] == "rl"][:2]
    assert_identical([line for line in timeless(run) if line["phase"] == "rl"][:2], expected)


def test_an_engine_that_dies_in_a_step_costs_that_step_alone(
    straight: tuple[RunFolder, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops with the engine's own words, and continues as if nothing had happened."""
    from elpo.engines.transformers import TransformersEngine
    from elpo.interfaces import InfrastructureFault

    folder = RunFolder(tmp_path / "run")
    config = coins_config(folder.path, "run.checkpoint_every=1000")
    step: Callable[..., Any] = TransformersEngine.step

    def dying(self: TransformersEngine) -> Any:
        if len(folder.read_metrics("rl")) == 1 and self.counts.decode_steps % 7 == 6:
            raise InfrastructureFault("the engine is gone")
        return step(self)

    with monkeypatch.context() as patched:
        patched.setattr(TransformersEngine, "step", dying)
        with pytest.raises(InfrastructureFault, match="the engine is gone"):
            train(config)
    last = Checkpoints(folder.checkpoints).path("last")
    assert last is not None and last.name == Position("rl", 1).name
    train(config, resume=True)
    assert_identical(timeless(folder), timeless(straight[0]))


def test_an_engine_that_dies_at_first_costs_nothing_of_the_cold_start(
    straight: tuple[RunFolder, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that has no memory, or no kernel, for this model."""
    from elpo.engines.transformers import TransformersEngine

    folder = RunFolder(tmp_path / "run")
    config = coins_config(folder.path, "sft.checkpoint_every=1000")
    with monkeypatch.context() as patched:
        patched.setattr(TransformersEngine, "step", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    last = Checkpoints(folder.checkpoints).path("last")
    assert last is not None and last.name == Position("rl", 0).name
    train(config, resume=True)
    assert_identical(timeless(folder), timeless(straight[0]))
