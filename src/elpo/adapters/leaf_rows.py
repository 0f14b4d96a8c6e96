"""A finished tree as the rows that other trainers take, and which algorithms can be told to them as rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from elpo.algorithm_config import AlgorithmConfig
from elpo.algorithms.credit_rules import assign_credits
from elpo.algorithms.reward_shaping import shape_rewards
from elpo.batch import trajectory_rows
from elpo.tree import RolloutTree
from elpo.types import Outcome

NEUTRAL = {"advantages": 0.0, "clip_low": 1.0, "clip_high": 1.0}
"""The numbers of a token that are ours, and their values on padding."""


@dataclass(frozen=True, eq=False)
class LeafRow:
    """A trajectory after its prompt. Lists, T long: those trainers want no arrays."""

    outcome: Outcome | None  # None in place of a lost rollout, which has one token and no loss
    num_turns: int
    token_ids: list[int]
    mask: list[int]  # 1 on sampled tokens
    logprobs: list[float]
    numbers: dict[str, list[float]]  # by the names of `NEUTRAL`


def check_algorithm(algorithm: AlgorithmConfig, trainer: str) -> None:
    """Refuse an algorithm that rows with advantages and clip bounds do not describe.

    Raises:
        ValueError: names the setting and what `trainer` can do.
    """
    wanted = {
        "loss.surrogate": (algorithm.loss.surrogate, ("ppo",)),
        "loss.aggregation": (algorithm.loss.aggregation, ("seq-mean-token-mean", "token-mean")),
        "loss.kl_weight": (algorithm.loss.kl_weight, (0.0,)),  # those trainers have a reference of their own
        "loss.shared_tokens": (algorithm.loss.shared_tokens, ("duplicate",)),  # a row for each trajectory
        "credit.whiten": (algorithm.credit.whiten, ("none",)),  # needs the trees of all processes
        "prompts.name": (algorithm.prompts.name, ("every",)),  # those trainers pick the problems
        "max_calls": (algorithm.max_calls, ((),)),  # a schedule over our own steps
    }
    for key, (value, possible) in wanted.items():
        if value not in possible:
            words = " or ".join(map(repr, possible))
            raise ValueError(f"algorithm.{key} is {value!r}; through {trainer} it can be {words}")


def leaf_rows(
    tree: RolloutTree, algorithm: AlgorithmConfig, num_rows: int, max_tokens: int, filler: int
) -> Iterator[LeafRow]:
    """The trajectories in the order drawn, their rewards shaped, then lost rollouts up to `num_rows`.

    Args:
        max_tokens: `rollout.max_tokens`, for the shaping of rewards; done to `tree` itself.
        filler: the only token of a row without loss.
    """
    shape_rewards(tree, algorithm.reward, max_tokens)
    (credit,) = assign_credits([tree], algorithm)
    start = len(tree.prompt_ids)
    for leaf, row in zip(tree.leaves, trajectory_rows(tree, credit), strict=True):
        after = {name: values[start:].tolist() for name, values in row.items()}
        yield LeafRow(
            tree.outcomes[leaf],
            len(tree.path(leaf)),
            after["token_ids"],
            [int(on) for on in after["mask"]],
            after["old_logprobs"],
            {name: after[name] for name in NEUTRAL},
        )
    lost = LeafRow(None, 0, [filler], [0], [0.0], {name: [value] for name, value in NEUTRAL.items()})
    yield from [lost] * (num_rows - len(tree.leaves))
