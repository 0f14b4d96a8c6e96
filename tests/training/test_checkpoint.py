"""Checkpoints that are damaged, or cannot be written: a clear message, and the one before still works."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from elpo.models.tiny import train_tokenizer
from elpo.training.checkpoint import CheckpointError, Checkpoints, Position
from elpo.training.learner import Learner
from elpo.training.run_folder import RunFolder
from elpo.training.trainer import train
from tests.coins import Coins, CoinsOptions, coins_config
from tests.training.small import small_learner, small_model
from tests.training.test_learner import rows

TOKENIZER = train_tokenizer(Coins(CoinsOptions()).demonstrations(20, seed=0))

SHORT = ("sft.num_steps=2", "rl.num_steps=2", "rl.problems_per_step=2", "evaluation.every=0")


def trained() -> tuple[Any, Learner]:
    model = small_model()
    learner = small_learner(model, warmup_steps=5)
    token_ids, sampled = rows()
    learner.update([-learner.scorer(token_ids, sampled)[0].sum()])
    return model, learner


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """One of step 1, which is the best, and one of step 2, which is the last."""
    model, learner = trained()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(Position("rl", step, 0.5), model, TOKENIZER, learner, best=step == 1)
    return checkpoints


def last(checkpoints: Checkpoints) -> Path:
    path = checkpoints.path("last")
    assert path is not None
    return path


def test_what_is_kept(checkpoints: Checkpoints) -> None:
    model, learner = trained()
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["index.json", "rl-000001", "rl-000002"]
    assert [getattr(checkpoints.path(w), "name", None) for w in ("last", "best")] == [
        "rl-000002",
        "rl-000001",
    ]
    checkpoints.save(Position("rl", 3, 0.7), model, TOKENIZER, learner, best=True)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["index.json", "rl-000003"]
    assert Checkpoints(checkpoints.folder / "none").path("last") is None


def test_optimizer_and_schedule_come_back(checkpoints: Checkpoints) -> None:
    _, learner = trained()
    state = checkpoints.read(last(checkpoints))
    assert Position(**state["position"]) == Position("rl", 2, 0.5)
    other = small_learner(small_model(), warmup_steps=5)
    Checkpoints.restore(state, other)
    assert other.learning_rate == learner.learning_rate == pytest.approx(1e-2 * 2 / 5)
    mine, theirs = other.optimizer.state_dict()["state"], learner.optimizer.state_dict()["state"]
    assert mine.keys() == theirs.keys() and mine
    for i in mine:
        for name in mine[i]:
            assert torch.equal(mine[i][name], theirs[i][name])


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[: int(len(data) * keep)])

    return damage


def without(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def of_another_format(path: Path) -> None:
    state = torch.load(path / "training_state.pt", weights_only=True)
    torch.save(state | {"format": 99}, path / "training_state.pt")


def executable_pickle(path: Path) -> None:
    torch.save({"format": 1, "position": Position("rl", 2)}, path / "training_state.pt")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "state cut": (cut("training_state.pt", 0.6), ""),
    "state empty": (cut("training_state.pt", 0), ""),
    "state missing": (without("training_state.pt"), "No such file"),
    "another format": (of_another_format, "format 99, this version reads 2"),
    "code in the state": (executable_pickle, "Weights only load failed"),
    "weights cut": (cut("model/model.safetensors", 0.9), "model.safetensors is damaged"),
    "weights empty": (cut("model/model.safetensors", 0), "model.safetensors is damaged"),
    "weights missing": (without("model/model.safetensors"), "holds no weights"),
    "configuration missing": (without("model/config.json"), "has no config.json"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_names_itself_and_the_remedy(
    checkpoints: Checkpoints, damage: Callable[[Path], None], reason: str
) -> None:
    path = last(checkpoints)
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.read(path)
    message = str(caught.value)
    assert message.startswith(f"the checkpoint {path} is damaged (")
    assert reason in message
    assert f"edit {checkpoints.folder / 'index.json'} to continue from rl-000001" in message
    assert "\n" not in message
    checkpoints.index.write_text('{"last": "rl-000001", "best": "rl-000001"}')  # the remedy works
    assert checkpoints.read(last(checkpoints))["position"]["step"] == 1


def test_the_only_checkpoint_damaged(checkpoints: Checkpoints) -> None:
    model, learner = trained()
    checkpoints.save(Position("rl", 3), model, TOKENIZER, learner, best=True)
    (checkpoints.folder / ".rl-000004.draft").mkdir()  # what a killed run was writing is no alternative
    without("training_state.pt")(last(checkpoints))
    with pytest.raises(CheckpointError, match=r"; start again with --overwrite$"):
        checkpoints.read(last(checkpoints))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"last": 5, "best": null}', '{"best": "x"}'])
def test_a_damaged_index_lists_what_there_is(checkpoints: Checkpoints, text: str) -> None:
    checkpoints.index.write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged .*: rl-000001, rl-000002$"):
        checkpoints.path("last")


def test_an_index_that_names_no_folder(checkpoints: Checkpoints) -> None:
    checkpoints.index.write_text('{"last": "rl-000009", "best": "rl-000001"}')
    with pytest.raises(CheckpointError, match=r"rl-000009 is damaged \(.*to continue from rl-000002"):
        checkpoints.read(last(checkpoints))


@contextmanager
def files_up_to(num_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond `num_bytes`: a full disk, for every library alike."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def assert_intact(checkpoints: Checkpoints) -> None:
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["index.json", "rl-000001", "rl-000002"]
    assert json.loads(checkpoints.index.read_text()) == {"last": "rl-000002", "best": "rl-000001"}
    assert checkpoints.read(last(checkpoints))["position"]["step"] == 2


@pytest.mark.parametrize(
    ("num_bytes", "what"), [(400, "configuration"), (3_000, "weights"), (26_000, "state")]
)
def test_a_full_disk_leaves_earlier_checkpoints_intact(
    checkpoints: Checkpoints, num_bytes: int, what: str
) -> None:
    model, learner = trained()
    with files_up_to(num_bytes), pytest.raises(CheckpointError) as caught:
        checkpoints.save(Position("rl", 3), model, TOKENIZER, learner, best=True)
    assert f"cannot write the checkpoint {checkpoints.folder / 'rl-000003'}" in str(caught.value)
    assert "free some space" in str(caught.value)
    assert_intact(checkpoints)
    checkpoints.save(Position("rl", 3), model, TOKENIZER, learner, best=True)
    assert checkpoints.read(last(checkpoints))["position"]["step"] == 3


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")]
)
def test_a_disk_that_fills_up_at_the_very_end(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", full)
    model, learner = trained()
    with pytest.raises(CheckpointError, match="free some space"):
        checkpoints.save(Position("rl", 3), model, TOKENIZER, learner)
    assert_intact(checkpoints)


def test_a_run_on_a_full_disk_continues_from_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = coins_config(tmp_path / "run", *SHORT)
    save = torch.save
    num_saved = 0

    def full_in_the_first_step(state: Any, path: Path) -> None:
        nonlocal num_saved
        num_saved += 1
        if num_saved > 2:  # the end of the cold start, the start of RL
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full_in_the_first_step)
    with pytest.raises(CheckpointError, match=r"rl-000001: .*No space left.*--resume"):
        train(config)
    monkeypatch.undo()
    folder = RunFolder(tmp_path / "run")
    assert last(Checkpoints(folder.checkpoints)).name == "rl-000000"
    train(config, resume=True)
    train(coins_config(tmp_path / "straight", *SHORT))
    losses = [
        [line["loss"] for line in RunFolder(tmp_path / run).read_metrics("rl")] for run in ("run", "straight")
    ]
    assert losses[0] == losses[1]


def test_writing_shows_no_progress_bar(checkpoints: Checkpoints, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    model, learner = trained()
    capfd.readouterr()
    checkpoints.save(Position("rl", 3), model, TOKENIZER, learner)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()
