"""Whole runs of the tiniest model with the real Python tool: exact continuation, repeatability, learning."""

from __future__ import annotations

import json
import math
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
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import elpo
from elpo.cli import main
from elpo.rollout.faults import InfrastructureError
from elpo.tools.python import PythonTool
from elpo.training.checkpoint import Checkpoints, Position
from elpo.training.learner import Learner
from elpo.training.run_folder import Phase, RunFolder
from elpo.training.trainer import Interrupted, Result, train
from tests.coins import Coins, coins_config
from tests.training import killed_run
from tests.training.killed_run import Until

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden_run.json"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Result]:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    result = train(coins_config(folder))
    return RunFolder(folder), result


def timeless(folder: RunFolder) -> list[dict[str, Any]]:
    """The recorded metrics without those that a clock made."""
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "tool/seconds"))}
        for line in folder.read_metrics()
    ]


def assert_identical(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, whatever they are made of."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{where}[{i}]")
    else:
        assert a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)), where


def assert_same_run(run: RunFolder, expected: RunFolder) -> None:
    """Weights, optimizer, schedule, position, metrics and trees of two finished runs."""
    assert_identical(timeless(run), timeless(expected), "metrics")
    for which in ("last", "best"):
        ours, others = (Checkpoints(folder.checkpoints) for folder in (run, expected))
        a, b = ours.path(which), others.path(which)
        assert a is not None and b is not None and a.name == b.name
        assert_identical(ours.read(a), others.read(b), which)
        weights = [load_file(path / "model" / "model.safetensors") for path in (a, b)]
        assert_identical(*weights, which)
    phases: tuple[Phase, ...] = ("rl", "evaluation")
    for phase in phases:
        assert run.tree_steps(phase) == expected.tree_steps(phase)
        for step in run.tree_steps(phase):
            mine, theirs = run.read_trees(step, phase), expected.read_trees(step, phase)
            for (tree, _), (other, _) in zip(mine, theirs, strict=True):
                assert tree.outcomes == other.outcomes and tree.localizations == other.localizations
                for leaf in tree.leaves:
                    assert tree.context(leaf).tolist() == other.context(leaf).tolist()
    left = sorted(path.name for path in run.checkpoints.iterdir())
    assert left == sorted(path.name for path in expected.checkpoints.iterdir())


def test_the_run_is_one_worth_comparing(straight: tuple[RunFolder, Result]) -> None:
    steps = straight[0].read_metrics("rl")
    assert all(step["updates"] > 0 and step["tool/calls"] > 0 for step in steps[1:])
    assert sum(step["localization/searches"] for step in steps) > 0


