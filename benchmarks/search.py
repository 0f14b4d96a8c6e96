"""The search backends side by side on the CIA World Factbook: 69,303 short passages, public domain.

    python benchmarks/search.py ../shared/data/factbook/passages.json

The file is a list of [country, field path, text]; a passage is titled "country - field path". Two kinds of
queries, drawn with a seed before anything is searched; nothing was tuned on them:

* field: "What is the <last part of the field path> of <country>?" for a field whose name only one passage
  of the country has; relevant is that passage.
* content: six words of a passage's text in random order, none of them a stop word, from passages with at
  least twelve; relevant is that passage. Its country is not named.

Recall@5 is the share of queries whose passage is among the first five. Every query is put to every backend in
turn, in one process with one thread, once to warm up and then timed three times; the median counts. `server`
is the HTTP client against a server in this process that answers from the SQLite index: the difference is the
price of a request. Writes search.json and search.md to --out.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from report import arguments, publish

from elpo.tools.search_backend import STOP_WORDS, Passage, SearchBackend, words_of
from elpo.tools.search_bm25 import Bm25Index
from elpo.tools.search_http import RetrievalClient
from elpo.tools.search_index import FullTextIndex, write_index

TOP_K = 5
NUM_THREADS = 8

Query = tuple[str, str]  # text, id of the relevant passage


def load(path: Path) -> list[Passage]:
    rows = json.loads(path.read_text())
    return [Passage(str(i), f"{country} - {field}", text) for i, (country, field, text) in enumerate(rows)]


def field_queries(passages: list[Passage], num: int, rng: random.Random) -> list[Query]:
    def parts(passage: Passage) -> tuple[str, str]:
        country, _, field = passage.title.partition(" - ")
        return country, field.split(" / ")[-1]

    counts = Counter(parts(passage) for passage in passages)
    unique = [passage for passage in passages if counts[parts(passage)] == 1]
    chosen = rng.sample(unique, num)
    return [("What is the {1} of {0}?".format(*parts(passage)), passage.id) for passage in chosen]


def content_queries(passages: list[Passage], num: int, rng: random.Random) -> list[Query]:
    queries: list[Query] = []
    while len(queries) < num:
        passage = rng.choice(passages)
        words = [word for word in dict.fromkeys(words_of(passage.text)) if word not in STOP_WORDS]
        if len(words) >= 12:
            queries.append((" ".join(rng.sample(words, 6)), passage.id))
    return queries


class Handler(BaseHTTPRequestHandler):
    backend: SearchBackend

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = [self.backend.search(query, body["topk"]) for query in body["queries"]]
        result = [
            [{"document": {"id": p.id, "contents": f'"{p.title}"\n{p.text}'}, "score": 1.0} for p in passages]
            for passages in found
        ]
        content = json.dumps({"result": result}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None: ...


def measure(
    backends: dict[str, SearchBackend], queries: list[Query]
) -> dict[str, tuple[list[float], list[bool]]]:
    """For every backend: milliseconds of each query, and whether its passage was found."""
    results: dict[str, tuple[list[float], list[bool]]] = {name: ([], []) for name in backends}
    for text, relevant in queries:
        for name, backend in backends.items():
            found = backend.search(text, TOP_K)
            times = []
            for _ in range(3):
                begun = time.perf_counter()
                backend.search(text, TOP_K)
                times.append(time.perf_counter() - begun)
            results[name][0].append(1e3 * statistics.median(times))
            results[name][1].append(any(passage.id == relevant for passage in found))
    return results


def throughput(backend: SearchBackend, texts: list[str], num_threads: int) -> float:
    """Queries a second."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(lambda text: backend.search(text, TOP_K), texts))
    return len(texts) / (time.perf_counter() - begun)


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    return make(), time.perf_counter() - begun


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("passages", type=Path)
    parser.add_argument("--queries", type=int, default=300, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    passages = load(args.passages)
    rng = random.Random(args.seed)
    kinds = {
        "field": field_queries(passages, args.queries, rng),
        "content": content_queries(passages, args.queries, rng),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "factbook.index"
        _, build_seconds = timed(lambda: write_index(passages, path))
        sqlite, open_seconds = timed(lambda: FullTextIndex(path))
        before = peak_mb()
        bm25s, bm25s_seconds = timed(lambda: Bm25Index(FullTextIndex(path)))
        costs = {
            "passages": len(passages),
            "text_mb": sum(len(p.title) + len(p.text) for p in passages) / 1e6,
            "sqlite_build_seconds": build_seconds,
            "sqlite_open_seconds": open_seconds,
            "sqlite_file_mb": path.stat().st_size / 1e6,
            "bm25s_build_seconds": bm25s_seconds,
            "bm25s_peak_memory_added_mb": peak_mb() - before,
        }
        Handler.backend = sqlite
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            client = RetrievalClient(f"http://127.0.0.1:{server.server_port}/retrieve")
            backends: dict[str, SearchBackend] = {"sqlite": sqlite, "bm25s": bm25s, "server": client}
            rows = []
            for kind, queries in kinds.items():
                for name, (times, found) in measure(backends, queries).items():
                    rows.append(
                        {
                            "queries": kind,
                            "backend": name,
                            "num": len(queries),
                            "recall_at_5": statistics.fmean(found),
                            "median_ms": statistics.median(times),
                            "p95_ms": statistics.quantiles(times, n=20)[-1],
                            "max_ms": max(times),
                        }
                    )
            threads = {}
            texts = [text for queries in kinds.values() for text, _ in queries]
            for name in ("sqlite", "bm25s"):
                for num_threads in (1, NUM_THREADS):
                    rate = throughput(backends[name], texts, num_threads)
                    threads[f"{name}_{num_threads}_threads_per_second"] = rate
            server.shutdown()

    numbers = {"costs": costs, "throughput": threads, "rows": rows}
    publish(args.out, "search", "Search backends", numbers, table(costs, threads, rows))


def table(costs: dict[str, float], threads: dict[str, float], rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{costs['passages']:,} passages of the CIA World Factbook, "
        f"{costs['text_mb']:.1f} million characters with their titles. "
        f"SQLite FTS5: index written in {costs['sqlite_build_seconds']:.2f} s, "
        f"{costs['sqlite_file_mb']:.1f} MB on disk, opened in {1e3 * costs['sqlite_open_seconds']:.1f} ms. "
        f"bm25s: ready in {costs['bm25s_build_seconds']:.2f} s, "
        f"{costs['bm25s_peak_memory_added_mb']:.0f} MB more memory at its peak. "
        "How the queries and their relevant passages were made is in `benchmarks/search.py`.",
        "",
        "| queries | backend | recall@5 | median ms | 95 % ms | slowest ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['num']} {row['queries']} | {row['backend']} | {row['recall_at_5']:.3f} "
            f"| {row['median_ms']:.2f} | {row['p95_ms']:.2f} | {row['max_ms']:.1f} |"
        )
    rates = ", ".join(
        f"{name} {threads[f'{name}_1_threads_per_second']:.0f} with one thread and "
        f"{threads[f'{name}_{NUM_THREADS}_threads_per_second']:.0f} with {NUM_THREADS}"
        for name in ("sqlite", "bm25s")
    )
    return "\n".join([*lines, "", f"Queries a second, both kinds mixed: {rates}."])


if __name__ == "__main__":
    main()
