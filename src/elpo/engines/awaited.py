"""An engine whose turns are answered elsewhere, one future each: servers and other people's clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import FIRST_COMPLETED, Future, wait

from elpo.interfaces import EngineCounts, Turn, TurnRequest

PATIENCE = 0.02  # seconds that a step waits for a turn to end before the tools get a look


class AwaitedEngine(ABC):
    """An `elpo.interfaces.Engine`; a subclass says how a turn is asked for.

    A decode step cannot be seen from here: `counts.decode_steps` stays 0, and so does the occupancy.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.counts = EngineCounts()
        self._waiting: dict[Future[Turn], TurnRequest] = {}

    @abstractmethod
    def ask(self, request: TurnRequest) -> Future[Turn]:
        """Start one turn; the future fails where the turn does."""

    def submit(self, request: TurnRequest) -> None:
        """Start one turn."""
        self._waiting[self.ask(request)] = request

    def step(self) -> list[Turn]:
        """The turns that have ended, after a short wait for the first; raises what a turn failed with."""
        if not self._waiting:
            return []
        done, _ = wait(self._waiting, PATIENCE, FIRST_COMPLETED)
        turns = []
        for future in done:
            request = self._waiting.pop(future)
            turn = future.result()
            self.counts.decoded_tokens += len(turn.token_ids)
            self.counts.fed_tokens += len(request.token_ids)  # how much of it was cached is not known
            turns.append(turn)
        return sorted(turns, key=lambda turn: turn.rollout)

    def release(self, rollout: int) -> None:
        """The rollout is over; an answer that is still on its way is not waited for."""
        for future in [f for f, request in self._waiting.items() if request.rollout == rollout]:
            future.cancel()
            del self._waiting[future]

    def forget(self, group: int) -> None:  # noqa: B027
        """Nothing is kept here; who answers drops old prefixes when it needs their room."""
