"""The `elpo` command: which commands there are, and how an error is said.

Each is a module of `elpo.commands`; everything heavy is imported by what needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from elpo import __version__
from elpo.commands import (
    check,
    compare,
    evaluate,
    index,
    localize,
    plan,
    plot,
    report,
    serve,
    serve_model,
    train,
    tree,
)

COMMANDS = (train, evaluate, tree, check, plan, plot, report, serve, compare, localize, serve_model, index)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 a check found something, 2 a mistake the user can
    mend, 130 interrupted.

    Mistakes are printed as one `error:` message without a traceback; ELPO_TRACEBACK=1 shows it.
    """
    parser = _parser()
    # Options may stand between the positional arguments, which argparse alone refuses.
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "items") or any(item.startswith("-") for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}; see elpo {args.chosen} --help")
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
        from elpo.interfaces import InfrastructureFault
        from elpo.rollout.faults import InfrastructureError
        from elpo.training.processes import ProcessFailed

        return isinstance(error, (InfrastructureError, InfrastructureFault, LimitReached, ProcessFailed))
    return isinstance(error, (ValueError, OSError, ImportError))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elpo", description="Reinforcement learning for language models that reason with tools."
    )
    parser.add_argument("--version", action="version", version=f"elpo {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="chosen")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
