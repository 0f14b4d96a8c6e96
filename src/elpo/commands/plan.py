"""`elpo plan`: estimate memory and time."""

from __future__ import annotations

import argparse

from elpo.commands.settings import load_settings


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "plan",
        help="estimate memory and time",
        description="Estimate the memory and time of a run, and print every setting of it, without starting.",
    )
    parser.add_argument("items", nargs="*", metavar="RECIPE | KEY=VALUE", help="as for train")
    parser.add_argument("--device", default="a100", metavar="NAME", help="a100 (default), rtx4090, ...")
    parser.add_argument("--processes", type=int, default=1, help="devices, one process each (default: 1)")
    parser.add_argument("--sharded", action="store_true", help="spread weights over the devices (FSDP)")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Print the estimate and every setting."""
    from elpo.recipes import ConfigError, dump_config, nearest
    from elpo.training.plan import DEVICES, plan
    from elpo.viz.plan import render_plan

    config = load_settings(args.items)
    if args.device not in DEVICES:
        raise ConfigError(f"--device: {args.device!r} is not known; {nearest(args.device, DEVICES)}")
    if args.processes < 1:
        raise ConfigError(f"--processes is {args.processes}; give 1 or more")
    estimate = plan(config, DEVICES[args.device], args.processes, args.sharded)
    print(render_plan(estimate, args.device, DEVICES[args.device].memory, args.processes))
    print(f"\nevery setting:\n{dump_config(config)}", end="")
