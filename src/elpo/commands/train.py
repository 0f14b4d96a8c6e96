"""`elpo train`: train an agent."""

from __future__ import annotations

import argparse
import os
import sys

from elpo.commands.settings import load_settings


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "train", help="train an agent", description="Train an agent: cold start, RL, evaluation."
    )
    parser.add_argument(
        "items",
        nargs="*",
        metavar="RECIPE | KEY=VALUE",
        help="a recipe file (or a run folder, for its settings), then settings such as rl.num_steps=50",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in its folder, if there is one"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the run in its folder first")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Train, or print the settings."""
    from elpo.recipes import dump_config
    from elpo.training.run_folder import RunFolder, RunFolderError

    config = load_settings(args.items)
    if args.dry_run:
        print(dump_config(config), end="")
        return
    folder = RunFolder(config.run.dir)
    is_main = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher has started
    if is_main:
        folder.check(config, resume=args.resume, overwrite=args.overwrite)  # before torch is imported

    from elpo.training.processes import ProcessFailed
    from elpo.training.progress import console_progress
    from elpo.training.trainer import train

    try:
        with console_progress() as progress:
            result = train(config, resume=args.resume, overwrite=args.overwrite, progress=progress)
    except KeyboardInterrupt:
        print(f"continue with: elpo train {folder.path} --resume", file=sys.stderr)
        raise
    except (RunFolderError, ProcessFailed):  # what has failed in another process that one writes down
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
