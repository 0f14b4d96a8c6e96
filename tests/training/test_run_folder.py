"""The files of a run survive crashes, continued runs and full disks."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from elpo.algorithms.credit import assign_credit
from elpo.config import Config
from elpo.recipes import load_config
from elpo.training.metrics_log import MetricsLog
from elpo.training.run_folder import RunFolder, RunFolderError
from elpo.training.trackers import TensorBoard
from elpo.tree import ROOT, RolloutTree
from elpo.types import Outcome, Problem, Step


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def make_tree(name: str, *rewards: float) -> RolloutTree:
    tree = RolloutTree(Problem(name, (), "a"), np.array([1, 2]))
    for reward in rewards:
        step = Step(np.array([3]), np.array([True]), np.float32([-0.5]), np.float32([0.7]), "text")
        tree.add(ROOT, [step], Outcome(reward, reward > 0))
    return tree


def record_a_run(folder: RunFolder, rl_steps: int, evaluate_every: int = 2) -> None:
    """Lines in the order a run writes them."""
    for step in range(1, 4):
        folder.append_metrics("sft", step, {"loss": 1.0 / step})
    folder.append_metrics("evaluation", 0, {"success/heldout": 0.1})
    for step in range(1, rl_steps + 1):
        folder.append_metrics("rl", step, {"reward/mean": float(step)})
        if step % evaluate_every == 0:
            folder.append_metrics("evaluation", step, {"success/heldout": 0.1 + step / 100})


# the folder


def test_prepare_writes_the_whole_configuration(folder: RunFolder) -> None:
    config = load_config(None, ["algorithm.name=grpo", "rl.num_steps=3"])
    folder.prepare(config)
    assert folder.config() == config


def test_a_used_folder_needs_a_decision(folder: RunFolder) -> None:
    folder.prepare(Config())
    record_a_run(folder, 2)
    with pytest.raises(RunFolderError, match=r"--resume.*--overwrite"):
        folder.prepare(Config())
    folder.prepare(Config(), resume=True)
    assert len(folder.read_metrics()) == 7
    folder.prepare(Config(), overwrite=True)
    assert folder.read_metrics() == []


def test_check_writes_nothing(folder: RunFolder) -> None:
    folder.check(Config())
    assert not folder.path.exists()


def test_two_processes_never_train_in_one_folder(folder: RunFolder) -> None:
    code = (
        "import sys, time; from elpo.training.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).claimed(): print('claimed', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout and other.stdout.readline() == b"claimed\n"
        for choice in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(RunFolderError, match="is being trained in by another process; wait for it"):
                folder.check(Config(), **choice)
        with pytest.raises(RunFolderError, match="another process"), folder.claimed():
            pass
    finally:
        other.kill()
        other.communicate()
    folder.check(Config())
    with folder.claimed():
        folder.prepare(Config())


def test_resume_starts_a_run_that_was_never_begun(folder: RunFolder) -> None:
    folder.prepare(Config(), resume=True)
    assert folder.config() == Config()


def test_resume_refuses_other_settings_and_names_them(folder: RunFolder) -> None:
    folder.prepare(Config())
    folder.prepare(load_config(None, ["rl.num_steps=200", "run.checkpoint_every=1"]), resume=True)
    assert folder.config().rl.num_steps == 200
    changed = load_config(None, ["run.seed=1", "algorithm.clip.elc=0.0", "rl.num_steps=7"])
    with pytest.raises(RunFolderError, match=r"in run\.seed, algorithm\.clip\.elc;"):
        folder.prepare(changed, resume=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_never_touched(folder: RunFolder, overwrite: bool) -> None:
    folder.path.mkdir()
    (folder.path / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError, match="holds files but no run"):
        folder.prepare(Config(), overwrite=overwrite)
    assert (folder.path / "thesis.tex").read_text() == "x"


def test_overwrite_deletes_only_what_a_run_writes(folder: RunFolder) -> None:
    folder.prepare(Config())
    folder.write_trees(1, [(make_tree("p"), None)])
    (folder.path / "notes.txt").write_text("mine")
    folder.prepare(Config(), overwrite=True)
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "notes.txt"}


def test_overwrite_and_resume_together_are_refused(folder: RunFolder) -> None:
    folder.prepare(Config())
    with pytest.raises(RunFolderError, match="one of them"):
        folder.prepare(Config(), resume=True, overwrite=True)
    assert folder.config_file.exists()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder(tmp_path / "run").prepare(Config())


def test_no_run_here(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="there is no run"):
        RunFolder(tmp_path).config()


# metrics


def test_metrics_are_one_json_object_a_line(folder: RunFolder) -> None:
    folder.append_metrics("rl", 1, {"loss": 0.5, "kl/approx": math.nan, "ratio/max": math.inf})
    (line,) = folder.metrics_file.read_text().splitlines()
    assert json.loads(line) == {"step": 1, "phase": "rl", "loss": 0.5, "kl/approx": None, "ratio/max": None}
    (record,) = folder.read_metrics("rl")
    assert record["loss"] == 0.5
    assert math.isnan(record["kl/approx"])
    assert folder.read_metrics("sft") == []


@pytest.mark.parametrize("step", [0, 3, 4, 6])
def test_a_continued_run_has_the_uninterrupted_runs_metrics(folder: RunFolder, step: int) -> None:
    record_a_run(folder, 6)
    uninterrupted = folder.metrics_file.read_bytes()
    folder.truncate_metrics("rl", step)
    for i in range(step + 1, 7):
        folder.append_metrics("rl", i, {"reward/mean": float(i)})
        if i % 2 == 0:
            folder.append_metrics("evaluation", i, {"success/heldout": 0.1 + i / 100})
    assert folder.metrics_file.read_bytes() == uninterrupted


def test_a_cold_start_checkpoint_drops_everything_after_it(folder: RunFolder) -> None:
    record_a_run(folder, 3)
    folder.truncate_metrics("sft", 2)
    assert [(r["phase"], r["step"]) for r in folder.read_metrics()] == [("sft", 1), ("sft", 2)]


def test_without_a_checkpoint_all_metrics_are_dropped(folder: RunFolder) -> None:
    record_a_run(folder, 3)
    folder.truncate_metrics()
    assert folder.read_metrics() == []


def test_a_half_written_last_line_is_forgotten(folder: RunFolder) -> None:
    record_a_run(folder, 3)
    complete = folder.metrics_file.read_bytes()
    with folder.metrics_file.open("ab") as file:
        file.write(b'{"step": 4, "pha')
    assert folder.read_metrics()[-1]["step"] == 3
    folder.truncate_metrics("rl", 3)
    assert folder.metrics_file.read_bytes() == complete


def test_damage_in_the_middle_is_reported_with_its_line(folder: RunFolder) -> None:
    record_a_run(folder, 1)
    lines = folder.metrics_file.read_text().splitlines(keepends=True)
    folder.metrics_file.write_text("".join([lines[0], "garbage\n", *lines[1:]]))
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl:2 is damaged"):
        folder.read_metrics()


# trees


def test_trees_come_back(folder: RunFolder) -> None:
    tree = make_tree("p", 1.0, -1.0)
    folder.write_trees(10, [(tree, assign_credit(tree)), (make_tree("q", 0.0), None)])
    folder.write_trees(5, [(make_tree("old"), None)])
    assert folder.tree_steps() == [5, 10]
    assert (folder.trees / "step-000010.jsonl").exists()
    (first, credit), (second, none) = folder.read_trees(10)
    assert (first.problem.id, second.problem.id, none) == ("p", "q", None)
    assert credit is not None
    np.testing.assert_allclose(credit.advantages, assign_credit(tree).advantages, rtol=1e-5)


def test_held_out_trees_are_kept_apart(folder: RunFolder) -> None:
    folder.write_trees(5, [(make_tree("p"), None)])
    folder.write_trees(0, [(make_tree("q"), None)], "evaluation")
    assert (folder.tree_steps(), folder.tree_steps("evaluation")) == ([5], [0])
    assert [tree.problem.id for tree, _ in folder.read_trees(0, "evaluation")] == ["q"]
    with pytest.raises(RunFolderError, match="no trees of step 5; steps with trees: 0"):
        folder.read_trees(5, "evaluation")


def test_steps_without_trees_are_answered_with_those_that_have_some(folder: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="steps with trees: none yet"):
        folder.read_trees(1)
    folder.write_trees(5, [])
    folder.write_trees(20, [])
    with pytest.raises(RunFolderError, match="no trees of step 6; steps with trees: 5, 20"):
        folder.read_trees(6)


def test_a_damaged_tree_file_is_named(folder: RunFolder) -> None:
    folder.write_trees(5, [(make_tree("p"), None)])
    (folder.trees / "step-000005.jsonl").write_text('{"format": 1}\n')
    with pytest.raises(RunFolderError, match=r"step-000005\.jsonl is damaged"):
        folder.read_trees(5)


# a full disk


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a write gets 10 bytes to the disk and then finds it full."""
    write, room = os.write, [10]

    def fill(descriptor: int, data: bytes) -> int:
        taken = min(room[0], len(data))
        room[0] -= taken
        if taken == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:taken])

    monkeypatch.setattr("elpo.training.run_folder.os.write", fill)


