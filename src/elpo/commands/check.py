"""`elpo check`: verify a task, or a model folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from elpo.commands.console import wide_console
from elpo.commands.settings import require_overrides


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "check",
        help="verify a task",
        description="Verify a task: its splits, prompts and demonstrations, and that its grader calls right "
        "solutions right, those of other problems and garbage wrong. Exits with 1 where something is wrong. "
        "`elpo check model PATH` says whether a model folder, or a hub name, can be trained.",
    )
    parser.add_argument("task", metavar="TASK", help="a built-in task or module:Class, or: model PATH")
    parser.add_argument(
        "items",
        nargs="*",
        metavar="KEY=VALUE",
        help="options of the task, such as path=data/gsm8k; with a dot, settings such as search.index=FILE",
    )
    parser.add_argument("--num", type=int, default=20, help="problems graded per split (default: 20)")
    parser.add_argument(
        "--split", action="append", choices=("train", "validation", "test"), help="only this split"
    )
    parser.add_argument(
        "--eval",
        type=int,
        metavar="N",
        help="also evaluate a scripted policy that is right half of the time on N problems per split",
    )
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 where something is wrong."""
    if args.task == "model":
        return _check_model(args.items)
    from contextlib import ExitStack, closing

    from elpo.recipes import load_config
    from elpo.tasks.check import SPLITS, check_task
    from elpo.tasks.loading import load_task
    from elpo.training.tools import make_tools
    from elpo.viz.checks import render_checks

    require_overrides(args.items, "an option")
    options = [f"task.options.{item}" for item in args.items if "." not in item.partition("=")[0]]
    settings = [item for item in args.items if "." in item.partition("=")[0]]
    config = load_config(None, [f"task.name={args.task!r}", *options, *settings])
    splits = args.split or SPLITS
    with ExitStack() as stack:
        task = load_task(config.task.name, config.task.options)
        stack.callback(getattr(task, "close", lambda: None))
        tools = make_tools(task, config)
        for tool in tools.values():
            stack.enter_context(closing(tool))
        checks = check_task(task, tools, args.num, splits)
        if args.eval:
            from elpo.evaluation.scripted import check_evaluation

            problems = [problem for split in splits for problem in task.problems(split, args.eval)]
            checks.append(check_evaluation(task, tools, problems))
    console = wide_console()
    console.print(render_checks(args.task, checks))
    return int(any(check.findings for check in checks))


def _check_model(items: Sequence[str]) -> int:
    from elpo.recipes import ConfigError
    from elpo.tasks.tool_turns import PYTHON_SCHEMA
    from elpo.training.model_check import check_model, read_architecture, read_tokenizer
    from elpo.training.model_loading import find_model

    if len(items) != 1:
        raise ConfigError("give one model: elpo check model PATH, a folder or a hub name")
    path = find_model(items[0])
    _, found = check_model(path, read_architecture(path), read_tokenizer(path), [PYTHON_SCHEMA])
    print(path)
    for name, value in found.items():
        print(f"  {name:20} {value}")
    return 0
