"""`elpo serve`: a live run's page."""

from __future__ import annotations

import argparse


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "serve", help="show a live run", description="Serve a run's report page, which follows its files."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: only this machine)")
    parser.add_argument("--port", type=int, default=8123, help="port, 0 for a free one (default: 8123)")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted."""
    from elpo.viz.server import report_server

    with report_server(args.runs, args.host, args.port) as server:
        host, port = server.server_address[:2]
        shown = host if isinstance(host, str) else host.decode()
        print(f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/  (Ctrl-C ends it)", flush=True)
        server.serve_forever()
