"""What growing trees has cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from elpo.types import ToolStatus


@dataclass
class RolloutCounts:
    """Sums over some trees. `rollouts` counts every draw, unusable ones included."""

    rollouts: int = 0
    faults: int = 0  # unusable rollouts, whether a tool or the grader failed
    grader_faults: int = 0
    turns: int = 0
    sampled_tokens: int = 0
    tool_calls: int = 0
    tool_seconds: float = 0.0
    statuses: dict[ToolStatus, int] = field(default_factory=dict)

    def __add__(self, other: RolloutCounts) -> RolloutCounts:
        sums = {name: v + getattr(other, name) for name, v in vars(self).items() if name != "statuses"}
        keys = {**self.statuses, **other.statuses}
        statuses = {key: self.statuses.get(key, 0) + other.statuses.get(key, 0) for key in keys}
        return RolloutCounts(**sums, statuses=statuses)