def test_what_a_run_leaves_reads_back(
    straight: tuple[RunFolder, Result], capsys: pytest.CaptureFixture[str]
) -> None:
    run, result = straight
    assert run.config() == coins_config(run.path)
    assert [line["step"] for line in run.read_metrics("sft")] == list(range(1, 61))
    assert [line["step"] for line in run.read_metrics("rl")] == [1, 2, 3, 4]
    evaluations = run.read_metrics("evaluation")
    assert [line["step"] for line in evaluations] == [0, 2, 4]
    held_out = [line["success/heldout"] for line in evaluations]
    assert (result.success_before, result.success_after) == (held_out[0], held_out[-1])
    assert result.best_success == max(held_out)
    assert run.tree_steps() == [1, 2, 4]
    assert all(len(tree.outcomes) == 6 for step in (1, 2, 4) for tree, _ in run.read_trees(step))
    assert run.tree_steps("evaluation") == [0, 2, 4]
    held = {tuple(t.problem.id for t, _ in run.read_trees(step, "evaluation")) for step in (0, 2, 4)}
    assert held == {tuple(f"bag-{400 + i}" for i in range(4))}  # the same problems every time
    for which in ("last", "best"):
        path = Checkpoints(run.checkpoints).path(which)
        assert path is not None
        model = AutoModelForCausalLM.from_pretrained(path / "model")
        tokenizer = AutoTokenizer.from_pretrained(path / "model")
        prompt = tokenizer("Fill bag 7.", return_tensors="pt")["input_ids"]
        assert model.generate(prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt.shape[1]
        assert tokenizer.chat_template
    assert main(["plot", str(run.path)]) == 0
    assert (run.plots / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert main(["tree", str(run.path), "--text"]) == 0
    assert "bag.append(" in capsys.readouterr().out
    assert main(["eval", str(run.path), "evaluation.num_problems=3", "rollout.num_slots=2"]) == 0
    assert "pass@1" in capsys.readouterr().out


def test_tensorboard_shows_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    short = ("sft.num_steps=2", "rl.num_steps=1", "rl.problems_per_step=2", "run.tensorboard=true")
    train(coins_config(tmp_path / "run", *short))
    run = RunFolder(tmp_path / "run")
    for phase in ("sft", "rl", "evaluation"):
        events = EventAccumulator(str(run.tensorboard / phase)).Reload()
        for line in run.read_metrics(phase):
            for name in line.keys() - {"step", "phase"}:
                (value,) = [e.value for e in events.Scalars(name) if e.step == line["step"]]
                assert value == pytest.approx(line[name], rel=1e-6)


def test_the_same_seed_gives_the_same_run_and_another_one_another(
    straight: tuple[RunFolder, Result], tmp_path: Path
) -> None:
    train(coins_config(tmp_path / "same"))
    assert_same_run(RunFolder(tmp_path / "same"), straight[0])
    train(coins_config(tmp_path / "other", "run.seed=1", "rl.num_steps=1"))
    same = timeless(straight[0])
    other = timeless(RunFolder(tmp_path / "other"))
    assert [line["loss"] for line in other[:5]] != [line["loss"] for line in same[:5]]
    assert other[61] != same[61]


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
    environment = {**os.environ, "PYTHONPATH": f"{Path(elpo.__file__).parents[1]}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_run", str(run)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
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
    environment = {**os.environ, "PYTHONPATH": f"{Path(elpo.__file__).parents[1]}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)],
        env=environment,
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


def test_golden_numbers(straight: tuple[RunFolder, Result]) -> None:
    """Floats to 1e-4, which is more than instruction sets differ by; counts exactly."""
    lines = {(line["phase"], line["step"]): line for line in straight[0].read_metrics()}
    for expected in json.loads(GOLDEN.read_text())["lines"]:
        got = lines[expected["phase"], expected["step"]]
        for name, value in expected.items():
            where = (expected["phase"], expected["step"], name)
            if name in COUNTS:
                assert got[name] == value, where
            elif name not in ("phase", "step"):
                assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-7), where


COUNTS = {
    "success/heldout", "success/train", "rollouts/total", "tokens/sampled", "tokens/feedback", "tool/calls",
    "updates", "localization/searches", "engine/decode_steps", "engine/fed_tokens", "engine/reused_tokens",
}  # fmt: skip
FLOATS = {"loss", "entropy/mean", "grad/norm", "kl/approx", "clip/low_share", "clip/high_share", "lr"}


def regenerate_golden_numbers(folder: Path) -> None:
    """PYTHONPATH=src:. python -c "from tests.training.test_trainer import *;
    regenerate_golden_numbers(Path('/tmp/golden'))", after a change that is meant to change them.
    """
    train(coins_config(folder))
    kept = {("sft", 1), *(("sft", step) for step in range(10, 70, 10)), ("evaluation", 0), ("rl", 1)}
    lines = [
        {name: value for name, value in line.items() if name in COUNTS | FLOATS | {"phase", "step"}}
        for line in RunFolder(folder).read_metrics()
        if (line["phase"], line["step"]) in kept
    ]
    how = " ".join((regenerate_golden_numbers.__doc__ or "").split())
    GOLDEN.write_text(json.dumps({"regenerate": how, "lines": lines}, indent=1) + "\n")


def test_reinforcement_learning_learns(tmp_path: Path) -> None:
    config = coins_config(
        tmp_path / "run",
        "sft.num_steps=80",
        "rl.num_steps=12",
        "rl.problems_per_step=8",
        "rl.problems_per_minibatch=4",
        "algorithm.num_rollouts=8",
        "evaluation.every=0",
        "evaluation.num_problems=64",
    )
    result = train(config)
    assert 0.1 < result.success_before < 0.45  # the demonstrations put gold in both times in a quarter
    assert result.success_after > result.success_before + 0.4


@pytest.mark.parametrize("name", ["grpo", "elpo-no-bel", "elpo-no-elc"])
def test_every_kind_of_algorithm_runs(name: str, tmp_path: Path) -> None:
    train(coins_config(tmp_path / "run", f"algorithm.name={name}", "rl.num_steps=2", "evaluation.every=0"))
    steps = RunFolder(tmp_path / "run").read_metrics("rl")
    assert [step["rollouts/total"] for step in steps] == [24, 24]
    assert all(math.isfinite(step["loss"]) for step in steps)
    searches = sum(step["localization/searches"] for step in steps)
    assert (searches > 0) == (name == "elpo-no-elc")


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_task_that_fails_is_not_swallowed_and_closes_the_tools(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    close: Callable[[PythonTool], None] = PythonTool.close
    monkeypatch.setattr(PythonTool, "close", lambda self: (closed.append(True), close(self))[1])
    method = "grade" if stage == "rl" else "problems"

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("in the task")

    monkeypatch.setattr(Coins, method, broken)
    error = InfrastructureError if stage == "rl" else ZeroDivisionError  # each grading is a fault of its own
    with pytest.raises(error, match="in the task"):
        train(coins_config(tmp_path / "run", "sft.num_steps=2"))
    assert closed == [True]


@pytest.mark.parametrize(
    ("wanted", "limit", "steps"),
    [("auto", None, [1]), ("auto", -1.0, [1, 2, 3]), ("sampler", -1.0, []), ("recompute", None, [1, 2, 3])],
)
def test_old_log_probabilities_are_recomputed_where_the_sampler_is_not_known_to_agree(
    wanted: str, limit: float | None, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        monkeypatch.setattr("elpo.training.trainer.MAX_SAMPLER_DIFFERENCE", limit)
    recomputed: list[int] = []
    folder = RunFolder(tmp_path / "run")
    score: Callable[..., Any] = Learner.logprobs

    def watched(self: Learner, parts: Any) -> Any:
        recomputed.append(len(folder.read_metrics("rl")) + 1)
        return score(self, parts)

    monkeypatch.setattr(Learner, "logprobs", watched)
    train(coins_config(folder.path, "rl.num_steps=3", "evaluation.every=0", f"rl.old_logprobs={wanted}"))
    assert recomputed == steps
    assert all(
        line["logprob/sampler_difference"] < 1e-5 for line in folder.read_metrics("rl") if line["updates"]
    )


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
