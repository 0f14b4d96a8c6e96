"""Ctrl-C in a run: the first lets the step finish and saves it, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from elpo.training.processes import Processes
from elpo.training.progress import Progress


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; a checkpoint of the last finished step was written."""


class Interruption:
    """Whether a run is to stop after its step: `stopping` is what all processes have agreed on."""

    def __init__(self, processes: Processes, progress: Progress) -> None:
        self.stopping = False
        self._asked = False  # by this process's user
        self._processes = processes
        self._progress = progress

    def agree(self) -> None:
        """After a step: all stop if one of them was asked to. Every process calls this."""
        self.stopping = any(self._processes.every(self._asked))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts Ctrl-C is a request. Only the main thread can watch for it; others do not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True
            self.stopping = self.stopping or self._processes.num == 1
            self._progress.note("stopping after this step; press Ctrl-C again to stop at once")

        previous = signal.signal(signal.SIGINT, ask_to_stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
