"""`elpo tree`: look at a rollout tree."""

from __future__ import annotations

import argparse

from elpo.commands.console import wide_console


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "tree", help="print a sampled rollout tree", description="Print a rollout tree a run has saved."
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--step", type=int, help="RL step (default: the last one with trees)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, default=0, help="which of the step's trees, from 0 (default: 0)")
    which.add_argument("--problem", metavar="ID", help="the tree of this problem")
    parser.add_argument("--heldout", action="store_true", help="a tree of the evaluation after the step")
    parser.add_argument("--out", metavar="FILE", help="draw it into a .png, .svg or .pdf instead")
    parser.add_argument("--text", action="store_true", help="show all that was written, not one line a step")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Print one tree, or draw it."""
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
    console = wide_console()
    console.print(f"step {step}, tree {index} of {len(trees)} (--index)", style="dim", highlight=False)
    console.print(render_tree(*trees[index], full_text=args.text))
