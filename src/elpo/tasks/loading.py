"""Finding a task by name: a built-in one, or `module:Class` of somebody else's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from elpo.by_name import object_by_name
from elpo.interfaces import Task

BUILT_IN = {
    "ledger": "elpo.tasks.ledger:LedgerTask",
    "lookup": "elpo.tasks.lookup:LookupTask",
    "programs": "elpo.tasks.programs:ProgramsTask",
    "gsm8k": "elpo.tasks.gsm8k:GSM8K",
    "math": "elpo.tasks.math:Math",
    "math500": "elpo.tasks.math:Math500",
    "aime24": "elpo.tasks.aime:AIME24",
    "aime25": "elpo.tasks.aime:AIME25",
    "gpqa": "elpo.tasks.gpqa:GPQA",
    "mr_ben": "elpo.tasks.mr_ben:MrBen",
    "livecodebench": "elpo.tasks.livecodebench:LiveCodeBench",
    "humaneval": "elpo.tasks.humaneval:HumanEval",
    "mbpp": "elpo.tasks.mbpp:MBPP",
    "agent_rl": "elpo.tasks.agent_rl:AgentRL",
}


def load_task(name: str, options: Mapping[str, Any]) -> Task:
    """Make a task. A task class has an attribute `Options`, a pydantic model, and takes one as argument.

    Modules in the current folder are found too, after all that are installed.

    Raises:
        ValueError: there is no such task, or its options are not valid; the message says which.
    """
    target = BUILT_IN.get(name, name)
    if ":" not in target:
        close = difflib.get_close_matches(name, BUILT_IN, n=1) or sorted(BUILT_IN)
        raise ValueError(f"task.name: there is no task {name!r}; did you mean {close[0]!r}, or module:Class?")
    task_class = object_by_name(target, "task.name: ")
    schema = getattr(task_class, "Options", None)
    if schema is None:
        raise ValueError(f"task.name: {name!r} cannot be loaded: it has no Options, a pydantic model")
    try:
        checked = schema(**options)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = ".".join(("task.options", *map(str, problem["loc"])))
            key = str(problem["loc"][-1]) if problem["loc"] else ""
            close = difflib.get_close_matches(key, schema.model_fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if problem["type"] == "extra_forbidden" and close else ""
            lines.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}{hint}")
        raise ValueError("\n".join(lines)) from None
    task: Task = task_class(checked)
    return task
