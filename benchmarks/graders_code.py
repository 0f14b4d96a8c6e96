"""The code grader on real data: every canonical solution passes, every exploit fails, and how fast.

    python benchmarks/graders_code.py                    about two minutes on one core
    python benchmarks/graders_code.py --sample 10        every tenth problem

Reads MBPP, HumanEval and the samples of SandboxFusion from --data. Writes graders_code.json and
graders_code.md to --out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from report import publish

from elpo.graders.code import CodeGrader
from elpo.graders.code_tests import CallTest, CheckTest, CodeTests

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.graders.code_exploits import FUNCTION_EXPLOITS, PROGRAM_EXPLOITS  # noqa: E402
from tests.graders.contest_solutions import SOLUTIONS  # noqa: E402

Graded = tuple[str, str, CodeTests]  # name of the problem, solution, tests


def mbpp(data: Path) -> list[Graded]:
    rows = [json.loads(line) for line in (data / "mbpp/mbpp.jsonl").read_text().splitlines()]
    return [
        (f"MBPP/{r['task_id']}", r["code"], CodeTests.from_asserts(r["test_list"], r["test_setup_code"]))
        for r in rows
    ]


def humaneval(data: Path) -> list[Graded]:
    with gzip.open(data / "humaneval/HumanEval.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        (
            r["task_id"],
            r["prompt"] + r["canonical_solution"],
            CodeTests.from_check(r["test"], r["entry_point"], r["prompt"]),
        )
        for r in rows
    ]


def contests(data: Path) -> list[Graded]:
    """Stdin problems for which a solution was written by hand."""
    lines = (data / "sandboxfusion_samples/code_eval_code_contests.jsonl").read_text().splitlines()
    rows = {json.loads(row["labels"])["name"]: json.loads(row["test"]) for row in map(json.loads, lines)}
    return [
        (
            name,
            code,
            CodeTests.from_stdio(
                [t["input"]["stdin"] for t in rows[name]], [t["output"]["stdout"] for t in rows[name]]
            ),
        )
        for name, code in SOLUTIONS.items()
    ]


def function_name(problem: Graded) -> str:
    """The function under test."""
    test = problem[2].tests[0]
    if problem[2].entry_point or isinstance(test, CheckTest):
        return problem[2].entry_point or test.proxies[0]  # type: ignore[union-attr]
    assert isinstance(test, CallTest)
    names = test.expression.replace("(", " ").split()
    return next(name for name in names if f"def {name}" in problem[1])


def timed(grader: CodeGrader, problems: Iterable[Graded], num_threads: int = 1) -> dict[str, Any]:
    """Grade solutions and say which are not correct, and how many were graded a second."""
    problems = list(problems)
    milliseconds: dict[str, float] = {}

    def grade(problem: Graded) -> str | None:
        name, code, tests = problem
        started = time.perf_counter()
        result = grader.grade_code(code, tests)
        milliseconds[name] = 1000 * (time.perf_counter() - started)
        return None if result.correct else f"{name}: {result.verdict}: {result.detail}"

    started = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        failures = [failure for failure in pool.map(grade, problems) if failure]
    seconds = time.perf_counter() - started
    spread = sorted(milliseconds.values())
    return {
        "graded": len(problems),
        "correct": len(problems) - len(failures),
        "not_correct": failures[:20],
        "per_second": len(problems) / seconds,
        "median_ms": spread[len(spread) // 2],
        "p99_ms": spread[int(0.99 * (len(spread) - 1))],
        "max_ms": spread[-1],
    }


def ratio_to_fresh(grader: CodeGrader, problems: Sequence[Graded]) -> float:
    """Seconds that a new interpreter needs for the solution and its asserts, over ours; taken in turns."""
    ours = fresh = 0.0
    for _, code, tests in problems:
        asserts = [f"assert {t.expression} == {t.expected!r}" for t in tests.tests if isinstance(t, CallTest)]
        program = "\n".join([tests.prelude, code, tests.setup, *asserts])
        started = time.perf_counter()
        grader.grade_code(f"{code}\n# once more", tests)
        between = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", program], capture_output=True)
        ours += between - started
        fresh += time.perf_counter() - between
    return fresh / ours


def exploited(grader: CodeGrader, problems: Sequence[Graded], exploits: dict[str, str]) -> dict[str, Any]:
    """How often each exploit was graded as correct."""
    won = Counter[str]()
    for name, template in exploits.items():
        won[name] = 0
        for problem in problems:
            code = template.replace("NAME", function_name(problem)) if "NAME" in template else template
            won[name] += grader.grade_code(code.replace("SUM", "0"), problem[2]).correct
    return {"problems": len(problems), "exploits": len(exploits), "won": dict(won)}


def table(report: dict[str, Any]) -> str:
    lines = [
        "| solutions | correct | graded a second | median ms | p99 ms | max ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in report["canonical"].items():
        times = " | ".join(f"{row[key]:.1f}" for key in ("per_second", "median_ms", "p99_ms", "max_ms"))
        lines.append(f"| {name} | {row['correct']} of {row['graded']} | {times} |")
    lines += ["", "Seconds of a fresh interpreter (`python -I -c`, no isolation) over ours, in turns: "]
    lines[-1] += ", ".join(f"{name} {ratio:.2f}" for name, ratio in report["fresh_over_ours"].items())
    lines += ["", "| exploits | tried | problems | graded as correct |", "|---|---|---|---|"]
    for name, row in report["exploits"].items():
        lines.append(f"| {name} | {row['exploits']} | {row['problems']} | {sum(row['won'].values())} |")
    for title, names in {
        "Not correct": [failure for row in report["canonical"].values() for failure in row["not_correct"]],
        "Exploits that won": [
            f"{name} ({n})" for row in report["exploits"].values() for name, n in row["won"].items() if n
        ],
    }.items():
        lines += ["", f"{title}: {'none' if not names else ''}", *(f"- {name}" for name in names)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default = Path(os.environ.get("ELPO_SHARED_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks")
    parser.add_argument("--sample", type=int, default=1, help="grade every n-th problem")
    arguments = parser.parse_args()
    loaders: dict[str, Callable[[Path], list[Graded]]] = {
        "MBPP": mbpp,
        "HumanEval": humaneval,
        "CodeContests": contests,
    }
    problems = {name: load(arguments.data)[:: arguments.sample] for name, load in loaders.items()}
    canonical: dict[str, Any] = {}
    for workers in (1, 2):
        for name, items in problems.items():
            with CodeGrader(
                timeout=30.0, num_workers=workers
            ) as grader:  # a grader of its own: nothing is remembered
                title = name if workers == 1 else f"{name}, 2 workers, 4 threads"
                canonical[title] = timed(grader, items, num_threads=1 if workers == 1 else 4)
                print(title, canonical[title], flush=True)
    with CodeGrader(timeout=30.0) as grader:
        ratios = {
            name: ratio_to_fresh(grader, problems[name][::step])
            for name, step in (("MBPP", 10), ("HumanEval", 2))
        }
    with CodeGrader(timeout=2.0) as grader:
        exploits = {
            name: exploited(grader, problems[name][:: 5 if name == "MBPP" else 1], FUNCTION_EXPLOITS)
            for name in ("MBPP", "HumanEval")
        }
        exploits["CodeContests"] = exploited(grader, problems["CodeContests"], PROGRAM_EXPLOITS)
    report = {
        "canonical": canonical,
        "fresh_over_ours": ratios,
        "exploits": exploits,
    }
    publish(arguments.out, "graders_code", "The code grader on real data", report, table(report))


if __name__ == "__main__":
    main()
