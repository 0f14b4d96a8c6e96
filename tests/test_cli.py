"""The command line: quick, and clear about mistakes. Training itself is replaced by a stand-in here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from math import nan
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import elpo
from elpo import __version__
from elpo.cli import main
from elpo.config import Config
from elpo.evaluation.summary import Estimate, Summary
from elpo.training.run_folder import RunFolder
from elpo.tree import ROOT, RolloutTree
from elpo.types import Outcome, Problem, Step

Train = Callable[..., Any]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ELPO_TRACEBACK", raising=False)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Train], None]:
    """Replace the trainer by a function of the same signature."""

    def replace(train: Train) -> None:
        module = ModuleType("elpo.training.trainer")
        module.train = train  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "elpo.training.trainer", module)

    return replace


def short_run(config: Config, *, resume: bool, overwrite: bool, progress: Any) -> SimpleNamespace:
    folder = RunFolder(config.run.dir)
    folder.prepare(config, resume=resume, overwrite=overwrite)
    folder.append_metrics("evaluation", 0, {"success/heldout": 0.125})
    tree = RolloutTree(Problem("p1", (), "a"), np.array([1]))
    step = Step(np.array([3]), np.array([True]), np.float32([0]), np.float32([0]), "the thought")
    tree.add(ROOT, [step], Outcome(1.0, True))
    folder.write_trees(5, [(tree, None), (RolloutTree(Problem("p2", (), "a"), np.array([1])), None)])
    return SimpleNamespace(success_before=0.125, success_after=0.5, best_success=0.625)


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(elpo.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    script = """
import sys
from elpo.cli import main
try:
    main(["--help"])
finally:
    heavy = {"torch", "transformers", "accelerate", "numpy", "pydantic", "yaml", "rich", "matplotlib"}
    print("HEAVY", sorted(heavy & set(sys.modules)))
