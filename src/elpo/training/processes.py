"""The processes of a run: which trees are whose, and what they must know of each other.

A tree is grown and trained on by one process, so the rounds of a search never wait for another process. What
all must agree on (normalisers, metrics, when to stop) is exchanged between steps, by every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process and how many there are. With one of them nothing is exchanged."""

    rank: int = 0
    num: int = 1

    @property
    def is_main(self) -> bool:
        """True for the one that writes the run folder."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of `items`: every `num`-th, so that any slice of them is shared evenly."""
        return list(items[self.rank :: self.num])

    def position(self, index: int) -> int:
        """Where the `index`-th item of this process's share stands among all.

        >>> Processes(1, 3).share("abcdefg"), Processes(1, 3).position(1)
        (['b', 'e'], 4)
        """
        return self.rank + index * self.num

    def gather(self, share: Sequence[T]) -> list[T]:
        """All items in their order, from the share of every process."""
        shares = self.every(list(share))
        return [shares[i % self.num][i // self.num] for i in range(sum(map(len, shares)))]

    def every(self, value: T) -> list[T]:
        """The value of every process, by rank. Waits for all of them."""
        if self.num == 1:
            return [value]
        import torch.distributed

        values: list[T | None] = [None] * self.num
        torch.distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # all are filled

    def wait(self) -> None:
        """Until every process is here."""
        self.every(None)
