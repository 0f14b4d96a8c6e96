"""Requests of many threads, one engine: a decode thread keeps the batch full of whatever is asked."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from itertools import count

from elpo.interfaces import Engine, InfrastructureFault, Turn, TurnRequest


class BatchedEngine:
    """An `elpo.interfaces.Engine` for single turns, usable from any number of threads.

    Each turn is a rollout of its own; turns of one `group` may share prefixes, which the engine keeps as
    long as its cache has room.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[TurnRequest | int | None] = queue.SimpleQueue()
        self._asked: dict[int, Future[Turn]] = {}
        self._numbers = count()
        self._thread = threading.Thread(target=self._decode, name="elpo-decode", daemon=True)
        self._thread.start()

    def sample(self, request: TurnRequest) -> tuple[int, Future[Turn]]:
        """Queue one turn; its number, for `cancel`, and its future. `request.rollout` is of no account.

        Raises:
            InfrastructureFault: we are closed.
        """
        if not self._thread.is_alive():
            raise InfrastructureFault("the server is shut down")
        number = next(self._numbers)
        future: Future[Turn] = Future()
        self._asked[number] = future
        named = TurnRequest(**{**vars(request), "rollout": number})
        self._inbox.put(named)
        return number, future

    def cancel(self, number: int) -> None:
        """Nobody waits for this turn any more; its place is freed."""
        self._inbox.put(number)

    def close(self) -> None:
        """End the thread. Turns that are not finished fail."""
        self._inbox.put(None)
        self._thread.join()

    def _decode(self) -> None:
        live: set[int] = set()
        while True:
            while not live or not self._inbox.empty():
                message = self._inbox.get()
                if message is None:
                    self._fail(list(self._asked), InfrastructureFault("the server is shutting down"))
                    return
                if isinstance(message, TurnRequest):
                    live.add(message.rollout)
                    self._engine.submit(message)
                elif message in live:
                    live.discard(message)
                    self._engine.release(message)
                    self._asked.pop(message).cancel()
            try:
                turns = self._engine.step()
            except Exception as error:  # whatever the device says: those who wait must hear of it
                for number in live:
                    self._engine.release(number)
                self._fail(live, error)
                live.clear()
                continue
            for turn in turns:
                live.discard(turn.rollout)
                self._engine.release(turn.rollout)
                self._asked.pop(turn.rollout).set_result(turn)

    def _fail(self, numbers: list[int] | set[int], error: Exception) -> None:
        for number in numbers:
            self._asked.pop(number).set_exception(error)
