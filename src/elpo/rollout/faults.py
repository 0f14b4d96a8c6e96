"""How often the infrastructure fails, and when that is too often to go on."""

from __future__ import annotations

import warnings
from collections import deque

MAX_FAULT_SHARE = 0.1
MIN_EVENTS_TO_JUDGE = 100
MIN_EVENTS_IF_NONE_WENT_WELL = 24
_WINDOW = 500


class InfrastructureError(RuntimeError):
    """Tools or grader fail by themselves so often that training on what is left would be meaningless."""


class FaultMeter:
    """The share of faults among the latest events of one kind, over all that a scheduler does."""

    def __init__(self, what: str) -> None:
        """`what` happened, in the plural: "tool calls"."""
        self._what = what
        self._latest: deque[bool] = deque(maxlen=_WINDOW)

    def record(self, fault: str | None) -> None:
        """Count an event that went well (None), or say how it failed.

        Raises:
            InfrastructureError: more than `MAX_FAULT_SHARE` of the latest events, at least
                `MIN_EVENTS_TO_JUDGE`, were faults; or the first `MIN_EVENTS_IF_NONE_WENT_WELL` of them all.
        """
        if fault is not None and not any(self._latest):
            warnings.warn(
                f"lost to a fault (the first of {self._what}): {fault}", RuntimeWarning, stacklevel=2
            )
        self._latest.append(fault is not None)
        faults, events = sum(self._latest), len(self._latest)
        enough = MIN_EVENTS_IF_NONE_WENT_WELL if faults == events else MIN_EVENTS_TO_JUDGE
        if fault is not None and events >= enough and faults > MAX_FAULT_SHARE * events:
            raise InfrastructureError(
                f"{faults} of the last {events} {self._what} were infrastructure faults, more than "
                f"{MAX_FAULT_SHARE:.0%}; repair this before going on. The latest: {fault}"
            )
