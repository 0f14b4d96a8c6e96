"""`elpo serve-model`: an OpenAI-compatible server in front of a model folder."""

from __future__ import annotations

import argparse
import sys

from elpo.commands.endpoint_options import api_key


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "serve-model",
        help="serve a model over HTTP",
        description="Serve a model through the OpenAI chat-completions API, tool calls included. Concurrent "
        "requests are decoded together.",
    )
    parser.add_argument("target", metavar="RUN_OR_MODEL", help="a run folder, a model folder or a hub name")
    parser.add_argument("--name", help="what clients call the model (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--slots", type=int, default=32, help="requests decoded side by side (default: 32)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable that holds the key clients must send"
    )
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted."""
    key = api_key(args)
    if args.slots < 1:
        raise ValueError(f"--slots {args.slots}: use 1 or more")
    if not 0 <= args.port < 1 << 16:
        raise ValueError(f"--port {args.port}: use 0 to 65535")

    from elpo.serving.loading import model_source

    model_source(args.target)  # before torch is imported
    from elpo.serving.http import ChatServer
    from elpo.serving.loading import open_model

    model = open_model(args.target, args.name, args.slots, device=args.device, dtype=args.dtype)
    try:
        server = ChatServer(model, args.host, args.port, key)
    except OSError as error:
        raise ValueError(f"cannot listen on {args.host}:{args.port}: {error}") from error
    with server:
        if args.host not in ("127.0.0.1", "::1", "localhost") and key is None:
            print(
                f"warning: anyone who reaches {args.host} can use this server; see --api-key-env",
                file=sys.stderr,
            )
        print(f"serving {model.name} at {server.url}", flush=True)
        try:
            server.serve_forever()
        finally:
            model.close()
