"""Which endpoint is asked for what, and how much of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from elpo.chat import ChatPolicy
from elpo.endpoints.account import Account, Spending
from elpo.endpoints.journal import Journal, KeptPolicy
from elpo.endpoints.openai import Endpoint, Retries


@dataclass(frozen=True)
class Connection:
    """A model behind an endpoint. The key is never stored."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 16  # requests at the same time
    retries: Retries = field(default_factory=Retries)
    spending: Spending = field(default_factory=Spending)
    omit: tuple[str, ...] = ()  # see `Endpoint`

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"a concurrency of {self.concurrency}: use 1 or more")
        self.open()  # what is wrong is said now

    def open(self) -> Endpoint:
        """A client."""
        return Endpoint(self.url, self.api_key, self.retries, self.omit)


@contextmanager
def kept(policy: ChatPolicy, journal: Path, spending: Spending) -> Iterator[KeptPolicy]:
    """`policy` with everything it says kept in `journal` and paid from one account."""
    keeper = KeptPolicy(policy, Journal(journal), Account(spending))
    try:
        yield keeper
    finally:
        keeper.close()
