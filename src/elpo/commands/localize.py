"""`elpo localize`: which step doomed this trajectory, of any agent and with any model."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elpo.commands.console import wide_console
from elpo.commands.endpoint_options import add_endpoint_options, connection_of
from elpo.commands.localize_inputs import one_call_a_turn, open_tools, problem_of_task, source_settings
from elpo.commands.settings import require_overrides
from elpo.settings_file import claim, digest, write_json

if TYPE_CHECKING:
    from elpo.chat import ChatPolicy
    from elpo.config import Config
    from elpo.debugger.finding import Finding
    from elpo.debugger.grading import GraderKind, Judge
    from elpo.debugger.search import SearchSettings
    from elpo.debugger.trajectory import Failed
    from elpo.endpoints.connection import Connection
    from elpo.interfaces import Tool


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "localize",
        help="find the step that doomed a trajectory",
        description="Find the first irrecoverable step of a failed trajectory: continue it from chosen steps "
        "and see whether any continuation still succeeds. The same command continues where it was stopped. "
        "Exits with 1 where the step could not be found.",
    )
    parser.add_argument(
        "trajectory",
        metavar="TRAJECTORY",
        help="OpenAI chat messages (.json), a rollout tree (a line of a run's trees/*.jsonl) or a record "
        "of an evaluation (a line of its trajectories/*.jsonl)",
    )
    parser.add_argument(
        "items", nargs="*", metavar="KEY=VALUE", help="settings such as rollout.temperature=0.7"
    )
    parser.add_argument("--line", type=int, default=0, help="of a .jsonl file, from 0 (default: 0)")
    parser.add_argument("--leaf", type=int, metavar="NODE", help="of a tree: the failed leaf's node")
    parser.add_argument("--problem", metavar="JSON", help="the problem: id, messages, answer, metadata")
    grader = parser.add_argument_group("what success is (one of these)").add_mutually_exclusive_group(
        required=True
    )
    grader.add_argument(
        "--task", metavar="NAME", help="a task (built-in or module:Class): its grader and tools"
    )
    grader.add_argument("--answer", metavar="TEXT", help="the final answer equals this, as mathematics")
    grader.add_argument("--regex", metavar="PATTERN", help="the final answer contains this")
    grader.add_argument("--tests", metavar="FILE", help="the last code block passes these tests (sandboxed)")
    grader.add_argument(
        "--command",
        dest="grader_command",
        metavar="CMD",
        help="CMD exits with 0; it gets the trajectory as JSON on stdin and runs OUTSIDE the sandbox",
    )
    parser.add_argument(
        "--tools",
        metavar="A,B",
        help="tools: python (sandboxed), search, or your own module:function, which runs OUTSIDE the sandbox",
    )
    add_endpoint_options(parser)
    parser.add_argument(
        "--local",
        metavar="RUN_OR_MODEL",
        help="instead of an endpoint: a run folder, model folder or hub name",
    )
    parser.add_argument("--budget", type=int, default=32, help="continuations in all (default: 32)")
    parser.add_argument(
        "--suffixes",
        default="4",
        metavar="N|MIN:MAX",
        help="continuations from a step; with a range, more where the policy was less sure (default: 4)",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the search (default: by its settings)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--text", action="store_true", help="print continuations in full")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Search, print, write `result.json`, `tree.json` and `report.html`."""
    from elpo.debugger.grading import GraderChoice
    from elpo.debugger.trajectory import read_failed, read_problem
    from elpo.recipes import ConfigError, load_config
    from elpo.tasks.loading import load_task

    connection = connection_of(args)
    if (connection is None) == (args.local is None):
        raise ConfigError("give either --endpoint and --model, or --local")
    require_overrides(args.items, "a setting")
    name = [f"task.name={args.task!r}"] if args.task else []
    config = load_config(None, [*name, *args.items])
    settings = _search_settings(args)
    problem = None if args.problem is None else read_problem(Path(args.problem))
    with ExitStack() as stack:
        task = None
        path = Path(args.trajectory)
        if args.task is not None:
            task = load_task(config.task.name, config.task.options)
            stack.callback(getattr(task, "close", lambda: None))
            problem = problem or problem_of_task(task, path, args.line)
            judge: Judge = task.grade
            grader = f"task {args.task}"
        else:
            chosen = GraderChoice(*_grader(args))
            judge, grader = stack.enter_context(chosen.open()), f"{chosen.kind} {chosen.value}"
        failed = read_failed(path, args.line, args.leaf, problem)
        if task is not None:
            one_call_a_turn(failed)
        tools = open_tools(args.tools, task, config, stack)
        source = source_settings(args.local, connection)
        described = {
            "format": 1,
            "trajectory": failed.digest,
            "grader": grader,
            "tools": sorted(tools),
            **source,
            **config.model_dump(mode="json", include={"task", "python", "search", "rollout"}),
            "seed": config.run.seed,
        }
        folder = _folder(args.out, path, described)
        claim(folder, described, "search")
        for notice in _outside_the_sandbox(args):
            print(f"note: {notice}", file=sys.stderr)
        finding = _searched(args, config, connection, settings, failed, judge, grader, tools, folder)
    _show(args, finding, folder)
    return 0 if finding.critical is not None else 1


