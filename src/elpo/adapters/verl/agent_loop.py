"""An agent loop that grows one tree for a prompt and gives each of verl's n sessions one of its leaves.

verl's stock manager runs the n sessions of a prompt in one worker and one event loop. The first to arrive
grows the tree, in a thread and with the scheduler that `elpo train` uses; the others wait for it. Session i
gets leaf i. Rows that are not for training get a plain rollout of their own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from elpo.versions import require

require("verl", "0.9", "0.10", extra="verl")

from verl.experimental.agent_loop.agent_loop import (  # noqa: E402
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
)

from elpo.adapters.leaf_rows import leaf_rows  # noqa: E402
from elpo.adapters.verl.engine import VerlEngine  # noqa: E402
from elpo.adapters.verl.entropies import FailureEntropies  # noqa: E402
from elpo.adapters.verl.settings import entropy_source, read_recipe  # noqa: E402
from elpo.algorithms.strategies import Strategy, independent  # noqa: E402
from elpo.config import Config  # noqa: E402
from elpo.interfaces import InfrastructureFault, Task, Tool  # noqa: E402
from elpo.rollout.counts import RolloutCounts  # noqa: E402
from elpo.rollout.dialogue import Dialogue  # noqa: E402
from elpo.rollout.episode import Limits  # noqa: E402
from elpo.rollout.faults import FaultMeter  # noqa: E402
from elpo.rollout.scheduler import Scheduler  # noqa: E402
from elpo.tasks.loading import load_task  # noqa: E402
from elpo.training.assembly import make_strategy  # noqa: E402
from elpo.training.model_loading import derived_seed  # noqa: E402
from elpo.training.rollout_metrics import rollout_metrics  # noqa: E402
from elpo.training.tools import make_tools  # noqa: E402
from elpo.tree import RolloutTree  # noqa: E402
from elpo.types import Problem  # noqa: E402

MAX_TREES = 256
"""Trees that one worker grows at the same time, a thread each."""


@dataclass(eq=False)
class _World:
    """What the trees of a worker process share."""

    task: Task
    tools: Mapping[str, Tool]
    threads: ThreadPoolExecutor
    call_faults: FaultMeter
    grader_faults: FaultMeter


@cache
def _world(recipe: str) -> _World:
    """Task and tools of a recipe, given as JSON so that it can be looked up."""
    config = Config.model_validate_json(recipe)
    task = load_task(config.task.name, config.task.options)
    threads = ThreadPoolExecutor(MAX_TREES, thread_name_prefix="elpo-tree")
    meters = FaultMeter("tool calls"), FaultMeter("gradings")
    return _World(task, make_tools(task, config), threads, *meters)


@dataclass(eq=False)
class _Meeting:
    """The sessions of one prompt: the growing tree, and how many have still to take their leaf."""

    leaves: asyncio.Task[list[AgentLoopOutput]]
    remaining: int


class ElpoAgentLoop(AgentLoopBase):
    """verl's agent loop; `elpo.recipe` of verl's configuration names our recipe."""

    meetings: ClassVar[dict[str, _Meeting]] = {}

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """The leaf of this session.

        Args:
            sampling_params: verl's, for one request.
            row: the data row with `uid` and `session_id`; see `problem_of`.

        Raises:
            InfrastructureError: tools or grader fail by themselves too often.
            InfrastructureFault: every rollout of the tree was lost; verl marks the prompt as failed.
            ValueError: the row or the recipe is wrong, or the prompt is too long.
        """
        config = read_recipe(self.config)
        problem = problem_of(row)
        if not is_training_row(row):
            (output,) = await self._grow(problem, config, independent(), 1, sampling_params, row)
            return output
        size = self.rollout_config.n
        meeting = self.meetings.get(row["uid"])
        if meeting is None:
            strategy = make_strategy(config.algorithm.strategy)
            growing = self._grow(problem, config, strategy, size, sampling_params, row)
            meeting = self.meetings[row["uid"]] = _Meeting(asyncio.ensure_future(growing), size)
        try:
            return (await asyncio.shield(meeting.leaves))[int(row["session_id"])]
        finally:
            meeting.remaining -= 1
            if not meeting.remaining:
                del self.meetings[row["uid"]]

    async def _grow(
        self,
        problem: Problem,
        config: Config,
        strategy: Strategy,
        size: int,
        sampling_params: Mapping[str, Any],
        row: Mapping[str, Any],
    ) -> list[AgentLoopOutput]:
        """A tree of `size` rollouts as that many outputs."""
        world = _world(config.model_dump_json())
        dialogue = Dialogue(self.tokenizer, [tool.schema for tool in world.tools.values()])
        loop = asyncio.get_running_loop()
        end_ids = [dialogue.end_id]
        engine = VerlEngine(
            self.server_manager.generate, loop, str(row["uid"]), sampling_params, end_ids, size
        )
        prompt_ids = dialogue.prompt_ids(problem.messages)
        if len(prompt_ids) > self.rollout_config.prompt_length:
            raise ValueError(
                f"problem {problem.id}: its prompt has {len(prompt_ids)} tokens, rollout.prompt_length is "
                f"{self.rollout_config.prompt_length}; raise it or drop the problem"
            )
        longest = min(config.rollout.max_tokens, len(prompt_ids) + self.rollout_config.response_length)
        task = world.task
        if entropy_source(self.config) == "prompt_logprobs":
            task = FailureEntropies(task, prompt_ids, engine.score)
        scheduler = Scheduler(
            engine,
            task,
            world.tools,
            dialogue,
            Limits(config.rollout.max_turns, longest, config.rollout.max_turn_tokens),
            deterministic=False,
            call_faults=world.call_faults,
            grader_faults=world.grader_faults,
        )
        version = int(row.get("global_steps", 0))
        seed = derived_seed(config.run.seed, "rollouts", version)
        started = time.perf_counter()
        (tree,), counts = await loop.run_in_executor(
            world.threads, lambda: scheduler.grow([problem], strategy, size, seed, version)
        )
        seconds = time.perf_counter() - started
        return leaf_outputs(
            tree, counts, config, size, dialogue.end_id, engine.versions or [version], seconds
        )


def is_training_row(row: Mapping[str, Any]) -> bool:
    """Whether `extra_info.split` is train, or missing: other rows are never searched."""
    return str((row.get("extra_info") or {}).get("split", "train")) == "train"


def problem_of(row: Mapping[str, Any]) -> Problem:
    """A data row of verl as our problem.

    `raw_prompt` are the messages, `reward_model.ground_truth` the answer; of `extra_info`, `id` (else
    `index`) names it, and `metadata` is JSON for the task (`elpo.adapters.verl.rows` writes such rows).

    Raises:
        ValueError: the row has no prompt or no ground truth.
    """
    info, judged = row.get("extra_info") or {}, row.get("reward_model") or {}
    if row.get("raw_prompt") is None or "ground_truth" not in judged:
        raise ValueError("a row needs raw_prompt (data.return_raw_chat=True) and reward_model.ground_truth")
    name = info.get("id", info.get("index", row["uid"]))
    messages = tuple(dict(message) for message in row["raw_prompt"])
    metadata = json.loads(info["metadata"]) if info.get("metadata") else {}
    return Problem(str(name), messages, str(judged["ground_truth"]), metadata)


def leaf_outputs(
    tree: RolloutTree,
    counts: RolloutCounts,
    config: Config,
    size: int,
    filler: int,
    versions: list[int],
    seconds: float,
) -> list[AgentLoopOutput]:
    """Exactly `size` outputs: the leaves in the order drawn, and rows without loss in place of lost rollouts.

    Our numbers travel in `extra_fields["elpo"]`, for each response token an advantage and two bounds.

    Raises:
        InfrastructureFault: the tree has no leaf.
    """
    if not tree.outcomes:
        raise InfrastructureFault(
            f"every rollout of problem {tree.problem.id} was lost to the infrastructure"
        )
    prompt = tree.prompt_ids.tolist()
    span = {"min_global_steps": min(versions), "max_global_steps": max(versions)}
    metrics = AgentLoopMetrics(generate_sequences=seconds, tool_calls=counts.tool_seconds)
    outputs = []
    for row in leaf_rows(tree, config.algorithm, size, config.rollout.max_tokens, filler):
        correct, lost = float(row.outcome is not None and row.outcome.correct), float(row.outcome is None)
        outputs.append(
            AgentLoopOutput(
                prompt_ids=prompt,
                response_ids=row.token_ids,
                response_mask=row.mask,
                response_logprobs=row.logprobs,
                reward_score=0.0 if row.outcome is None else row.outcome.reward,
                num_turns=row.num_turns,
                metrics=metrics,
                extra_fields=span
                | {"reward_extra_info": {"acc": correct, "lost": lost}, "elpo": dict(row.numbers)},
            )
        )
    outputs[0].extra_fields["elpo"]["metrics"] = rollout_metrics([tree], counts)
    return outputs
