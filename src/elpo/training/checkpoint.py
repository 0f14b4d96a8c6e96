"""Checkpoints that a run continues from exactly: weights, optimizer, schedule, position.

A checkpoint is a folder: `model/` is an ordinary Hugging Face model folder, `training_state.pt` the rest.
It is written beside its final name and renamed, so a killed run never leaves half of one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from elpo.training.learner import Learner
from elpo.training.model_folder import check_model_folder
from elpo.training.run_folder import Phase

FORMAT = 2


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the message names it and the remedy."""


@dataclass(frozen=True)
class Position:
    """How far a run is: `step` steps of `phase` are done."""

    phase: Phase
    step: int
    best_success: float = -1.0
    sampler_difference: float | None = None  # nats, mean over tokens, as last measured

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.phase}-{self.step:06d}"


class Checkpoints:
    """The `checkpoints` folder of a run. Keeps the last checkpoint and the best."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index.json"

    def save(
        self, position: Position, model: Any, tokenizer: Any, learner: Learner, best: bool = False
    ) -> Path:
        """Write a checkpoint, make it the last (and the best), drop what is neither.

        Every process calls this; what is sharded is put together, and the main process writes.

        Raises:
            CheckpointError: it cannot be written; earlier checkpoints are untouched.
        """
        state = {
            "format": FORMAT,
            "position": asdict(position),
            "optimizer": learner.optimizer_state(),
            "scheduler": learner.scheduler.state_dict(),
        }
        weights = learner.full_weights()
        if learner.processes.is_main:
            self._write(position, model, weights, tokenizer, state, best)
        learner.processes.wait()
        return self.folder / position.name

    def _write(
        self,
        position: Position,
        model: Any,
        weights: dict[str, Any] | None,
        tokenizer: Any,
        state: dict[str, Any],
        best: bool,
    ) -> None:
        path = self.folder / position.name
        draft = self.folder / f".{position.name}.draft"
        names = {"last": position.name, "best": position.name if best else self._names()["best"]}
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            with _no_progress_bars():
                model.save_pretrained(draft / "model", state_dict=weights)
            tokenizer.save_pretrained(draft / "model")
            torch.save(state, draft / "training_state.pt")
            shutil.rmtree(path, ignore_errors=True)
            draft.rename(path)
            index = self.folder / ".index.draft"
            index.write_text(json.dumps(names))
            index.replace(self.index)
        except Exception as error:  # safetensors, tokenizers and torch each raise their own on a full disk
            shutil.rmtree(draft, ignore_errors=True)
            raise CheckpointError(
                f"cannot write the checkpoint {path}: {error}; free some space, or make "
                "it writable, and continue with --resume; earlier checkpoints are intact"
            ) from error
        for other in self.folder.iterdir():
            if other.is_dir() and other.name not in names.values():
                shutil.rmtree(other, ignore_errors=True)

    def path(self, which: str = "last") -> Path | None:
        """The folder of the "last" or "best" checkpoint, or None where there is none yet."""
        name = self._names()[which]
        return self.folder / name if name else None

    def read(self, path: Path) -> dict[str, Any]:
        """The training state of a checkpoint.

        Raises:
            CheckpointError: it is missing, damaged, or of another format.
        """
        try:
            state = torch.load(path / "training_state.pt", map_location="cpu", weights_only=True)
            if state["format"] != FORMAT:
                raise ValueError(f"format {state['format']}, this version reads {FORMAT}")
            check_model_folder(path / "model")
        except Exception as error:  # torch.load raises almost anything on a damaged file
            others = [name for name in self._found() if name != path.name]
            remedy = f"edit {self.index} to continue from {others[-1]}, or " if others else ""
            remedy += "start again with --overwrite"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"the checkpoint {path} is damaged ({reason}); {remedy}") from error
        return dict(state)

    @staticmethod
    def restore(state: dict[str, Any], learner: Learner) -> None:
        """Put optimizer and schedule back; the weights come with the model folder."""
        learner.load_optimizer_state(state["optimizer"])
        learner.scheduler.load_state_dict(state["scheduler"])

    def _names(self) -> dict[str, str | None]:
        """What the index says: the folder names of the last and the best checkpoint."""
        if not self.index.exists():
            return {"last": None, "best": None}
        try:
            names = json.loads(self.index.read_text())
            names = {which: names[which] for which in ("last", "best")}
            if not all(name is None or isinstance(name, str) for name in names.values()):
                raise TypeError(f"it says {names}")
        except (ValueError, TypeError, KeyError) as error:
            found = ", ".join(self._found()) or "none"
            raise CheckpointError(
                f"{self.index} is damaged ({error}); write "
                f'{{"last": "NAME", "best": "NAME"}} into it, with one of the folders beside it: {found}'
            ) from error
        return names

    def _found(self) -> list[str]:
        """Names of the checkpoint folders there are, in the course of the run."""
        found = [p.name for p in self.folder.glob("[!.]*-*") if p.is_dir()]
        return sorted(found, key=lambda name: (not name.startswith("sft"), name))


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Writing a checkpoint is not worth a progress bar in the middle of another one."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
