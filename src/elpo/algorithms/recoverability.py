"""What a few suffixes say about how a failed trajectory lost its chance: a posterior instead of a verdict.

Success is rare, so "no suffix succeeded" proves little. Here the chance of success after every step is a
hidden Markov chain, each suffix is one noisy look at it, and what can be said about every step is exact.
Pure functions over arrays; anchors are numbered as in `elpo.algorithms.localization`, with the prompt as
anchor 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np

LEVELS = np.array([0.0, 0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.32, 0.48, 0.66, 0.82, 0.95])
"""Chances of success a prefix can have; the first is lost for good."""

RISE, FALL = 0.3, 0.05
"""How likely a step that is not fatal lifts the chance by one level, or lets it fall to any lower one."""


def _moves() -> np.ndarray:
    """Transition matrix of a step that is not fatal. [levels, levels]"""
    size = len(LEVELS)
    moves = np.zeros((size, size))
    for i in range(1, size):
        up, down = RISE * (i + 1 < size), FALL * (i > 1)
        moves[i, 1:i] = down / max(1, i - 1)
        moves[i, i : i + 2] = 1 - up - down, *[up] * (i + 1 < size)
    return moves


_MOVES = _moves()
_RANK = np.arange(len(LEVELS))
_LOWER = (_RANK[:, None] > 0) & ((_RANK == 0) | (_RANK[:, None] - 2 >= _RANK))


@dataclass(frozen=True, eq=False)
class Belief:
    """What is known of a trajectory of K anchors and a last step.

    `critical[t - 1]` is the probability that step t = 1..K+1 is the first irrecoverable one; `levels[m]` the
    distribution of the chance of success from anchor m = 0..K over `LEVELS`; `falls[t - 1]` the probability
    that step t lost at least two levels, a third to three quarters of the chance, or all of it.
    """

    critical: np.ndarray  # float64 [K + 1]
    levels: np.ndarray  # float64 [K + 1, number of levels]
    falls: np.ndarray  # float64 [K + 1]


def belief(prior: np.ndarray, successes: np.ndarray, draws: np.ndarray) -> Belief:
    """The posterior over every step of a failed trajectory, given the rollouts drawn from its prefixes.

    The chance of success z_m after step m starts anywhere in `LEVELS`. Step t is fatal, z_t = 0 for ever,
    with the hazard that makes `prior` the distribution of the first fatal step; any other step keeps the
    chance, lifts it by one level or lets it fall, with the probabilities `RISE` and `FALL`. The suffixes of
    anchor m succeed with z_m, independently. z_{K+1} = 0: the trajectory has failed.

    Not in the paper, whose search takes an anchor without a success as lost.

    Args:
        prior: how likely each step is the first irrecoverable one before any suffix, [K + 1]; any scale.
        successes: of the rollouts drawn from anchor 0..K, [K + 1]; anchor 0 is the prompt.
        draws: their number, same shape. The trajectory itself is one of those from the prompt.

    Raises:
        ValueError: if the shapes differ, or the prior has a value that is not positive.
    """
    if not prior.shape == successes.shape == draws.shape:
        raise ValueError(
            f"shapes {prior.shape}, {successes.shape}, {draws.shape} differ: one entry an anchor"
        )
    if not (prior > 0).all():
        raise ValueError("the prior rules a step out: give every step a positive weight")
    hazards = prior / np.cumsum(prior[::-1])[::-1]
    num_steps = len(prior)
    rates = (successes / np.maximum(draws, 1))[:, None]
    likelihood = LEVELS**rates * (1 - LEVELS) ** (1 - rates)  # of one draw, on average: never underflows
    likelihood = (likelihood / likelihood.max(-1, keepdims=True)) ** draws[:, None]
    steps = np.empty((num_steps, len(LEVELS), len(LEVELS)))
    steps[:] = (1 - hazards)[:, None, None] * _MOVES
    steps[:, 1:, 0] = hazards[:, None]
    steps[:, 0] = np.eye(len(LEVELS))[0]

    forward = np.empty((num_steps, len(LEVELS)))
    forward[0] = (LEVELS > 0) * likelihood[0]
    for m in range(1, num_steps):
        forward[m] = (forward[m - 1] @ steps[m - 1]) * likelihood[m]
        forward[m] /= forward[m].sum()
    backward = np.empty_like(forward)
    backward[-1] = steps[-1][:, 0]
    for m in range(num_steps - 1, 0, -1):
        backward[m - 1] = steps[m - 1] @ (likelihood[m] * backward[m])
        backward[m - 1] /= backward[m - 1].max()
    levels = forward * backward
    levels /= levels.sum(-1, keepdims=True)

    pairs = forward[:-1, :, None] * steps[:-1] * (likelihood * backward)[1:, None]
    fell = (pairs * _LOWER).sum((1, 2)) / pairs.sum((1, 2))
    lost = np.append(levels[:, 0], 1.0)
    return Belief(np.maximum(np.diff(lost), 0), levels, np.append(fell, 1 - lost[-2]))


def prior_over_steps(success: float, weights: np.ndarray) -> np.ndarray:
    """How likely each step of a failed trajectory is its first fatal one, before any suffix. [K + 1]

        P(t) ∝ q^(t − 1) w_t,   q = success^(1 / (K + 1))

    Steps that each go right with probability q lead to the success rate of the group; the first that does not
    is then distributed like this; `weights` [K + 1] say which of them are likelier than others to be wrong.

    >>> prior_over_steps(0.25, np.ones(2))
    array([0.66666667, 0.33333333])
    """
    prior: np.ndarray = weights * success ** (np.arange(len(weights)) / len(weights))
    prior /= prior.sum()
    return prior


def information(levels: np.ndarray, num_draws: int) -> np.ndarray:
    """How much `num_draws` suffixes from an anchor are expected to tell about it being lost, in nats. [M]

        I = H(k) − P(not lost) H(k | not lost),   k successes of `num_draws`

    Args:
        levels: the distribution of the chance of success of each of M anchors over `LEVELS`, [M, levels].
    """
    counts = np.arange(num_draws + 1)
    ways = np.array([comb(num_draws, k) for k in range(num_draws + 1)])
    chances = ways * LEVELS[1:, None] ** counts * (1 - LEVELS[1:, None]) ** (num_draws - counts)
    alive = 1 - levels[:, :1]
    mixed = levels[:, 1:] @ chances
    given = mixed / np.maximum(alive, 1e-300)
    mixed[:, 0] += levels[:, 0]
    gained: np.ndarray = _plogp(mixed).sum(-1) - alive[:, 0] * _plogp(given).sum(-1)
    return gained


def best_look(state: Belief, max_draws: int, round_cost: float) -> tuple[int, int]:
    """The anchor and the number of suffixes that tell most for their price: argmax I / (n + `round_cost`).

    A round costs its suffixes and the waiting for them, counted in rollouts. Anchors are those after a tool
    step, 1..K; the first of equals.
    """
    counts = range(1, max_draws + 1)
    gains = np.array([information(state.levels[1:], n) / (n + round_cost) for n in counts])
    most, anchor = np.unravel_index(gains.argmax(), gains.shape)
    return int(anchor) + 1, counts[most]


def _plogp(p: np.ndarray) -> np.ndarray:
    """−p log p, 0 at 0."""
    terms: np.ndarray = -p * np.log(np.where(p > 0, p, 1.0))
    return terms
