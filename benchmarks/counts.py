"""Counts of work that say whether a change made anything slower, without a clock.

    python benchmarks/counts.py          measure, compare with the record, write it, add to the history

The script of `rollouts.py` decides every token, so the counts are the same on every machine. The test
`tests/test_counts.py` measures them again and fails where one has grown. If that is meant, run this and
commit the new record.
"""

from __future__ import annotations

import json
from pathlib import Path

from rollouts import STRATEGIES, Bench

from elpo.algorithms.credit import assign_credit
from elpo.batch import token_batch
from elpo.provenance import provenance
from elpo.tree_packing import pack_trees

RECORD = Path(__file__).with_name("counts.json")
HISTORY = Path(__file__).with_name("counts_history.jsonl")
SETTING = {"problems": 12, "rollouts": 16, "steps": 6, "slots": 16}


def measure() -> dict[str, float]:
    """Every count; less is better for all of them."""
    counts: dict[str, float] = {}
    bench = Bench("0.02M")
    try:
        for name, strategy in STRATEGIES.items():
            result, trees = bench.grow(strategy, **SETTING, deterministic=True)
            for key in ("tokens", "steps", "chunk_steps", "fed", "tool_calls"):
                counts[f"{name} {key}"] = result[key]
            counts[f"{name} prefix tokens fed again"] = result["reusable"] - result["reused"]
            counts[f"{name} idle slots, share"] = round(1 - result["occupancy"], 4)
            credits = [assign_credit(tree) for tree in trees]
            packed = pack_trees(trees, credits, "seq-mean-token-mean", "duplicate", 16384)
            rows = token_batch(trees, credits, "duplicate").token_ids
            counts[f"{name} forwarded a unique token, packed"] = round(
                packed.num_forwarded / packed.num_unique, 4
            )
            counts[f"{name} forwarded a unique token, rows"] = round(rows.numel() / packed.num_unique, 4)
    finally:
        bench.tool.close()
    return counts


def grown(now: dict[str, float], before: dict[str, float]) -> list[str]:
    """The counts that are more than before, and those that are missing."""
    return [
        f"{key}: {before[key]} -> {now.get(key)}"
        for key in before
        if now.get(key, float("inf")) > before[key]
    ]


def main() -> None:
    now = measure()
    before = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for key, value in now.items():
        print(f"{key:<45} {before.get(key, '-'):>10} {value:>10}")
    RECORD.write_text(json.dumps(now, indent=1) + "\n")
    with HISTORY.open("a") as history:
        history.write(json.dumps({**provenance(), "counts": now}) + "\n")
    if worse := grown(now, before):
        print("grown:", *worse, sep="\n  ")


if __name__ == "__main__":
    main()
