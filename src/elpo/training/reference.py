"""The policy that RL began with, to measure how far training has gone from it.

It lives in the model itself: its weights are exchanged for the reference's while tokens are scored, so that
one more copy of the trained weights is all it takes, with adapters as without, sharded as whole, and that
both are computed in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elpo.packing import MicroBatch
from elpo.training.learner import Learner


class Reference:
    """The trained weights of a learner as they are now."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._weights = [weight.detach().clone() for weight in self._trained()]

    @classmethod
    def kept(cls, learner: Learner, file: Path, begin: bool) -> Reference:
        """The reference of a run: as it is now where RL begins, else as it was then.

        Every process calls this. `file` holds the weights put together, for any number of processes.

        Raises:
            ValueError: the file is missing or damaged.
        """
        reference = cls(learner)
        if begin:
            state = learner.trained_weights()
            if learner.processes.is_main:
                draft = file.with_name(f".{file.name}.draft")
                torch.save(state, draft)
                os.replace(draft, file)
        else:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # pickle, zip and the file system each raise their own
                raise ValueError(
                    f"{file}, the policy that RL began with, cannot be read; put it back, or start again "
                    "with --overwrite: algorithm.loss.kl_weight needs it"
                ) from error
            reference._read(state)
        learner.processes.wait()
        return reference

    def logprobs(self, parts: Sequence[MicroBatch]) -> list[Tensor]:
        """What the reference says of the sampled tokens of each part, as `Learner.logprobs`."""
        with self._in_place():
            return self._learner.logprobs(parts)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """While this lasts the model is the reference."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        self._learner.reshard()
        with torch.no_grad():
            for ours, theirs in zip(self._trained(), self._weights, strict=True):
                before = ours.clone()
                ours.copy_(theirs)
                theirs.copy_(before)

    def _read(self, state: dict[str, Any]) -> None:
        """Take the weights from a file, by way of the model."""
        with self._in_place():
            self._learner.load_trained_weights(state)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self._learner.scorer.parameters() if weight.requires_grad]
