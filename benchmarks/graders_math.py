"""The math grader on real answers: agreement, verdicts, throughput, and what a lost worker costs.

    OMP_NUM_THREADS=1 python benchmarks/graders_math.py

Reads GSM8K's model solutions and the test split of MATH (`--data`, a folder with gsm8k/ and math/). One
thread, one worker, a fresh grader a row. math-verify alone, in this process and with its own defaults, is
measured beside it in the same run.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from report import arguments, publish

from elpo.graders.boxed import last_boxed
from elpo.graders.comparison import Question, compare
from elpo.graders.grade import Verdict
from elpo.graders.math import MathGrader
from elpo.graders.notation import tidy
from elpo.graders.workers import Workers

Case = tuple[str, str, bool]  # text, gold answer, whether it is right
HOSTILE = [
    r"(10^9)!",
    r"9^{9^{9^{9}}}",
    r"\binom{10^{12}}{5\cdot 10^{11}}",
    r"\sum_{k=1}^{10^{9}}\frac{1}{k^2+1}",
    r"\prod_{k=1}^{10^{9}} k",
]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def gsm8k(folder: Path) -> list[Case]:
    """Model solutions with the label recorded by their authors."""
    return [
        (solution["solution"], row["ground_truth"].rpartition("A:")[2].strip(), solution["is_correct"])
        for row in read(folder / "gsm8k/example_model_solutions.jsonl")
        for solution in row.values()
        if isinstance(solution, dict)
    ]


def measure(name: str, judge: Callable[[str, str], str], cases: Iterable[Case]) -> dict[str, Any]:
    """Verdicts, agreement with the labels and milliseconds of `judge(text, gold)`."""
    verdicts: Counter[str] = Counter()
    agree, seconds = 0, []
    for text, gold, right in cases:
        started = time.perf_counter()
        verdict = judge(text, gold)
        seconds.append(time.perf_counter() - started)
        verdicts[verdict] += 1
        agree += (verdict == "correct") == right
    seconds.sort()
    row = {
        "cases": name,
        "number": len(seconds),
        "agree": agree,
        "verdicts": dict(sorted(verdicts.items())),
        "per_second": len(seconds) / sum(seconds),
        "median_ms": 1e3 * statistics.median(seconds),
        "p99_ms": 1e3 * seconds[int(0.99 * len(seconds))],
        "max_ms": 1e3 * seconds[-1],
    }
    print(row, flush=True)
    return row


def with_grader(**options: Any) -> Callable[[str, str], str]:
    grader = MathGrader(**options)
    grader.grade(r"\boxed{x+1}", "1+x")  # start the worker
    return lambda text, gold: grader.grade(text, gold).verdict.value


def worker_alone() -> Callable[[str, str], str]:
    """math-verify in a worker, without the comparison of text and numbers before it."""
    workers = Workers("elpo.graders.latex", num_workers=1, timeout=5, memory_mb=2048)

    def judge(text: str, gold: str) -> str:
        answer = tidy(last_boxed(text) or "")
        return str(workers.ask({"gold": tidy(gold), "answer": answer, "strict": False})["verdict"])

    judge(r"\boxed{x+1}", "1+x")
    return judge


def math_verify_alone() -> Callable[[str, str], str]:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def judge(text: str, gold: str) -> str:
        return "correct" if verify(parse(rf"\boxed{{{gold}}}"), parse(text)) else "wrong"

    judge(r"\boxed{x+1}", "1+x")
    return judge


def lifecycle() -> dict[str, float]:
    """Seconds to the first verdict of a fresh grader, and milliseconds to one after a worker was killed."""
    with MathGrader() as grader:
        started = time.perf_counter()
        grader.grade(r"\boxed{x+1}", "1+x")
        start = time.perf_counter() - started
    workers = Workers("elpo.graders.latex", num_workers=1, timeout=0.2, memory_mb=2048)
    question = {"gold": "1+x", "answer": "x+1", "strict": False}
    workers.ask(question)
    usual, after_kill = [], []
    for _ in range(10):
        started = time.perf_counter()
        workers.ask(question)
        usual.append(time.perf_counter() - started)
        try:
            workers.ask({**question, "answer": r"\prod_{k=1}^{10^{9}} k", "gold": "1"})
        except TimeoutError:
            started = time.perf_counter()
            workers.ask(question)
            after_kill.append(time.perf_counter() - started)
    workers.close()
    assert len(after_kill) == 10
    return {
        "start_s": start,
        "answer_ms": 1e3 * statistics.median(usual),
        "answer_after_kill_ms": 1e3 * statistics.median(after_kill),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| answers | number | agree | verdicts | a second | median ms | p99 ms | max ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        verdicts = ", ".join(f"{count} {name}" for name, count in row["verdicts"].items())
        times = " | ".join(f"{row[key]:.2f}" for key in ("median_ms", "p99_ms", "max_ms"))
        lines.append(
            f"| {row['cases']} | {row['number']} | {row['agree']} | {verdicts} | "
            f"{row['per_second']:.0f} | {times} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    default = Path(__file__).resolve().parents[1] / "../shared/data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ELPO_SHARED_DATA", default)))
    args = parser.parse_args()

    solutions = gsm8k(args.data)
    golds = [last_boxed(row["solution"]) or "" for row in read(args.data / "math/test.jsonl")]
    own = [(rf"$\boxed{{{gold}}}$", gold, True) for gold in golds]
    pairs = list(pairwise(golds))
    others = [(rf"$\boxed{{{other}}}$", gold, False) for gold, other in pairs if tidy(gold) != tidy(other)]
    latex = [
        (text, gold, right)
        for text, gold, right in others
        if isinstance(compare(last_boxed(text) or "", gold, strict=False), Question)
    ]
    hostile = [(rf"\boxed{{{answer}}}", "3", False) for answer in HOSTILE]
    rows = [
        measure("GSM8K model solutions", with_grader(), solutions),
        measure("the same, math-verify alone", math_verify_alone(), solutions),
        measure("MATH gold answers, themselves", with_grader(), own),
        measure("the same, a worker for each", worker_alone(), own),
        measure("the same, math-verify alone", math_verify_alone(), own),
        measure("MATH answers of the next problem", with_grader(), others),
        measure("the same, strict", with_grader(strict=True), others),
        measure("those of them that need a worker", with_grader(), latex),
        measure("the same, math-verify alone", math_verify_alone(), latex),
        measure("hostile answers, 1 s each", with_grader(timeout=1.0), hostile),
    ]
    costs = lifecycle()
    text = (
        f"{table(rows)}\n\n"
        "`agree` counts the verdicts that agree with the recorded label (GSM8K) or with what is known: a "
        "gold answer is right for its own problem and wrong for the next one, unless both are one answer. "
        "Of the next problems' answers, those spelled alike were left out; the three accepted ones are "
        "`\\frac34` for `\\frac{3}{4}`, and, unless strict, `120` for `120^\\circ` and `7` for `7\\%`.\n\n"
        f"First verdict of a fresh grader: {costs['start_s']:.2f} s. A short answer in a worker: "
        f"{costs['answer_ms']:.1f} ms; the first one after a worker was killed, its replacement included: "
        f"{costs['answer_after_kill_ms']:.1f} ms.\n"
    )
    publish(args.out, "graders_math", "The math grader on real answers", {"rows": rows, **costs}, text)
    assert rows[0]["agree"] == len(solutions)
    assert set(rows[2]["verdicts"]) == {Verdict.CORRECT.value}


if __name__ == "__main__":
    main()
