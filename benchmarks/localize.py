"""Does `elpo localize` through HTTP, and through a bad connection, find what the search in the process finds?

    python benchmarks/localize.py runs/tiny --trajectories 50

The run's policy draws trajectories on test problems of the ledger task, whose oracle knows the first
irrecoverable step; one failed trajectory of each problem is kept. It is searched, always with the same number
of suffixes per anchor,

- in the process: the scheduler and the engine of the training, on token ids;
- through HTTP: as chat messages, through a real server (`elpo serve-model`, a process of its own);
- through HTTP with faults: the same through a proxy that spoils a share of the requests: timeouts, 429, 500,
  broken or wrong JSON, dropped and cut connections;
- impatiently: with those faults and a single attempt for a request, so that whole searches stop; then a
  second call without faults goes on with what the first has kept.

Writes localize.json and localize.md to --out.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from localization import wilson

sys.path.append(str(Path(__file__).parents[1]))  # the tests' proxy
from report import arguments, publish

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.strategies import RolloutRequest, Search, Strategy, localize
from elpo.debugger.search import SearchSettings, search
from elpo.debugger.trajectory import Failed, from_messages
from elpo.endpoints.account import Spending
from elpo.endpoints.connection import kept
from elpo.endpoints.openai import Endpoint, Retries
from elpo.recipes import load_config
from elpo.rollout.chat import ChatAgent, Outage
from elpo.rollout.episode import Limits
from elpo.rollout.messages import messages_of
from elpo.serving.loading import model_source
from elpo.tasks.ledger import first_irrecoverable_step
from elpo.training.assembly import assemble
from elpo.training.run_folder import RunFolder
from elpo.tree import ROOT, RolloutTree
from elpo.types import StopReason
from tests.endpoints.faulty_proxy import FaultyProxy

CANDIDATES = 8
SUFFIXES = 4
SETTINGS = SearchSettings(budget=64, min_suffixes=SUFFIXES, max_suffixes=SUFFIXES)
TIMEOUT = 10.0
"""Seconds a client waits for an answer; a stalled one takes a second longer."""


def search_first_failure(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
    """Draw some trajectories; search the first that failed and called a tool."""
    leaves = yield RolloutRequest(ROOT, CANDIDATES)
    failed = [leaf for leaf in leaves if not tree.outcomes[leaf].correct and len(tree.path(leaf)) > 1]
    if failed:
        inner: Strategy = localize(failed[0], SUFFIXES, SUFFIXES)
        yield from inner(tree, ledger, rng)


def in_the_process(run: Path, num: int, seed: int) -> tuple[list[Failed], list[int | None], list[int]]:
    """Failed trajectories as messages, what the search in the process says of each, and the truth."""
    import torch

    config = load_config(run / "config.yaml")
    folder = model_source(str(run)).path
    trajectories: list[Failed] = []
    found: list[int | None] = []
    truths: list[int] = []
    with closing(assemble(config, torch.device("cpu"), Path(folder))) as assembly:
        assembly.model.eval()
        problems = assembly.task.problems("test", 20 * num)
        for start in range(0, len(problems), 50):
            trees, _ = assembly.scheduler.grow(
                problems[start : start + 50], search_first_failure, SETTINGS.budget + CANDIDATES, seed
            )
            for tree in trees:
                for localization in tree.localizations:
                    path = tree.path(localization.leaf)
                    steps = [tree.nodes[node].step for node in path]
                    stop = tree.outcomes[localization.leaf].stop
                    truth = first_irrecoverable_step(tree.problem, steps, stop)
                    assert truth is not None
                    messages = [*tree.problem.messages, *(m for step in steps for m in messages_of(step))]
                    given = from_messages(json.loads(json.dumps(messages)), tree.problem)
                    trajectories.append(Failed(given.problem, given.steps, stop))
                    critical = localization.critical
                    found.append(None if critical is None else path.index(critical) + 1)
                    truths.append(truth)
            print(f"{len(trajectories)} failed trajectories", flush=True)
            if len(trajectories) >= num:
                break
    return trajectories[:num], found[:num], truths[:num]


def through_http(
    run: Path, url: str, trajectories: list[Failed], folder: Path, attempts: int, seed: int
) -> tuple[list[Any], Counter[str], float]:
    """A finding for every trajectory, the failed attempts by kind, and seconds."""
    config = load_config(run / "config.yaml")
    endpoint = Endpoint(url, retries=Retries(attempts, first_pause=0.05, timeout=TIMEOUT))
    limits = Limits.of(config.rollout)
    from elpo.tasks.loading import load_task
    from elpo.training.tools import make_tools

    task = load_task(config.task.name, config.task.options)
    tools = make_tools(task, config)
    started = time.perf_counter()

    def one(number: int) -> Any:
        with kept(_Shared(endpoint), folder / f"{number}.jsonl", Spending()) as policy:
            agent = ChatAgent(
                policy, "tiny", tools, task.grade, limits, config.rollout.temperature, seed, Outage()
            )
            return search(agent, trajectories[number], policy, SETTINGS, SUFFIXES, "ledger")[0]

    try:
        with ThreadPoolExecutor(8) as threads:
            findings = list(threads.map(one, range(len(trajectories))))
    finally:
        for tool in tools.values():
            tool.close()
    return findings, endpoint.failures, time.perf_counter() - started


class _Shared:
    """The endpoint for one of many searches: closing it ends that search alone."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.complete = endpoint.complete

    def close(self) -> None:
        """The endpoint goes on."""


