"""The `elpo` command. It parses, calls and prints; everything heavy is imported by what needs it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from elpo import __version__
from elpo.commands import localize, serve_model
from elpo.commands.endpoint_options import add_endpoint_options, connection_of

if TYPE_CHECKING:
    from elpo.config import Config

OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
MAX_BAD_ROWS_LISTED = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 a check found something, 2 a mistake the user can
    mend, 130 interrupted.

    Mistakes are printed as one `error:` message without a traceback; ELPO_TRACEBACK=1 shows it.
    """
    parser = _parser()
    # Options may stand between the positional arguments, which argparse alone refuses.
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "items") or any(item.startswith("-") for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.items += rest
    try:
        status: int | None = args.command(args)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `elpo tree ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("ELPO_TRACEBACK") or not _is_explained(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status or 0


def _is_explained(error: Exception) -> bool:
    """True where the message alone tells a user what to mend; anything else is a defect of ours."""
    if isinstance(error, RuntimeError):
        from elpo.endpoints.account import LimitReached
        from elpo.rollout.scheduler import InfrastructureError

        return isinstance(error, (InfrastructureError, LimitReached))
    return isinstance(error, (ValueError, OSError, ImportError))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elpo", description="Reinforcement learning for language models that reason with tools."
    )
    parser.add_argument("--version", action="version", version=f"elpo {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", help="train an agent", description="Train an agent: cold start, RL, evaluation."
    )
    train.add_argument(
        "items",
        nargs="*",
        metavar="RECIPE | KEY=VALUE",
        help="a recipe file (or a run folder, for its settings), then settings such as rl.num_steps=50",
    )
    train.add_argument(
        "--resume", action="store_true", help="continue the run in its folder, if there is one"
    )
    train.add_argument("--overwrite", action="store_true", help="delete the run in its folder first")
    train.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    train.set_defaults(command=_train)

    evaluate = commands.add_parser(
        "eval",
        help="measure success",
        description="Measure success on test problems; the same command continues where it was stopped.",
    )
    evaluate.add_argument(
        "target", nargs="?", metavar="RUN_OR_MODEL", help="a run folder, a model folder or a hub name"
    )
    evaluate.add_argument("items", nargs="*", metavar="RECIPE | KEY=VALUE", help="settings of the evaluation")
    evaluate.add_argument("--out", metavar="DIR", help="folder of the evaluation (default: by its settings)")
    add_endpoint_options(evaluate)
    evaluate.set_defaults(command=_eval)

    tree = commands.add_parser(
        "tree", help="print a sampled rollout tree", description="Print a rollout tree a run has saved."
    )
    tree.add_argument("run", metavar="RUN", help="a run folder")
    tree.add_argument("--step", type=int, help="RL step (default: the last one with trees)")
    which = tree.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, default=0, help="which of the step's trees, from 0 (default: 0)")
    which.add_argument("--problem", metavar="ID", help="the tree of this problem")
    tree.add_argument("--heldout", action="store_true", help="a tree of the evaluation after the step")
    tree.add_argument("--out", metavar="FILE", help="draw it into a .png, .svg or .pdf instead")
    tree.add_argument("--text", action="store_true", help="show all that was written, not one line a step")
    tree.set_defaults(command=_tree)

    check = commands.add_parser(
        "check",
        help="verify a task",
        description="Verify a task: its splits, prompts and demonstrations, and that its grader calls right "
        "solutions right, those of other problems and garbage wrong. Exits with 1 where something is wrong. "
        "`elpo check model PATH` says whether a model folder, or a hub name, can be trained.",
    )
    check.add_argument("task", metavar="TASK", help="a built-in task or module:Class, or: model PATH")
    check.add_argument(
        "items",
        nargs="*",
        metavar="KEY=VALUE",
        help="options of the task, such as path=data/gsm8k; with a dot, settings such as search.index=FILE",
    )
    check.add_argument("--num", type=int, default=20, help="problems graded per split (default: 20)")
    check.add_argument(
        "--split", action="append", choices=("train", "validation", "test"), help="only this split"
    )
    check.add_argument(
        "--eval",
        type=int,
        metavar="N",
        help="also evaluate a scripted policy that is right half of the time on N problems per split",
    )
    check.set_defaults(command=_check)

    plan = commands.add_parser(
        "plan",
        help="estimate memory and time",
        description="Estimate the memory and time of a run, and print every setting of it, without starting.",
    )
    plan.add_argument("items", nargs="*", metavar="RECIPE | KEY=VALUE", help="as for train")
    plan.add_argument("--device", default="a100", metavar="NAME", help="a100 (default), rtx4090, ...")
    plan.add_argument("--processes", type=int, default=1, help="devices, one process each (default: 1)")
    plan.add_argument("--sharded", action="store_true", help="spread weights over the devices (FSDP)")
    plan.set_defaults(command=_plan)

    plot = commands.add_parser(
        "plot",
        help="draw learning curves",
        description="Draw the learning curves of one or more runs, or what was measured: result.json of elpo "
        "eval, recovery.json, ranking.json.",
    )
    plot.add_argument("runs", nargs="+", metavar="RUN | FILE.json", help="run folders, or files of results")
    plot.add_argument(
        "--out",
        metavar="FILE",
        help=".png, .svg or .pdf to write (default: plots/learning_curves.png of the first run, or the first "
        "file's name with .png)",
    )
    plot.add_argument(
        "--panels", metavar="DIR", help="also write each panel by itself into this folder, as .png and .svg"
    )
    plot.set_defaults(command=_plot)

    compare = commands.add_parser(
        "compare",
        help="compare algorithms or settings",
        description="Train variants of a recipe with several seeds, from the same cold starts and with the "
        "same budget, and write table and curves. The same command continues where it was stopped.",
    )
    compare.add_argument("study", metavar="STUDY | RECIPE", help="a study file, or a recipe")
    compare.add_argument("items", nargs="*", metavar="KEY=VALUE", help="settings of every run")
    compare.add_argument("--algorithms", nargs="+", metavar="NAME", help="instead of the study's variants")
    compare.add_argument("--seeds", nargs="+", type=int, metavar="N", help="instead of the study's")
    compare.add_argument("--target", type=float, help="held-out success whose price is reported")
    compare.add_argument("--runs", metavar="DIR", help="where the runs go (default: runs/studies/NAME)")
    compare.add_argument("--jobs", type=int, help="runs side by side (default: a core each; 1 with a GPU)")
    compare.add_argument("--report-only", action="store_true", help="run nothing; report what is finished")
    compare.add_argument("--out", metavar="DIR", help="folder of the report (default: that of the runs)")
    compare.set_defaults(command=_compare)

    report = commands.add_parser(
        "report",
        help="write a run's report page",
        description="Write one HTML file with curves, budget, search, tools and trees of a run. Runs that "
        "differ only in their seed become one curve with its spread.",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders; the first names the file")
    report.add_argument("--out", metavar="HTML", help="file to write (default: report.html of the first run)")
    report.set_defaults(command=_report)

    serve = commands.add_parser(
        "serve", help="show a live run", description="Serve a run's report page, which follows its files."
    )
    serve.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    serve.add_argument("--host", default="127.0.0.1", help="address (default: only this machine)")
    serve.add_argument("--port", type=int, default=8123, help="port, 0 for a free one (default: 8123)")
    serve.set_defaults(command=_serve)

    index = commands.add_parser(
        "index", help="make a search index", description="Make an index for the search tool from a corpus."
    )
    index.add_argument(
        "corpus",
        nargs="+",
        metavar="CORPUS",
        help=".jsonl or .json with id, title and text (or contents), or plain text, a passage a paragraph",
    )
    index.add_argument(
        "--out", required=True, metavar="FILE", help="index file to write; an older is replaced"
    )
    index.set_defaults(command=_index)

    serve_model.add_parser(commands)
    localize.add_parser(commands)
    return parser


def _train(args: argparse.Namespace) -> None:
    from elpo.recipes import dump_config
    from elpo.training.run_folder import RunFolder, RunFolderError

    config = _load(args.items)
    if args.dry_run:
        print(dump_config(config), end="")
        return
    folder = RunFolder(config.run.dir)
    is_main = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher has started
    if is_main:
        folder.check(config, resume=args.resume, overwrite=args.overwrite)  # before torch is imported

    from elpo.training.progress import console_progress
    from elpo.training.trainer import train

    try:
        with console_progress() as progress:
            result = train(config, resume=args.resume, overwrite=args.overwrite, progress=progress)
    except KeyboardInterrupt:
        print(f"continue with: elpo train {folder.path} --resume", file=sys.stderr)
        raise
    except RunFolderError:
        raise
    except Exception:
        if folder.config_file.exists():  # the run has begun
            import traceback

            # After hours of work the message alone is too little to tell a mistake from a defect.
            folder.write_text(folder.error_file, traceback.format_exc())
            print(f"the traceback is in {folder.error_file}", file=sys.stderr)
        raise

    if not is_main:
        return
    from elpo.viz.plots import learning_curves

    print(f"held-out success before RL: {result.success_before:.3f}")
    print(f"held-out success after RL:  {result.success_after:.3f}  (best {result.best_success:.3f})")
    print(f"run folder:      {folder.path}")
    print(f"learning curves: {learning_curves([folder.path], folder.plots / 'learning_curves.png')}")
    if folder.tree_steps():
        print(f"a rollout tree:  elpo tree {folder.path}")


def _eval(args: argparse.Namespace) -> None:
    from pathlib import Path

    from elpo.recipes import ConfigError, load_config
    from elpo.training.run_folder import RunFolder

    connection = connection_of(args)
    if connection is None and args.target is None:
        raise ConfigError("give a run, a model, or --endpoint and --model")
    folder = RunFolder(args.target or "")
    if connection is not None:  # all that is positional are settings
        config = _load([*filter(None, [args.target]), *args.items])
        run: Path | None = None
    elif folder.config_file.exists():
        if args.items and not OVERRIDE.match(args.items[0]):
            raise ConfigError(f"{args.target} has its own settings; give only key=value, not {args.items[0]}")
        config = load_config(folder.config_file, args.items)
        run = folder.path
    else:
        config = _load([*args.items, f"model.path={args.target!r}"])
        run = None

    from rich.console import Console

    from elpo.evaluation.runner import evaluate_run
    from elpo.training.progress import console_progress
    from elpo.viz.evaluation import render_summary

    out = None if args.out is None else Path(args.out)
    try:
        with console_progress(Console(stderr=True)) as progress:
            found = evaluate_run(config, run, out=out, progress=progress, connection=connection)
    except KeyboardInterrupt:
        print("continue with the same command", file=sys.stderr)
        raise
    Console().print(render_summary(found.summary), highlight=False)
    print(f"\ntrajectories and result.json: {found.folder}")


def _tree(args: argparse.Namespace) -> None:
    from rich.console import Console

    from elpo.training.run_folder import Phase, RunFolder, RunFolderError
    from elpo.viz.tree import render_tree

    folder = RunFolder(args.run)
    folder.config()
    phase: Phase = "evaluation" if args.heldout else "rl"
    steps = folder.tree_steps(phase)
    step = args.step if args.step is not None or not steps else steps[-1]
    trees = folder.read_trees(0 if step is None else step, phase)
    problems = [tree.problem.id for tree, _ in trees]
    if args.problem is not None:
        if args.problem not in problems:
            raise RunFolderError(f"step {step} has no tree of {args.problem!r}; it has {', '.join(problems)}")
        index = problems.index(args.problem)
    else:
        index = args.index
        if not 0 <= index < len(trees):
            raise RunFolderError(f"step {step} has {len(trees)} trees: use --index 0 to {len(trees) - 1}")
    if args.out is not None:
        from elpo.viz.figure import write_tree_figure

        print(write_tree_figure(*trees[index], args.out))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(f"step {step}, tree {index} of {len(trees)} (--index)", style="dim", highlight=False)
    console.print(render_tree(*trees[index], full_text=args.text))


def _check(args: argparse.Namespace) -> int:
    if args.task == "model":
        return _check_model(args.items)
    from contextlib import ExitStack, closing

    from rich.console import Console

    from elpo.recipes import ConfigError, load_config
    from elpo.tasks.check import SPLITS, check_task
    from elpo.tasks.loading import load_task
    from elpo.training.assembly import make_tools
    from elpo.viz.checks import render_checks

    if wrong := [item for item in args.items if not OVERRIDE.match(item)]:
        raise ConfigError(f"{wrong[0]}: an option is written key=value")
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
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(render_checks(args.task, checks))
    return int(any(check.findings for check in checks))


def _check_model(items: Sequence[str]) -> int:
    from elpo.recipes import ConfigError
    from elpo.tasks.ledger_demonstrations import PYTHON_SCHEMA
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


def _plan(args: argparse.Namespace) -> None:
    from elpo.recipes import ConfigError, dump_config, nearest
    from elpo.training.plan import DEVICES, plan
    from elpo.viz.plan import render_plan

    config = _load(args.items)
    if args.device not in DEVICES:
        raise ConfigError(f"--device: {args.device!r} is not known; {nearest(args.device, DEVICES)}")
    if args.processes < 1:
        raise ConfigError(f"--processes is {args.processes}; give 1 or more")
    estimate = plan(config, DEVICES[args.device], args.processes, args.sharded)
    print(render_plan(estimate, args.device, DEVICES[args.device].memory, args.processes))
    print(f"\nevery setting:\n{dump_config(config)}", end="")


def _plot(args: argparse.Namespace) -> None:
    from elpo.training.run_folder import RunFolder
    from elpo.viz.plots import learning_curves, single_panels

    if all(name.endswith(".json") for name in args.runs):
        from elpo.viz.results import plot_results

        print(plot_results(args.runs, args.out or f"{args.runs[0].removesuffix('.json')}.png"))
        return
    print(learning_curves(args.runs, args.out or RunFolder(args.runs[0]).plots / "learning_curves.png"))
    if args.panels is not None:
        print(*single_panels(args.runs, args.panels), sep="\n")


def _report(args: argparse.Namespace) -> None:
    from elpo.viz.report import write_report

    print(write_report(args.runs, args.out))


def _serve(args: argparse.Namespace) -> None:
    from elpo.viz.server import report_server

    with report_server(args.runs, args.host, args.port) as server:
        host, port = server.server_address[:2]
        shown = host if isinstance(host, str) else host.decode()
        print(f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/  (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def _compare(args: argparse.Namespace) -> None:
    from pathlib import Path

    from elpo.recipes import ConfigError
    from elpo.studies.study import load_study

    if wrong := [item for item in args.items if not OVERRIDE.match(item)]:
        raise ConfigError(f"{wrong[0]}: a setting is written key=value")
    changes = {
        key: getattr(args, key) for key in ("seeds", "target", "runs") if getattr(args, key) is not None
    }
    if args.algorithms:
        changes |= {"algorithms": args.algorithms, "variants": {}}
    study = load_study(args.study, changes, args.items)
    out = Path(args.out) if args.out else study.runs

    from rich.console import Console

    from elpo.provenance import provenance
    from elpo.studies.results import read_results
    from elpo.studies.running import default_jobs, run_study
    from elpo.training.progress import console_progress
    from elpo.viz.study import curves, report

    if not args.report_only:
        try:
            with console_progress(Console(stderr=True)) as progress:
                run_study(study, args.jobs or default_jobs(study), progress)
        except KeyboardInterrupt:
            print("continue with the same command", file=sys.stderr)
            raise
    results = read_results(study)
    text = report(study, results, provenance())
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{study.name}.md").write_text(f"{text}\n![curves]({study.name}.png)\n", encoding="utf-8")
    curves(study, results, out / f"{study.name}.png")
    print(text)
    print(f"report: {out / study.name}.md")


def _index(args: argparse.Namespace) -> None:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from elpo.tools.search_backend import Passage
    from elpo.tools.search_corpus import BadRow, read_corpus
    from elpo.tools.search_index import write_index

    paths, out = [Path(name) for name in args.corpus], Path(args.out)
    bad: list[BadRow] = []

    def passages() -> Iterator[Passage]:
        for row in read_corpus(paths, lambda num_bytes: progress.advance(task, num_bytes)):
            if isinstance(row, Passage):
                yield row
            else:
                bad.append(row)
                if len(bad) <= MAX_BAD_ROWS_LISTED:
                    progress.console.print(f"left out: {row}", markup=False, highlight=False, soft_wrap=True)

    columns = (TextColumn("indexing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=sum(path.stat().st_size for path in paths))
        num_passages = write_index(passages(), out)
    if bad:
        unlisted = f" ({len(bad) - MAX_BAD_ROWS_LISTED} not listed)" if len(bad) > MAX_BAD_ROWS_LISTED else ""
        print(f"{len(bad)} rows were left out{unlisted}", file=sys.stderr)
    print(f"{out}: {num_passages} passages, {out.stat().st_size / 1e6:.1f} MB")


def _load(items: Sequence[str]) -> Config:
    """The configuration of an optional recipe, or run folder, followed by overrides."""
    from pathlib import Path

    from elpo.recipes import ConfigError, load_config
    from elpo.training.run_folder import RunFolder

    recipes = [item for item in items if not OVERRIDE.match(item)]
    overrides = [item for item in items if OVERRIDE.match(item)]
    if len(recipes) > 1:
        raise ConfigError(f"give one recipe, not {', '.join(recipes)}; a setting is written key=value")
    if not recipes:
        return load_config(None, overrides)
    path = Path(recipes[0])
    if not path.is_dir():
        return load_config(path, overrides)
    folder = RunFolder(path)
    folder.config()
    # The folder may have been moved since the run began.
    return load_config(folder.config_file, [f"run.dir={str(path)!r}", *overrides])


if __name__ == "__main__":
    sys.exit(main())
