"""The processes of a run: which trees are whose, and what they must know of each other.

A tree is grown and trained on by one process, so the rounds of a search never wait for another process. What
all must agree on (normalisers, metrics, when to stop) is exchanged between steps, by every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class ProcessFailed(RuntimeError):
    """Work that all processes were to do has failed in another one; the message says which and why."""


class ProcessLost(ProcessFailed):
    """Another process has ended, or has not answered for hours; nothing can be agreed on any more."""


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
        """The value of every process, by rank. Waits for all of them.

        Raises:
            ProcessLost: one of them has ended.
        """
        if self.num == 1:
            return [value]
        import torch.distributed

        values: list[T | None] = [None] * self.num
        try:
            torch.distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise ProcessLost(
                f"process {self.rank} of {self.num} has lost another one, whose own error says why "
                f"({str(error).splitlines()[0]}); continue from the last checkpoint with --resume"
            ) from error
        return values  # type: ignore[return-value]  # all are filled

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives here, once it has been done by every process; that of one waits for no other's.

        Raises:
            ProcessFailed: it failed elsewhere, so that all go on alike. What it raises here is raised here.
        """
        failure: Exception | None = None
        try:
            value = work()
        except Exception as error:
            failure = error
        found = self.every(failure and f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, message in enumerate(found):
            if message is not None:
                raise ProcessFailed(f"process {rank} of {self.num} failed: {message}")
        return value

    def wait(self) -> None:
        """Until every process is here."""
        self.every(None)