"""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        done = run_python(script)
        seconds.append(time.perf_counter() - begin)
        assert "HEAVY []" in done.stdout, done.stderr
        for command in ("train", "eval", "tree", "plot", "localize", "serve-model"):
            assert re.search(rf"^\s+{command}\s", done.stdout, re.MULTILINE)
    assert min(seconds) < 0.5


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"elpo {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["trian"], ["train", "--frobnicate"], ["plot"], ["tree", "x", "y"]])
def test_wrong_usage_is_exit_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_dry_run_prints_the_resolved_settings(capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text("rl: {num_steps: 3}\n")
    argv = ["train", "r.yaml", "run.seed=4", "--dry-run", "algorithm.name=grpo"]  # options may stand between
    assert main(argv) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["rl"]["num_steps"], printed["run"]["seed"]) == (3, 4)
    assert printed["algorithm"]["strategy"]["name"] == "independent"
    assert not Path("runs").exists()


def test_mistakes_are_one_message_and_load_no_torch() -> None:
    for argv, message in [
        (["train", "rl.num_step=3"], "did you mean 'num_steps'"),
        (["train", "nowhere.yaml"], "there is no recipe nowhere.yaml"),
        (["train", "a.yaml", "b.yaml"], "give one recipe"),
        (["tree", "nowhere"], "there is no run in nowhere"),
        (["plot", "nowhere"], "there are no metrics in nowhere"),
        (["report", "nowhere"], "there is no run in nowhere"),
        (["serve", "nowhere"], "there is no run in nowhere"),
        (["eval", "some/model", "rl.num_step=3"], "did you mean 'num_steps'"),
    ]:
        script = (
            "import sys; from elpo.cli import main; "
            f"status = main({argv!r}); print('torch' in sys.modules); sys.exit(status)"
        )
        done = run_python(script)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == "False\n"


def test_train_reports_and_leaves_a_plot(
    stand_in: Callable[[Train], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(short_run)
    assert main(["train", "run.dir=out"]) == 0
    out = capsys.readouterr().out
    assert "held-out success before RL: 0.125" in out
    assert "held-out success after RL:  0.500  (best 0.625)" in out
    assert Path("out/plots/learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_used_run_folder_needs_resume_or_overwrite(
    stand_in: Callable[[Train], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(short_run)
    assert main(["train", "run.dir=out"]) == 0
    assert main(["train", "run.dir=out"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", "run.dir=out", "--resume", "--overwrite"]) == 2
    assert main(["train", "run.dir=out", "--resume", "rl.num_epochs=3"]) == 2
    assert "rl.num_epochs" in capsys.readouterr().err
    assert main(["train", "run.dir=out", "--overwrite", "rl.num_epochs=3"]) == 0
    assert main(["train", "out", "--resume"]) == 0  # a run folder stands for its own settings
    assert RunFolder("out").config().rl.num_epochs == 3


def test_a_moved_run_continues_where_it_is_now(stand_in: Callable[[Train], None]) -> None:
    stand_in(short_run)
    assert main(["train", "run.dir=out"]) == 0
    Path("out").rename("moved here")
    assert main(["train", "moved here", "--resume"]) == 0
    assert not Path("out").exists()


def test_ctrl_c_says_how_to_continue(
    stand_in: Callable[[Train], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: Config, **_: Any) -> None:
        raise KeyboardInterrupt

    stand_in(interrupted)
    assert main(["train", "run.dir=out"]) == 130
    err = capsys.readouterr().err
    assert "interrupted" in err
    assert "elpo train out --resume" in err


def test_an_error_while_training_keeps_its_traceback_in_the_folder(
    stand_in: Callable[[Train], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(config: Config, **_: Any) -> None:
        RunFolder(config.run.dir).prepare(config)
        raise ValueError("model.path: there is no folder x")

    stand_in(fails)
    assert main(["train", "run.dir=out"]) == 2
    err = capsys.readouterr().err
    assert "error: model.path: there is no folder x" in err
    assert "Traceback" not in err
    assert "in fails" in Path("out/error.log").read_text()
    monkeypatch.setenv("ELPO_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"model\.path"):
        main(["train", "run.dir=other"])


def test_a_mistake_found_before_the_run_begins_leaves_no_folder(
    stand_in: Callable[[Train], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(config: Config, **_: Any) -> None:
        raise ValueError("model.path: there is no folder x")

    stand_in(fails)
    assert main(["train", "run.dir=out"]) == 2
    assert capsys.readouterr().err == "error: model.path: there is no folder x\n"
    assert not Path("out").exists()


def test_a_defect_of_ours_is_not_dressed_up_as_a_mistake(stand_in: Callable[[Train], None]) -> None:
    def fails(config: Config, **_: Any) -> None:
        raise KeyError("x")

    stand_in(fails)
    with pytest.raises(KeyError):
        main(["train", "run.dir=out"])


def test_tree_prints_a_saved_tree(
    stand_in: Callable[[Train], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(short_run)
    main(["train", "run.dir=out"])
    capsys.readouterr()
    assert main(["tree", "out"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("step 5, tree 0 of 2")
    assert "the thought" in out
    assert main(["tree", "out", "--step", "5", "--problem", "p2"]) == 0
    assert "p2: 0 rollouts" in capsys.readouterr().out
    for argv, message in [
        (["--step", "4"], "steps with trees: 5"),
        (["--index", "2"], "use --index 0 to 1"),
        (["--problem", "p3"], "it has p1, p2"),
    ]:
        assert main(["tree", "out", *argv]) == 2
        assert message in capsys.readouterr().err


def test_a_tree_as_a_picture_and_the_report(
    stand_in: Callable[[Train], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(short_run)
    main(["train", "run.dir=out"])
    capsys.readouterr()
    assert main(["tree", "out", "--out", "tree.svg"]) == 0
    assert capsys.readouterr().out == "tree.svg\n"
    assert "the thought" in Path("tree.svg").read_text()
    assert main(["tree", "out", "--out", "tree.gif"]) == 2
    assert "ends in .png, .svg, .pdf" in capsys.readouterr().err
    assert main(["tree", "out", "--heldout"]) == 2
    assert "steps with trees: none yet" in capsys.readouterr().err
    assert main(["report", "out"]) == 0
    assert capsys.readouterr().out == "out/report.html\n"
    assert Path("out/report.html").read_text().startswith("<!doctype html>")
    assert main(["plot", "out", "--panels", "panels"]) == 0
    assert Path("panels/success-rate.svg").exists()


def test_plot_of_several_runs(stand_in: Callable[[Train], None], capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(short_run)
    main(["train", "run.dir=a"])
    main(["train", "run.dir=b"])
    capsys.readouterr()
    assert main(["plot", "a", "b", "--out", "ab.png"]) == 0
    assert capsys.readouterr().out == "ab.png\n"
    assert Path("ab.png").read_bytes().startswith(b"\x89PNG")


def test_eval_of_a_run_and_of_a_model(
    stand_in: Callable[[Train], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Config, Path | None]] = []
    outs: list[Path | None] = []

    def evaluate_run(
        config: Config, run: Path | None, out: Path | None, progress: Any, connection: Any = None
    ) -> SimpleNamespace:
        calls.append((config, run))
        outs.append(out)
        estimates = {"pass@1": Estimate(0.25, 0.125, 0.5, 7), "tool/calls_mean": Estimate(3, nan, nan, 1)}
        summary = Summary(7, 2, 1, estimates, {0: (4, 0.5), 3: (9, 1 / 3)})
        return SimpleNamespace(folder=Path("found"), summary=summary, num_sampled=1)

    module = ModuleType("elpo.evaluation.runner")
    module.evaluate_run = evaluate_run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elpo.evaluation.runner", module)
    stand_in(short_run)
    main(["train", "run.dir=out", "run.seed=5"])
    capsys.readouterr()
    assert main(["eval", "out", "evaluation.num_problems=7"]) == 0
    printed = capsys.readouterr().out
    assert "7 problems x 2 samples, 1 lost to faults" in printed
    assert re.search(r"^pass@1 +0\.25 +0\.125 to 0\.5 +7$", printed, re.MULTILINE)
    assert re.search(r"^tool/calls_mean +3 +- +1$", printed, re.MULTILINE)
    assert re.search(r"^ +3 +9 +0\.333$", printed, re.MULTILINE)
    assert printed.endswith("trajectories and result.json: found\n")
    assert main(["eval", "Qwen/Qwen3-4B", "evaluation.num_problems=9", "--out", "there"]) == 0
    assert outs == [None, Path("there")]
    (first, run), (second, none) = calls
    assert (first.run.seed, first.evaluation.num_problems, run) == (5, 7, Path("out"))
    assert (second.model.path, second.evaluation.num_problems, none) == ("Qwen/Qwen3-4B", 9, None)
    assert main(["eval", "out", "recipe.yaml"]) == 2


def test_an_unknown_option_says_where_the_options_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "recipes/tiny.yaml", "--dryrun"])
    assert "unrecognized arguments: --dryrun; see elpo train --help" in capsys.readouterr().err
