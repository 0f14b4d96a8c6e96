"""The tools of a run, made as its settings say and tested with a real call each."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from elpo.config import Config, SearchToolConfig
from elpo.interfaces import Task, Tool
from elpo.tools.functions import tool_fault

if TYPE_CHECKING:
    from elpo.tools.search_backend import SearchBackend


def make_tools(task: Task, config: Config) -> dict[str, Tool]:
    """The tools the task asks for: its own, which its method `tools()` gives, and built-in ones, which are
    tested with a real call each.

    Raises:
        ValueError: the task names a tool that does not exist, its own ones are no tools, or the search tool
            has nothing to search.
    """
    makers = {"python": make_python_tool, "search": make_search_tool}
    tools: dict[str, Tool] = {}
    try:
        for tool in getattr(task, "tools", tuple)():
            if fault := tool_fault(tool):
                raise ValueError(f"task {task.name!r} brings the tool {tool!r:.80}: {fault}")
            tools[tool.name] = tool
        known = [*tools, *(name for name in makers if name not in tools)]
        if unknown := [name for name in task.tool_names if name not in known]:
            raise ValueError(
                f"task {task.name!r} wants the tools {unknown}; the tools are: {', '.join(known)}; a tool of "
                "your own comes from the task's method tools()"
            )
        if unnamed := [name for name in tools if name not in task.tool_names]:
            raise ValueError(f"task {task.name!r} brings the tools {unnamed}; add them to its tool_names")
        for name in task.tool_names:
            if name not in tools:
                tools[name] = makers[name](task, config)
    except BaseException:
        for tool in tools.values():
            tool.close()
        raise
    return {name: tools[name] for name in task.tool_names}


def make_python_tool(task: Task, config: Config) -> Tool:
    """The Python tool as `config.python` describes it."""
    from elpo.tools.python import PythonTool

    state = config.python.state
    tool = PythonTool(
        state=getattr(task, "python_state", "none") if state == "task" else state,
        timeout=config.python.timeout,
        memory_mb=config.python.memory_mb,
        output_chars=config.python.output_chars,
        num_workers=config.python.num_workers,
        preload=config.python.preload,
    )
    tool.self_test()
    return tool


def make_search_tool(task: Task, config: Config) -> Tool:
    """The search tool over the configured index or server, else over the task's own `documents()`.

    Raises:
        ValueError: there is neither, or it cannot be searched.
    """
    from elpo.tools.search import SearchTool

    tool = SearchTool(
        _search_backend(task, config.search),
        top_k=config.search.top_k,
        output_chars=config.search.output_chars,
    )
    try:
        tool.self_test()
    except RuntimeError as error:
        tool.close()
        raise ValueError(f"search: {error}") from error
    return tool


def _search_backend(task: Task, config: SearchToolConfig) -> SearchBackend:
    from elpo.tools.search_backend import passage_from
    from elpo.tools.search_index import FullTextIndex

    if config.url is not None:
        from elpo.tools.search_http import RetrievalClient

        try:
            return RetrievalClient(config.url, config.timeout)
        except ValueError as error:
            raise ValueError(f"search.url: {error}") from error
    if config.index is not None:
        try:
            index = FullTextIndex(Path(config.index).expanduser(), config.timeout)
        except ValueError as error:
            raise ValueError(f"search.index: {error}") from error
    else:
        documents = getattr(task, "documents", None)
        if documents is None:
            raise ValueError(
                f"task {task.name!r} brings no documents to search; set search.index or search.url"
            )
        try:
            index = FullTextIndex.of(map(passage_from, documents(), count(1)), config.timeout)
        except ValueError as error:
            raise ValueError(f"the documents() of task {task.name!r}: {error}") from error
        if not index.num_passages:
            raise ValueError(f"the documents() of task {task.name!r} are empty")
    if config.backend == "bm25s":
        from elpo.tools.search_bm25 import Bm25Index

        return Bm25Index(index)
    return index
