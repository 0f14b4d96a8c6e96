"""Which problems the groups of one step are about, where that depends on how the first of them turned out.

Like a strategy, a prompt sampling is a generator that draws nothing itself: it yields problems, no problem
twice at a time, and is sent a grown tree for each. What it returns is trained on; all it asked for is paid.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np

from elpo.algorithm_config import PromptConfig
from elpo.algorithms.strategies import at_least
from elpo.tree import RolloutTree
from elpo.types import Problem

Sampling = Generator[list[Problem], list[RolloutTree], list[RolloutTree]]
PromptSampling = Callable[[Iterator[list[Problem]], np.random.Generator], Sampling]
"""From the batches of problems to come (endless, of one size) and a generator to a sampling."""


def success_variance(tree: RolloutTree) -> float:
    """The variance p (1 − p) for the share p of correct rollouts: 0 where all are alike, 1/4 at one half."""
    if not tree.outcomes:
        return 0.0
    rate = sum(outcome.correct for outcome in tree.outcomes.values()) / len(tree.outcomes)
    return rate * (1 - rate)


def every_prompt() -> PromptSampling:
    """The next batch, whatever comes of it."""

    def sampling(batches: Iterator[list[Problem]], rng: np.random.Generator) -> Sampling:
        return (yield next(batches))

    return sampling


def open_prompts(max_rounds: int = 10) -> PromptSampling:
    """DAPO's dynamic sampling: batch after batch, until enough groups have both successes and failures.

    Groups all right or all wrong are thrown away, and so is what exceeds the size of a batch. After
    `max_rounds` batches the step makes do with what there is; DAPO's code stops with an error instead.

    Source: DAPO (arXiv 2503.14476), `max_num_gen_batches` = 10. Deviation: its code draws batches three times
    as large as it trains on; here they are as large, so that less is thrown away.

    Raises:
        ValueError: if `max_rounds` is less than 1.
    """
    at_least("max_rounds", max_rounds, 1)

    def sampling(batches: Iterator[list[Problem]], rng: np.random.Generator) -> Sampling:
        kept: list[RolloutTree] = []
        for _ in range(max_rounds):
            problems = next(batches)
            trees = yield problems
            kept += [tree for tree in trees if success_variance(tree)]
            if len(kept) >= len(problems):
                return kept[: len(problems)]
        return kept

    return sampling


def valuable_prompts(max_copies: int = 2) -> PromptSampling:
    """Groups without variance are replaced by new groups of prompts that are worth more.

    For each tree whose rollouts all succeeded or all failed, a prompt of the same batch is drawn with
    probability proportional to p (1 − p), p being the share of successes in its group, and a new group of it
    is grown; no prompt more than `max_copies` times. What cannot be replaced stays.

    Source: the idea of value-based sampling in arXiv 2512.07478 (VSPO), whose formulas are not public. This
    weight and the cap are ours.

    Raises:
        ValueError: if `max_copies` is less than 1.
    """
    at_least("max_copies", max_copies, 1)

    def sampling(batches: Iterator[list[Problem]], rng: np.random.Generator) -> Sampling:
        problems = next(batches)
        trees = yield problems
        values = [success_variance(tree) for tree in trees]
        copies = capped_draws(values, values.count(0.0), max_copies, rng)
        fresh: list[RolloutTree] = []
        while copies.any():  # one copy of a prompt at a time
            fresh += yield [problem for problem, left in zip(problems, copies, strict=True) if left]
            copies = np.maximum(copies - 1, 0)
        replacements = iter(fresh)
        return [
            tree if value else next(replacements, tree) for tree, value in zip(trees, values, strict=True)
        ]

    return sampling


def capped_draws(values: Sequence[float], num: int, cap: int, rng: np.random.Generator) -> np.ndarray:
    """How often each is drawn when `num` are, in proportion to `values` but none above `cap`. int64 [len]

    Fewer come out where all that are worth anything have reached the cap.
    """
    counts = np.zeros(len(values), np.int64)
    for _ in range(num):
        left = np.where(counts < cap, values, 0.0)
        if not left.any():
            break
        counts[rng.choice(len(left), p=left / left.sum())] += 1
    return counts


def make_prompt_sampling(config: PromptConfig, max_rounds: int | None = None) -> PromptSampling:
    """The one that `config` names, with no more than `max_rounds` batches where that many can be paid."""
    rounds = config.max_rounds if max_rounds is None else min(config.max_rounds, max_rounds)
    match config.name:
        case "every":
            return every_prompt()
        case "open":
            return open_prompts(rounds)
        case "valuable":
            return valuable_prompts(config.max_copies) if rounds > 1 else every_prompt()
