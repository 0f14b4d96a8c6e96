"""Lookups made with the real search tool, and the steps a rollout would record of them."""

from __future__ import annotations

from typing import Any

from elpo.tasks.lookup import LookupTask
from elpo.tools.search import SearchTool
from elpo.tools.search_backend import passage_from
from elpo.tools.search_index import FullTextIndex
from elpo.types import Problem, Step, ToolCall

from .ledger_transcripts import step


def search_tool(task: LookupTask) -> SearchTool:
    documents = enumerate(task.documents(), 1)
    return SearchTool(FullTextIndex.of(passage_from(row, number) for number, row in documents))


def lookup(tool: SearchTool, problem: Problem, query: object) -> Step:
    """A step that asks `query`, with what the tool answers."""
    call = ToolCall("search", {"query": query})
    result, _ = tool.open(problem).call(call)
    return step(str(query), call, result)


def answer(substance: object) -> Step:
    return step(f"it is this one: \\boxed{{{substance}}}")


def steps_of(conversation: dict[str, Any], tool: SearchTool, problem: Problem) -> list[Step]:
    steps = []
    for message in conversation["messages"]:
        if message["role"] == "assistant":
            calls = message.get("tool_calls")
            query = calls[0]["function"]["arguments"]["query"] if calls else None
            steps.append(lookup(tool, problem, query) if calls else step(message["content"]))
    return steps
