"""The options that describe an endpoint, for every command that asks one."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elpo.endpoints.connection import Connection


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add `--endpoint`, `--model` and what limits their use."""
    group = parser.add_argument_group("a model behind an OpenAI-compatible endpoint")
    group.add_argument("--endpoint", metavar="URL", help="base URL, such as http://127.0.0.1:8000/v1")
    group.add_argument("--model", metavar="NAME", help="the model's name there")
    group.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the API key")
    group.add_argument(
        "--omit",
        metavar="A,B",
        default="",
        help="fields it does not take: seed, temperature, parallel_tool_calls, max_tokens (renamed)",
    )
    group.add_argument("--concurrency", type=int, default=16, help="requests at a time (default: 16)")
    group.add_argument("--timeout", type=float, default=120.0, help="seconds for one attempt (default: 120)")
    group.add_argument("--attempts", type=int, default=6, help="attempts for one request (default: 6)")
    group.add_argument("--max-total-tokens", type=int, metavar="N", help="tokens that may be used in all")
    group.add_argument("--max-cost", type=float, metavar="X", help="what may be spent; needs --price")
    group.add_argument(
        "--price", metavar="IN:OUT", help="prices per million prompt and completion tokens, such as 0.5:1.5"
    )


def api_key(args: argparse.Namespace) -> str | None:
    """The key in the environment variable that `--api-key-env` names; None without that option.

    Raises:
        ValueError: the variable is not set.
    """
    key = None
    if args.api_key_env is not None and not (key := os.environ.get(args.api_key_env)):
        raise ValueError(f"--api-key-env: the environment variable {args.api_key_env} is not set")
    return key


def connection_of(args: argparse.Namespace) -> Connection | None:
    """The endpoint the options name; None where they name none.

    Raises:
        ValueError: they contradict each other, or a value is wrong.
    """
    from elpo.endpoints.account import Spending
    from elpo.endpoints.connection import Connection
    from elpo.endpoints.openai import Retries

    if args.endpoint is None:
        return None
    if args.model is None:
        raise ValueError("--endpoint needs --model, the model's name there")
    try:
        prices = [float(price) for price in (args.price or "0:0").split(":")]
        input_price, output_price = prices
    except ValueError:
        raise ValueError(f"--price {args.price}: write two prices, IN:OUT, such as 0.5:1.5") from None
    return Connection(
        url=args.endpoint,
        model=args.model,
        api_key=api_key(args),
        concurrency=args.concurrency,
        retries=Retries(num_attempts=args.attempts, timeout=args.timeout),
        spending=Spending(args.max_total_tokens, args.max_cost, input_price, output_price),
        omit=tuple(filter(None, args.omit.split(","))),
    )
