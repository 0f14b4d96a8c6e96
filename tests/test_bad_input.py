"""What can be wrong with a run's input, through the command line: one message, before a model is built."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from elpo.cli import main
from elpo.tasks.tool_turns import PYTHON_SCHEMA
from elpo.training import assembly
from elpo.training.run_folder import RunFolder
from tests.coins import SETTINGS, Coins, CoinsOptions


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ELPO_TRACEBACK", raising=False)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where a model is loaded or built."""

    def load_model(*_: Any) -> None:
        raise AssertionError("the mistake was not found before a model was loaded")

    monkeypatch.setattr(assembly, "load_model", load_model)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy tiny model."""
    from elpo.config import TinyModelConfig
    from elpo.models.tiny import build_tiny

    folder = tmp_path_factory.mktemp("model") / "healthy"
    config = TinyModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=64)
    model, tokenizer = build_tiny(Coins(CoinsOptions()).demonstrations(50, seed=0), config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_mistyped_run_folder_is_not_looked_for_on_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/config.yaml").write_text("")
    for command in ("eval", "serve-model"):
        assert main([command, "runs/tny"]) == 2
        assert "there is no folder runs/tny; did you mean 'runs/tiny'?" in capsys.readouterr().err


@pytest.fixture
def copied(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def train(*overrides: str) -> int:
    return main(["train", *SETTINGS, "run.dir=run", "sft.num_steps=0", "rl.num_steps=1", *overrides])


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["rl.num_stepz=3"], ["unknown key rl.num_stepz", "did you mean 'num_steps'"]),
        (["rll.num_steps=3"], ["unknown key rll", "did you mean 'rl'"]),
        (["rl.num_steps=x", "sft.batch_size=0"], ["rl.num_steps is 'x'", "sft.batch_size is 0"]),
        (["algorithm.name=elppo"], ["there is no algorithm 'elppo'", "did you mean 'elpo'"]),
        (["algorithm.strategy.name=bell"], ["algorithm.strategy.name is 'bell'", "did you mean 'bel'"]),
        (["task.name=legder"], ["task.name: there is no task 'legder'", "did you mean 'ledger'"]),
        (["task.name=nowhere.tasks:Maths"], ["'nowhere.tasks:Maths' cannot be loaded", "No module named"]),
        (["task.name=tests.coins:Coin"], ["'tests.coins:Coin' cannot be loaded", "Coin"]),
        (["task.name=tests.coins:coins_config"], ["'tests.coins:coins_config' cannot be loaded", "Options"]),
        (
            ["task.name=ledger", "task.options={min_line: 4}"],
            ["task.options.min_line", "did you mean 'min_lines'"],
        ),
        (
            ["task.name=ledger", "task.options={min_lines: 9, max_lines: 4}"],
            ["task.options: ", "min_lines 9 is above max_lines 4"],
        ),
        (
            ["task.name=ledger", "task.options={hard_verbs: [eats]}"],
            ["hard_verbs ['eats'] are unknown", "finds"],
        ),
        (["model.path=./nowhere"], ["model.path: there is no folder ./nowhere"]),
        (["python.preload=[nowhere]"], ["nowhere"]),
        (["run.dir=file/run"], ["cannot write file/run", "choose another run.dir"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_in_the_settings(
    overrides: list[str], messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert train(*overrides) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err
    for message in messages:
        assert message in err
    assert not Path("run").exists()  # so that the mended command can be given as it is


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_half_the_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def without_one_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def without_a_chat_template(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)


def without_tool_messages(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_weights, "holds no weights"),
        (without_configuration, "has no config.json"),
        (with_half_the_weights, "model.safetensors is damaged"),
        (without_one_shard, "lacks model-00002-of-00002.safetensors"),
        (without_a_chat_template, "the tokenizer has no chat template"),
        (without_tool_messages, "does not render tool messages"),
    ],
)
def test_model_folders_that_cannot_be_used(
    damage: Callable[[Path], None],
    message: str,
    command: str,
    copied: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(copied)
    if command == "train":
        assert train("model.path=model") == 2
    else:
        assert main(["eval", "./model", *SETTINGS]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ") and message in err
    assert not Path("run").exists()


def test_a_healthy_folder_is_taken_wherever_it_is(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(copied.parent))
    for i, path in enumerate(("model", "~/model")):
        assert train(f"model.path={path}", f"run.dir=run{i}", "rl.num_steps=0") == 0, capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["train", "eval"])
def test_cuda_without_cuda(command: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if command == "train":
        assert train("run.device=cuda") == 2
    else:
        assert main(["eval", str(copied), *SETTINGS, "run.device=cuda"]) == 2
    assert (
        "run.device is cuda, but torch finds no CUDA device here; use auto or cpu" in capsys.readouterr().err
    )
    assert not Path("run").exists()


class Bare(Coins):
    """A task without demonstrations."""

    name = "bare"
    demonstrations = property()  # type: ignore[assignment]  # of which hasattr says no


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["sft.num_steps=2"], "set sft.num_steps=0"), ([], "set model.path")],
)
def test_a_task_without_demonstrations(
    overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"task.name={__name__}:Bare", *overrides) == 2
    err = capsys.readouterr().err
    assert "task 'bare' has no demonstrations" in err and message in err


class Hanging(Coins):
    """Every call of the demonstrations sleeps for ever."""

    name = "hanging"

    def _demonstration(self, rng: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "python", "arguments": {"code": "bag.wait(3)"}}}
        user = self.problem(rng.randrange(100, 1000)).messages[0]
        turn = {"role": "assistant", "content": "next", "tool_calls": [call]}
        answer = {"role": "tool", "name": "python", "content": "stopped"}
        end = {"role": "assistant", "content": "full"}
        return {"messages": [user, turn, answer, end], "tools": [PYTHON_SCHEMA]}

    def problem(self, number: int) -> Any:
        problem = super().problem(number)
        setup = "import time\nclass Bag:\n def wait(self, n):\n  time.sleep(1000)\nbag = Bag()"
        object.__setattr__(problem, "metadata", {"python_setup": setup})
        return problem


def test_a_tool_that_hangs_is_feedback_and_the_run_goes_on() -> None:
    settings = (
        f"task.name={__name__}:Hanging",
        "python.timeout=0.1",
        "sft.num_steps=60",
        "rl.num_steps=1",
        "rl.problems_per_step=2",
        "evaluation.num_problems=1",
        "run.trees_every=1",
    )
    assert train(*settings) == 0
    run = RunFolder("run")
    (step,) = run.read_metrics("rl")
    assert step["rollouts/total"] == 12 and step["faults/count"] == 0
    assert step["tool/calls"] > 0
    results = [n.step.tool_result for tree, _ in run.read_trees(1) for n in tree.nodes]
    stopped = [result for result in results if result is not None and result.status == "timeout"]
    assert stopped and all("0.1" in result.output for result in stopped)


@pytest.mark.parametrize("scale", [1.0, 1000.0, math.nan], ids=["random", "certain", "broken"])
def test_a_model_that_writes_garbage_is_graded_like_any_other(scale: float, copied: Path) -> None:
    """Untrained, certain of nonsense, or with weights that are not even numbers: outcomes, no exception."""
    model = AutoModelForCausalLM.from_pretrained(copied)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    model.save_pretrained(copied)
    assert train("model.path=model", "rl.num_steps=2", "run.trees_every=1") == 0
    run = RunFolder("run")
    for step in run.read_metrics("rl"):
        assert step["rollouts/total"] == 24 and step["success/train"] == 0
        assert step["updates"] == 0 and step["loss"] == 0  # all failed alike: nothing to learn
    for tree, credit in run.read_trees(2):
        assert len(tree.outcomes) == 6 and not any(outcome.correct for outcome in tree.outcomes.values())
        assert credit is not None and not credit.advantages.any()


class Lottery(Coins):
    """Rewards that have nothing to do with what was written, so that there is always a gradient."""

    name = "lottery"
    num_graded = 0

    def grade(self, problem: Any, steps: Any, stop: Any) -> Any:
        outcome = super().grade(problem, steps, stop)
        correct = int(sum(int(step.token_ids.sum()) for step in steps)) % 2 == 0
        object.__setattr__(outcome, "correct", correct)
        object.__setattr__(outcome, "reward", float(correct))
        return outcome


def test_a_gradient_that_is_not_finite_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """One update of many is poisoned; the run ends with finite weights and says so in its metrics."""
    from elpo.training.learner import Learner

    update: Callable[..., float] = Learner.update
    norms: list[float] = []

    def poisoned(self: Learner, losses: Any, num: int) -> float:
        factor = math.nan if len(norms) == 2 else 1.0
        norms.append(update(self, (loss * factor for loss in losses), num))
        return norms[-1]

    monkeypatch.setattr(Learner, "update", poisoned)
    assert train(f"task.name={__name__}:Lottery", "rl.num_steps=3") == 0
    assert [math.isfinite(norm) for norm in norms[:4]] == [True, True, False, True]
    run = RunFolder("run")
    shares = [math.isfinite(step["grad/norm"]) for step in run.read_metrics("rl")]
    assert shares.count(False) == 1
    index = json.loads((run.checkpoints / "index.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(run.checkpoints / index["last"] / "model")
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_damaged_checkpoint_stops_the_resumed_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    run = RunFolder("run")
    index = json.loads((run.checkpoints / "index.json").read_text())
    (run.checkpoints / index["last"] / "training_state.pt").write_bytes(b"nonsense")
    before = run.metrics_file.read_bytes()
    assert main(["train", "run", "--resume"]) == 2
    err = capsys.readouterr().err
    assert "is damaged" in err and index["last"] in err
    assert run.metrics_file.read_bytes() == before


def test_a_mistake_does_not_delete_the_run_that_overwrite_would_replace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train() == 0
    before = RunFolder("run").metrics_file.read_bytes()
    argv = ["train", "run", "--overwrite", "model.path=./nowhere"]
    assert main(argv) == 2
    assert "there is no folder ./nowhere" in capsys.readouterr().err
    assert RunFolder("run").metrics_file.read_bytes() == before
