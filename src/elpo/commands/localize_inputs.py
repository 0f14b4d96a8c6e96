"""What `elpo localize` works with: the problem, the tools, and who answers."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from elpo.settings_file import fingerprints

if TYPE_CHECKING:
    from elpo.config import Config
    from elpo.debugger.trajectory import Failed
    from elpo.endpoints.connection import Connection
    from elpo.interfaces import Task, Tool
    from elpo.types import Problem

PROBLEMS_SEARCHED = (200, 5000)
"""Of every split, for the one a record names."""


def source_settings(local: str | None, connection: Connection | None) -> dict[str, Any]:
    """What decides who answers: an address and a name, or the weights' files."""
    if connection is not None:
        return {"endpoint": connection.url, "model": connection.model}
    from elpo.serving.loading import model_source

    assert local is not None
    place = model_source(local).tokenizer  # what was trained, be it adapters
    files = sorted(Path(place).glob("*.safetensors")) if Path(place).is_dir() else []
    return {"model": place, "files": fingerprints(files)}


def problem_of_task(task: Task, path: Path, line: int) -> Problem | None:
    """The problem of the task that a tree or record names; None where the file's own does.

    A tree has its problem, which is as good as the task's where JSON can hold all of it.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
        data = json.loads(text.splitlines()[line] if path.suffix == ".jsonl" else text)
        named = data["problem"]
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None  # the reader explains it
    if isinstance(named, dict):
        try:
            json.dumps([dict(problem.metadata) for problem in task.problems("test", 1)])
            return None
        except TypeError:
            named = named.get("id")
    for num in PROBLEMS_SEARCHED:
        for split in ("test", "validation", "train"):
            for problem in task.problems(split, num):
                if problem.id == named:
                    return problem
    return None


def one_call_a_turn(failed: Failed) -> None:
    """
    Raises:
        ValueError: a turn makes several calls, of which a task's grader would see only the first.
    """
    from elpo.rollout.messages import calls_of

    for number, step in enumerate(failed.steps, 1):
        if len(calls_of(step)) > 1:
            raise ValueError(
                f"step {number} makes {len(calls_of(step))} calls at once; tasks grade one call a turn: use "
                "another grader, such as --answer"
            )


def open_tools(names: str | None, task: Task | None, config: Config, stack: ExitStack) -> dict[str, Tool]:
    """The tools by name, closed with `stack`.

    Raises:
        ValueError: there is no such tool, or it does not work here.
    """
    from elpo.tools.functions import load_function_tool
    from elpo.training.tools import make_tools

    wanted = [name.strip() for name in (names or "").split(",") if name.strip()]
    if names is None and task is not None:
        wanted = list(task.tool_names)
    asked: Any = SimpleNamespace(
        name="localize",
        tool_names=[name for name in wanted if ":" not in name],
        tools=lambda: [tool for tool in getattr(task, "tools", tuple)() if tool.name in wanted],
        python_state=getattr(task, "python_state", "none"),
    )
    tools = make_tools(asked, config)
    for tool in tools.values():
        stack.enter_context(closing(tool))
    for name in wanted:
        if ":" in name:
            own = load_function_tool(name)
            stack.enter_context(closing(own))
            tools[own.name] = own
    return tools
