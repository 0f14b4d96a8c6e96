"""The sloppy reader of the lookup task: demonstrations to imitate, and how often they succeed.

The reader follows every hop but takes some verbs for the wrong treatment, always the same wrong one, and
never notices: reinforcement learning has that to repair. It also makes harmless detours (a misspelt
treatment, a substance without one) and recovers from them, which is worth imitating.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from elpo.tasks.lookup_facts import KnowledgeBase, Treatment
from elpo.tasks.lookup_question import CONFUSED_WITH, VERBS
from elpo.tasks.synthetic import mean_success
from elpo.tasks.tool_turns import tool_turn
from elpo.tools.search import SearchTool
from elpo.types import Problem, ToolCall

if TYPE_CHECKING:
    from elpo.tasks.lookup import LookupConfig


def demonstrate(
    problem: Problem, base: KnowledgeBase, tool: SearchTool, config: LookupConfig, rng: random.Random
) -> dict[str, Any]:
    """One conversation of the reader: `messages` with tool calls and feedback, and the `tools` offered.

    The feedback is what the tool really answers. Detours never use more turns than the problem's slack, so a
    reader without confusion always succeeds. A thought names the hop's number, its verb, the treatment taken
    and the substance: each word is close to what it follows from, which is why a tiny model learns it.
    """
    session = tool.open(problem)
    messages: list[Mapping[str, Any]] = [*problem.messages]

    def search(thought: str, query: str) -> None:
        result, _ = session.call(ToolCall(tool.name, {"query": query}))
        messages.append(tool_turn(thought, tool.name, query=query))
        messages.append({"role": "tool", "name": tool.name, "content": result.output})

    detours_left = config.slack
    hops = problem.metadata["hops"]
    substance = hops[0][0]
    for number, (_, treatment, verb) in enumerate(hops, 1):
        taken = CONFUSED_WITH[treatment] if rng.random() < config.error_rate(verb) else treatment
        thought = f"{number} {verb} {taken} {substance}"
        while detours_left and (detour := config.draw_detour(rng)):
            detours_left -= 1
            search(thought, f"{_misspelt(taken)} {substance}" if detour == "misspelling" else substance)
        search(thought, f"{taken} {substance}")
        substance = base.facts[substance, taken]
    messages.append({"role": "assistant", "content": f"\\boxed{{{substance}}}"})
    return {"messages": messages, "tools": [tool.schema]}


def demonstrator_success(config: LookupConfig, num_hops: int) -> float:
    """The probability that the reader gets a question of `num_hops` hops right.

    `mean_success` of q_v = 1 - error rate of verb v.

    Raises:
        ValueError: questions cannot have that many hops.
    """
    if not 0 < num_hops <= len(VERBS):
        raise ValueError(f"a question of {num_hops} hops does not exist; choose 1 to {len(VERBS)}")
    return mean_success([1 - config.error_rate(verb) for verb in VERBS], num_hops)


def _misspelt(treatment: Treatment) -> str:
    """The word with its second and third letter exchanged."""
    return f"{treatment[0]}{treatment[2]}{treatment[1]}{treatment[3:]}"
