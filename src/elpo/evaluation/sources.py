"""Where an evaluation's samples come from: a model sampled here, or one behind an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.strategies import grow, independent
from elpo.config import Config
from elpo.endpoints.connection import Connection, kept
from elpo.interfaces import Task
from elpo.rollout.chat import ChatAgent, Outage
from elpo.rollout.episode import Limits
from elpo.rollout.scheduler import OnTree
from elpo.tasks.loading import load_task
from elpo.training.assembly import assemble, choose_device, make_scheduler
from elpo.training.model_loading import autocast_dtype
from elpo.training.tools import make_tools
from elpo.training.vllm_sampling import sync_weights
from elpo.tree import RolloutTree
from elpo.types import Problem

Sampler = Callable[[Sequence[Problem], int, int, OnTree], list[RolloutTree]]
"""(problems, samples of each, seed, told of every finished tree) -> a tree of independent rollouts each."""


@dataclass(frozen=True)
class Source:
    """The task, and what samples its problems."""

    task: Task
    sample: Sampler


@contextmanager
def model_source(config: Config, weights: Path | None) -> Iterator[Source]:
    """A model loaded here. Every call of `sample` has an engine of its own, so that what it draws does not
    depend on the calls before; vLLM, whose draws do not repeat anyway, stays.
    """
    with closing(assemble(config, choose_device(config.run.device), weights)) as assembly:
        assembly.model.eval()
        sync_weights(assembly.scheduler, assembly.model)

        def sample(problems: Sequence[Problem], num: int, seed: int, on_tree: OnTree) -> list[RolloutTree]:
            scheduler = assembly.scheduler
            if config.rollout.engine == "transformers":
                made = (assembly.model, assembly.task, assembly.tools, assembly.dialogue)
                scheduler = make_scheduler(config.rollout, *made, autocast_dtype(config.model))
            return scheduler.grow(problems, independent(), num, seed, on_tree=on_tree)[0]

        yield Source(assembly.task, sample)


@contextmanager
def endpoint_source(config: Config, connection: Connection, journal: Path) -> Iterator[Source]:
    """A model behind an endpoint, known only by its messages; what it said is kept in `journal`.

    `rollout.temperature`, `rollout.max_turns` and the token limits hold as far as the endpoint reports usage.
    """
    task = load_task(config.task.name, config.task.options)
    rollout = config.rollout
    limits = Limits.of(rollout)
    with ExitStack() as stack:
        stack.callback(getattr(task, "close", lambda: None))
        tools = make_tools(task, config)
        for tool in tools.values():
            stack.enter_context(closing(tool))
        policy = stack.enter_context(kept(connection.open(), journal, connection.spending))
        outage = Outage()

        def sample(problems: Sequence[Problem], num: int, seed: int, on_tree: OnTree) -> list[RolloutTree]:
            agent = ChatAgent(
                policy, connection.model, tools, task.grade, limits, rollout.temperature, seed, outage
            )

            def tree_of(problem: Problem) -> RolloutTree:
                tree = RolloutTree(problem, np.empty(0, np.int64))
                with closing(agent.draw_with(rollouts)) as draws:
                    grow(tree, independent(), BudgetLedger(num), np.random.default_rng(seed), draws)
                return tree

            with (
                ThreadPoolExecutor(connection.concurrency, "elpo-rollout") as rollouts,
                ThreadPoolExecutor(connection.concurrency, "elpo-tree") as growing,
            ):
                futures = [growing.submit(tree_of, problem) for problem in problems]
                try:
                    for future in as_completed(futures):
                        on_tree(future.result())
                except BaseException:
                    policy.give_up()  # what is in flight ends soon, and is kept
                    growing.shutdown(wait=False, cancel_futures=True)
                    rollouts.shutdown(wait=False, cancel_futures=True)
                    raise
                return [future.result() for future in futures]

        yield Source(task, sample)