@contextmanager
def server(run: Path) -> Any:
    """The URL of `elpo serve-model RUN` in a process of its own."""
    command = [sys.executable, "-m", "elpo.cli", "serve-model", str(run), "--name", "tiny", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield next(line.split()[-1] for line in process.stdout if line.startswith("serving"))
    finally:
        process.terminate()
        process.wait()


def row(name: str, found: list[int | None], truths: list[int], **more: Any) -> dict[str, Any]:
    """Hits of one way to search."""
    hits = sum(f == t for f, t in zip(found, truths, strict=True))
    num = sum(f is not None for f in found)
    return {
        "search": name,
        "trajectories": len(found),
        "finished": num,
        "exact": hits,
        "interval": wilson(hits, num),
        "early": sum(f is not None and f < t for f, t in zip(found, truths, strict=True)),
        "late": sum(f is not None and f > t for f, t in zip(found, truths, strict=True)),
        **more,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--trajectories", type=int, default=50)
    parser.add_argument("--faults", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begun = time.perf_counter()
    trajectories, found, truths = in_the_process(args.run, args.trajectories, args.seed)
    seconds = time.perf_counter() - begun
    rows = [row("in the process", found, truths, seconds=seconds)]
    print(rows[-1], flush=True)
    assert RunFolder(args.run).config_file.exists()
    with server(args.run) as url, tempfile.TemporaryDirectory() as scratch:
        proxy = FaultyProxy(url, args.faults, TIMEOUT + 1, args.seed)
        clean: list[Any] = []
        for name, where, folder, attempts in [
            ("through HTTP", url, "clean", 8),
            ("through HTTP with faults", proxy.url, "faults", 8),
            ("impatiently, with faults", proxy.url, "impatient", 1),
            ("a second call after it", url, "impatient", 8),
        ]:
            before = len(list(Path(scratch, folder).glob("*")))
            findings, failures, seconds = through_http(
                args.run, where, trajectories, Path(scratch, folder), attempts, args.seed
            )
            clean = clean or findings
            verdicts = [f.critical for f in findings]
            rows.append(
                row(
                    name,
                    verdicts,
                    truths,
                    same=sum(f.critical == c.critical for f, c in zip(findings, clean, strict=True)),
                    another=sum(
                        f.critical not in (None, c.critical) for f, c in zip(findings, clean, strict=True)
                    ),
                    confidence=float(
                        np.mean([f.confidence for f in findings if f.confidence is not None] or [np.nan])
                    ),
                    completions=sum(f.cost.requests for f in findings),
                    replayed=sum(f.cost.replayed for f in findings) if before else 0,
                    spoilt=dict(failures),
                    lost=sum(len(f.lost) for f in findings),
                    seconds=seconds,
                )
            )
            print(rows[-1], flush=True)
        total = proxy.passed + sum(proxy.spoilt.values())
        faults = {"requests": total, "spoilt": dict(proxy.spoilt)}
    pairs = Counter((f == t, c.critical == t) for f, c, t in zip(found, clean, truths, strict=True))
    only = pairs[True, False], pairs[False, True]
    sign = min(1.0, 2 * sum(math.comb(sum(only), i) for i in range(min(only) + 1)) / 2 ** sum(only))
    answers = Counter(t == len(f.steps) for f, t in zip(trajectories, truths, strict=True))
    about: dict[str, Any] = {"faults": faults, "truth_is_the_last_step": answers[True]}
    about |= {"exact_only_in_the_process": only[0], "exact_only_through_http": only[1], "sign_test_p": sign}
    assert all(f.stop in StopReason for f in trajectories)
    lines = [
        "| search | trajectories | finished | exact (95 % interval) | early | late | verdict as through "
        "HTTP | another verdict | failed attempts | continuations lost | completions | replayed | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = r["interval"]
        cells = [
            r["search"],
            r["trajectories"],
            r["finished"],
            f"{r['exact']} ({low:.2f}-{high:.2f})",
            r["early"],
            r["late"],
            r.get("same", ""),
            r.get("another", ""),
            sum(r["spoilt"].values()) if "spoilt" in r else "",
            r.get("lost", ""),
            r.get("completions", ""),
            r.get("replayed", ""),
            f"{r['seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    publish(args.out, "localize", "Localizing through an endpoint", {"rows": rows}, "\n".join(lines), **about)


if __name__ == "__main__":
    main()
