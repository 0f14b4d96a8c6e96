"""What a policy whose answers are known scores on real data, through loader, scheduler and grader.

    python benchmarks/tasks.py        every task with data in ../shared/data (or in ELPO_SHARED_DATA)
    python benchmarks/tasks.py --tasks gsm8k mbpp --num 200

Every problem is played twice: with its own solution, which must be right, and with another problem's, which
must be wrong. Writes tasks.json and tasks.md to --out.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from report import arguments, publish

from elpo.evaluation.scripted import scripted_success
from elpo.interfaces import Split
from elpo.tasks.check import check_task
from elpo.tasks.loading import load_task

DATA = Path(os.environ.get("ELPO_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared/data"))
EVERY: tuple[Split, ...] = ("train", "validation", "test")
TASKS: dict[str, tuple[str, tuple[Split, ...]]] = {
    "gsm8k": ("gsm8k", EVERY),
    "math": ("math", ("test",)),
    "math500": ("math", ("test",)),
    "mr_ben": ("mr_ben", EVERY),
    "humaneval": ("humaneval/HumanEval.jsonl.gz", ("test",)),
    "mbpp": ("mbpp/mbpp.jsonl", EVERY),
}
"""Where the data of a task is, and the splits it has there."""


OPTIONS = {"mbpp": {"timeout": 60.0}}
"""The solution of mbpp-123 alone computes for seconds, and the scheduler grades eight at a time."""


def measure(name: str, num: int) -> dict[str, Any]:
    """Load, check and play one task; at most `num` of its problems are played."""
    path, splits = TASKS[name]
    with tempfile.TemporaryDirectory() as folder:
        source = math500(Path(folder)) if name == "math500" else DATA / path
        task: Any = load_task(name, {"path": str(source), **OPTIONS.get(name, {})})
        started = time.perf_counter()
        by_split = {split: task.problems(split, 1_000_000) for split in splits}
        load_seconds = time.perf_counter() - started
        problems = [problem for found in by_split.values() for problem in found]
        played = random.Random(0).sample(problems, min(num, len(problems)))
        own = scripted_success(task, {}, played, others=0.0)
        others = scripted_success(task, {}, played, others=1.0)
        checks = check_task(task, {}, num=20, splits=splits)
        task.close()
    return {
        "problems": {split: len(found) for split, found in by_split.items()},
        "rows_left_out": len(task.bad_rows),
        "load_seconds": load_seconds,
        "own": own.own,
        "own_right": own.own_right,
        "others": others.others,
        "others_right": others.others_right,
        "faults": own.faults + others.faults,
        "trajectories_per_second": (own.own + others.others) / (own.seconds + others.seconds),
        "garbage": next(check.result for check in checks if check.name == "garbage"),
        "findings": [finding for check in checks for finding in check.findings],
    }


def math500(folder: Path) -> Path:
    """The rows of MATH that are in MATH-500, as a file."""
    rows = (DATA / "math/test.jsonl").read_text().splitlines(keepends=True)
    indices = json.loads((DATA / "math/math500_indices.json").read_text())
    file = folder / "test.jsonl"
    file.write_text("".join(rows[index] for index in indices))
    return file


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| task | train / validation / test | rows left out | load, s | own solutions right | others' right "
        "| lost to faults | trajectories/s | garbage right | check |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        wrong = [finding for finding in found["findings"] if "garbage" in finding]
        cells = [
            name,
            " / ".join(f"{found['problems'].get(split, 0):,}" or "-" for split in EVERY),
            f"{found['rows_left_out']}",
            f"{found['load_seconds']:.1f}",
            f"{found['own_right']:,} of {found['own']:,}",
            f"{found['others_right']:,} of {found['others']:,}",
            f"{found['faults']}",
            f"{found['trajectories_per_second']:.0f}",
            f"{len(wrong)} ({found['garbage']})",
            f"{len(found['findings'])} findings",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--num", type=int, default=10_000, help="problems played of each task")
    args = parser.parse_args()
    if not DATA.is_dir():
        parser.error(f"there is no folder {DATA}; set ELPO_SHARED_DATA to the folder of the data")
    warnings.simplefilter("ignore", UserWarning)  # rows left out are in the table
    results = {}
    for name in args.tasks:
        results[name] = measure(name, args.num)
        print(name, json.dumps(results[name]), flush=True)
    publish(args.out, "tasks", "Tasks over real data", {"results": results}, f"{NOTE}\n\n{table(results)}")
    print(table(results))


NOTE = """\
A scripted policy answers every problem with its own solution, then with another problem's; chat template,
scheduler and grader are the real ones. Own solutions must be right and others' wrong. "Garbage" are hostile
final turns (`elpo.tasks.garbage`) on two problems; "check" are the findings of `elpo check`. In MATH
another's 30 is right where the answer is 30 degrees: without `strict` the sign is optional. MBPP has a
deadline of 60 s instead of 10, because one of its solutions computes for seconds
and eight are graded at a time."""


if __name__ == "__main__":
    main()
