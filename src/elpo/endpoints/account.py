"""What may be spent on an endpoint. Money and tokens are reserved before a request, so no limit is passed."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass

from elpo.chat import ChatRequest, Completion

_MILLION = 1_000_000


class LimitReached(RuntimeError):
    """The next request might cost more than is left. No fault of anyone; what was drawn is kept."""


@dataclass(frozen=True)
class Spending:
    """Limits and prices; None is no limit. Prices are per million tokens, in any one currency."""

    max_tokens: int | None = None  # prompt and completion together
    max_cost: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0

    def __post_init__(self) -> None:
        if min(self.input_price, self.output_price, self.max_cost or 0.0, self.max_tokens or 0) < 0:
            raise ValueError(f"{self}: no limit and no price can be negative")
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ValueError("a limit on the cost needs the prices per million tokens")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / _MILLION


class Account:
    """Counts what an endpoint reports to have used. Thread-safe.

    A request reserves the most it can use: a token for every byte it sends, and `max_tokens` of answer. It
    waits while others hold what it needs. A completion without reported usage is charged its reservation.
    Failed attempts are not charged, for endpoints do not report what they cost.
    """

    def __init__(self, spending: Spending | None = None) -> None:
        self.spending = spending or Spending()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.requests = 0
        self._reserved: list[tuple[int, int]] = []
        self._settled = threading.Condition()

    @property
    def cost(self) -> float:
        """Spent so far."""
        return self.spending.cost(self.prompt_tokens, self.completion_tokens)

    def reserve(self, request: ChatRequest) -> tuple[int, int]:
        """Hold the most that `request` can use.

        Raises:
            LimitReached: it might pass a limit.
        """
        wanted = _most(request)
        with self._settled:
            while not self._fits(wanted):
                if not self._reserved:
                    raise LimitReached(self._told())
                self._settled.wait()
            self._reserved.append(wanted)
        return wanted

    def settle(self, reserved: tuple[int, int], charged: tuple[int, int] | None = None) -> None:
        """Charge what was used, nothing where the request came to nothing."""
        with self._settled:
            self._reserved.remove(reserved)
            if charged is not None:
                self.charge(1, *charged)
            self._settled.notify_all()

    def charge(self, requests: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Charge so many requests with so many tokens, without a reservation."""
        self.requests += requests
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def _fits(self, wanted: tuple[int, int]) -> bool:
        prompt = self.prompt_tokens + wanted[0] + sum(held for held, _ in self._reserved)
        answer = self.completion_tokens + wanted[1] + sum(held for _, held in self._reserved)
        limits = self.spending
        return (limits.max_tokens is None or prompt + answer <= limits.max_tokens) and (
            limits.max_cost is None or limits.cost(prompt, answer) <= limits.max_cost
        )

    def _told(self) -> str:
        spent = f"{self.prompt_tokens + self.completion_tokens} tokens, cost {self.cost:.4g}"
        limits = [
            f"{name} {value:g}"
            for name, value in (("tokens", self.spending.max_tokens), ("cost", self.spending.max_cost))
            if value is not None
        ]
        return f"the next request might pass the limit ({', '.join(limits)}); spent so far: {spent}"


def charge_for(reserved: tuple[int, int], completion: Completion) -> tuple[int, int]:
    """Prompt and completion tokens to charge: those reported, the reservation where none were."""
    prompt, answer = completion.prompt_tokens, completion.completion_tokens
    return reserved[0] if prompt is None else prompt, reserved[1] if answer is None else answer


def _most(request: ChatRequest) -> tuple[int, int]:
    sent = json.dumps([list(request.messages), list(request.tools)], ensure_ascii=False)
    return len(sent.encode()), request.max_tokens