@pytest.fixture
def used(folder: RunFolder) -> RunFolder:
    folder.prepare(Config())
    record_a_run(folder, 2)
    folder.write_trees(2, [(make_tree("p", 1.0), None)])
    return folder


def contents(folder: RunFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


WRITES: dict[str, Callable[[RunFolder], object]] = {
    "metrics": lambda folder: folder.append_metrics("rl", 3, {"loss": 1.0}),
    "new trees": lambda folder: folder.write_trees(4, [(make_tree("q", 1.0), None)]),
    "same trees": lambda folder: folder.write_trees(2, [(make_tree("q", 1.0), None)]),
    "configuration": lambda folder: folder.prepare(Config(), resume=True),
    "truncated metrics": lambda folder: folder.truncate_metrics("rl", 1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_full_disk_is_an_explained_error_and_loses_nothing(
    used: RunFolder, write: Callable[[RunFolder], object], request: pytest.FixtureRequest
) -> None:
    before = contents(used)
    request.getfixturevalue("full_disk")
    with pytest.raises(RunFolderError, match=r"No space left.*free some space.*--resume") as caught:
        write(used)
    assert str(used.path) in str(caught.value)
    assert contents(used) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_device_that_is_really_full(folder: RunFolder) -> None:
    folder.path.mkdir()
    folder.metrics_file.symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match="No space left"):
        folder.append_metrics("rl", 1, {"loss": 1.0})


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*file/run: .*file is no writable folder"):
        RunFolder(tmp_path / "file" / "run").prepare(Config())


# the log


def test_log_starts_empty_or_after_a_checkpoint(folder: RunFolder) -> None:
    record_a_run(folder, 4)
    with MetricsLog(folder, after=("rl", 2)) as log:
        log.log("rl", 3, {"loss": 0.25})
    assert [r["step"] for r in folder.read_metrics("rl")] == [1, 2, 3]
    MetricsLog(folder).close()
    assert folder.read_metrics() == []
    assert not folder.tensorboard.exists()


def test_tensorboard_shows_each_phase_and_forgets_what_is_redone(folder: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(folder, [TensorBoard(folder.tensorboard)]) as log:
        log.log("sft", 1, {"loss": 3.0})
        for step in (1, 2, 3):
            log.log("rl", step, {"loss": float(step), "kl/approx": math.nan})
    with MetricsLog(folder, [TensorBoard(folder.tensorboard, ("rl", 2))], after=("rl", 2)) as log:
        log.log("rl", 3, {"loss": 30.0})

    def scalars(phase: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(folder.tensorboard / phase))
        events.Reload()
        assert events.Tags()["scalars"] == ["loss"]
        return [(event.step, event.value) for event in events.Scalars("loss")]

    assert scalars("sft") == [(1, 3.0)]
    assert scalars("rl") == [(1, 1.0), (2, 2.0), (3, 30.0)]