def _searched(
    args: argparse.Namespace,
    config: Config,
    connection: Connection | None,
    settings: SearchSettings,
    failed: Failed,
    judge: Judge,
    grader: str,
    tools: Mapping[str, Tool],
    folder: Path,
) -> Finding:
    from rich.console import Console

    from elpo.debugger.finding import shown
    from elpo.debugger.search import search
    from elpo.endpoints.account import Spending
    from elpo.endpoints.connection import kept
    from elpo.rollout.chat import ChatAgent, Outage
    from elpo.rollout.episode import Limits
    from elpo.tree_json import tree_to_json
    from elpo.viz.finding_page import write_page
    from elpo.viz.finding_text import LineSearch, LiveSearch

    rollout = config.rollout
    limits = Limits.of(rollout)
    spending = connection.spending if connection else Spending(args.max_total_tokens)
    with ExitStack() as stack:
        model, policy, failures = stack.enter_context(_policy(args.local, connection))
        keeper = stack.enter_context(kept(policy, folder / "completions.jsonl", spending))
        agent = ChatAgent(keeper, model, tools, judge, limits, rollout.temperature, config.run.seed, Outage())
        console = Console(stderr=True)
        steps = [shown(step) for step in failed.steps]
        live = LiveSearch(console, steps) if console.is_terminal else LineSearch(console)
        with closing(live):
            finding, tree = search(agent, failed, keeper, settings, args.concurrency, grader, live, failures)
    write_json(folder / "result.json", finding.to_json())
    write_json(folder / "tree.json", tree_to_json(tree))
    write_page(finding, folder / "report.html")
    return finding


def _show(args: argparse.Namespace, finding: Finding, folder: Path) -> None:

    from elpo.viz.finding_text import render_finding

    if args.json:
        print(json.dumps(finding.to_json(), indent=1))
    else:
        wide_console().print(render_finding(finding, full=args.text))
        print(f"\nreport.html, result.json, tree.json: {folder}")
    if finding.stopped is not None:
        print(f"stopped: {finding.stopped}; the same command goes on from here", file=sys.stderr)


@contextmanager
def _policy(
    local: str | None, connection: Connection | None
) -> Iterator[tuple[str, ChatPolicy, Callable[[], Counter[str]]]]:
    """The model's name, what answers for it, and the failed attempts so far."""
    if connection is not None:
        endpoint = connection.open()
        yield connection.model, endpoint, lambda: endpoint.failures
        return
    from elpo.serving.loading import open_model
    from elpo.serving.local import LocalPolicy

    assert local is not None
    with closing(open_model(local)) as model:
        yield model.name, LocalPolicy(model), Counter


def _search_settings(args: argparse.Namespace) -> SearchSettings:
    from elpo.debugger.search import SearchSettings

    if args.budget < 1:
        raise ValueError(f"--budget {args.budget}: use 1 or more")
    low, colon, high = args.suffixes.partition(":")
    try:
        least, most = int(low), int(high if colon else low)
    except ValueError:
        raise ValueError(f"--suffixes {args.suffixes}: write a number, or MIN:MAX") from None
    if not 1 <= least <= most:
        raise ValueError(f"--suffixes {args.suffixes}: from 1 up, the smaller first")
    return SearchSettings(args.budget, least, most)


def _grader(args: argparse.Namespace) -> tuple[GraderKind, str]:
    """The one way to judge that was given."""
    given: dict[GraderKind, str | None] = {
        "answer": args.answer,
        "regex": args.regex,
        "tests": args.tests,
        "command": args.grader_command,
    }
    return next((kind, value) for kind, value in given.items() if value is not None)


def _outside_the_sandbox(args: argparse.Namespace) -> list[str]:
    own = [name for name in (args.tools or "").split(",") if ":" in name]
    notices = []
    if own:
        notices.append(
            f"{', '.join(own)} run in this process, outside the sandbox, with arguments the model chooses"
        )
    if args.grader_command is not None:
        notices.append("the grading command runs outside the sandbox and is given what the model wrote")
    return notices


def _folder(out: str | None, path: Path, described: Mapping[str, Any]) -> Path:
    if out is not None:
        return Path(out).expanduser()
    return Path("runs/localize") / f"{path.stem}-{digest(described)}"
