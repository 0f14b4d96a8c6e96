"""The rollouts of one RL step: what the prompt sampling asks for, grown round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import numpy as np

from elpo.algorithms.call_limit import call_limit
from elpo.algorithms.prompt_sampling import Sampling, make_prompt_sampling
from elpo.algorithms.reward_shaping import shape_rewards
from elpo.algorithms.strategies import Strategy
from elpo.config import Config
from elpo.rollout.counts import RolloutCounts
from elpo.rollout.scheduler import Scheduler
from elpo.training.assembly import make_strategy
from elpo.training.model_loading import derived_seed
from elpo.training.processes import Processes
from elpo.training.sft import batch_indices
from elpo.tree import RolloutTree
from elpo.types import Problem


@dataclass(frozen=True, eq=False)
class Collection:
    """The trees of a step, and what all of them have cost."""

    grown: list[RolloutTree]  # in the order asked for
    kept: list[RolloutTree]  # those to train on
    counts: RolloutCounts  # of all that were grown


def collect_step(
    config: Config,
    scheduler: Scheduler,
    problems: Sequence[Problem],
    step: int,
    rounds_left: int | None,
    processes: Processes,
) -> Collection:
    """Grow the trees of an RL step (from 1) as the algorithm says, and shape their rewards.

    A pure function of its arguments and of the policy's weights; `rounds_left` batches can be paid for. Every
    process grows its share of each round and has all trees afterwards, so that all decide alike.
    """
    algorithm, seed = config.algorithm, config.run.seed
    max_calls = call_limit(algorithm.max_calls, step, config.rl.num_steps)
    batches = problem_batches(
        problems,
        config.rl.problems_per_step,
        step,
        algorithm.prompts.max_rounds,
        lambda purpose: derived_seed(seed, purpose),
    )
    rng = np.random.default_rng(derived_seed(seed, "prompts", step))
    found = collect(
        replace(scheduler, limits=replace(scheduler.limits, max_calls=max_calls)),
        make_prompt_sampling(algorithm.prompts, rounds_left)(batches, rng),
        make_strategy(algorithm.strategy),
        algorithm.num_rollouts,
        lambda number: derived_seed(seed, "rollouts", step, *([number] if number else [])),
        policy_version=step - 1,
        processes=processes,
    )
    for tree in found.grown:
        shape_rewards(tree, algorithm.reward, scheduler.limits.max_tokens)
    return found


def collect(
    scheduler: Scheduler,
    sampling: Sampling,
    strategy: Strategy,
    num_rollouts: int,
    seed_of: Callable[[int], int],
    policy_version: int = 0,
    processes: Processes = Processes(),  # noqa: B008  frozen
) -> Collection:
    """Drive a prompt sampling to its end; `seed_of` gives each of its rounds, from 0, a seed of its own.

    Raises:
        InfrastructureError, ValueError: as `Scheduler.grow`.
        ProcessFailed: that of another process has raised.
    """
    grown: list[RolloutTree] = []
    counts = RolloutCounts()
    problems = next(sampling)
    for round_number in count():
        grow = partial(scheduler.grow, processes.share(problems), strategy, num_rollouts)
        own, cost = processes.together(partial(grow, seed_of(round_number), policy_version))
        trees = processes.gather(own)
        grown += trees
        counts = sum(processes.every(cost), counts)
        try:
            problems = sampling.send(trees)
        except StopIteration as finished:
            return Collection(grown, finished.value, counts)
    raise AssertionError("unreachable: a sampling ends")


def problem_batches(
    problems: Sequence[Problem], batch_size: int, step: int, max_rounds: int, seed_of: Callable[[str], int]
) -> Iterator[list[Problem]]:
    """The batches of a step (from 1), without end: the step's own, then spare ones in an order of their own.

    A pure function of its arguments. No two steps share a spare batch until all problems have been in one.
    """
    own = batch_indices(len(problems), batch_size, step - 1, seed_of("problems"))
    yield [problems[i] for i in own]
    spare = (step - 1) * max_rounds
    while True:
        index = batch_indices(len(problems), batch_size, spare, seed_of("spare problems"))
        yield [problems[i] for i in index]
        spare += 1
