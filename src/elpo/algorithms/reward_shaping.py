"""Rewards that say more than right or wrong. The search never sees them: it tests the correctness flag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from elpo.algorithm_config import RewardConfig
from elpo.tree import RolloutTree
from elpo.types import Step, ToolStatus


def overlong_penalty(num_tokens: int, max_tokens: int, buffer: float = 0.2) -> float:
    """What a long response loses: 0 up to the buffer, then linearly down to −1 at the limit.

        p = max(−1, min(0, ((1 − b) L_max − L) / (b L_max)))

    A `buffer` of 0.2 is 4096 of 20480 tokens, as published; it is a share here, so that it means the same
    under any limit.

    Source: DAPO (arXiv 2503.14476), soft overlong punishment; its code does not bound it by −1, which hard
    limits make the same.

    >>> [overlong_penalty(length, 100) for length in (80, 90, 100)]
    [0.0, -0.5, -1.0]

    Raises:
        ValueError: if `buffer` is not in (0, 1], or `max_tokens` not positive.
    """
    if not 0 < buffer <= 1 or max_tokens < 1:
        raise ValueError(f"a buffer of {buffer} in {max_tokens} tokens: use a share above 0 of 1 or more")
    start = (1 - buffer) * max_tokens
    return max(-1.0, min(0.0, (start - num_tokens) / (max_tokens - start)))


def call_bonus(reward: float, correct: bool, num_calls: int, bonus: float = 0.1, cap: float = -0.6) -> float:
    """The reward with `bonus` for each tool call of a wrong trajectory, but never above `cap`.

    Source: the reward of DemyAgent's code (arXiv 2510.11701), min(−0.6, −1 + 0.1 n) for a wrong answer.
    Deviation: the paper also adds 0.1 n to a right answer and prints no cap.
    """
    return reward if correct else max(reward, min(cap, reward + bonus * num_calls))


def stage(steps: Sequence[Step]) -> int:
    """How far a trajectory came with tools: 1 once a call could be parsed, 2 once one ran without error."""
    if any(step.tool_result is not None and step.tool_result.status is ToolStatus.OK for step in steps):
        return 2
    return int(any(step.tool_call is not None for step in steps))


def shape_rewards(tree: RolloutTree, config: RewardConfig, max_tokens: int) -> None:
    """Replace the rewards of a finished tree by the shaped ones; right or wrong stays what it was.

    `max_tokens` bounds prompt and response together, as `rollout.max_tokens` does. The response that the
    overlong penalty is about is what follows the prompt, feedback included.
    """
    if config == RewardConfig():
        return
    for leaf, outcome in tree.outcomes.items():
        steps = [tree.nodes[node].step for node in tree.path(leaf)]
        reward = outcome.reward
        if config.stages and not outcome.correct:
            reward += (0.0, *config.stages)[stage(steps)]
        if config.call_bonus:
            num_calls = sum(step.tool_call is not None for step in steps)
            reward = call_bonus(reward, outcome.correct, num_calls, config.call_bonus)
        if config.overlong_buffer:
            num_tokens = sum(len(step.token_ids) for step in steps)
            reward += overlong_penalty(num_tokens, max_tokens - len(tree.prompt_ids), config.overlong_buffer)
        tree.outcomes[leaf] = replace(outcome, reward=reward)
