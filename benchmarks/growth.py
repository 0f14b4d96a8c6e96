"""How time and memory of ELPO's rollout phase grow with the work.

    python benchmarks/growth.py                  about fifteen minutes on a core

The script of `rollouts.py` decides every token. Processor time is that of the process that decodes. Writes
growth.json and growth.md to --out.
"""

from __future__ import annotations

from typing import Any

import torch
from report import arguments, publish
from rollouts import SIZES, Bench

from elpo.algorithms.strategies import bel


def growth(benches: dict[str, Bench]) -> list[dict[str, Any]]:
    """What ELPO's rollout phase costs as one quantity grows."""
    rows = []
    plans: list[tuple[str, dict[str, Any]]] = [
        *(("problems", {"problems": num}) for num in (16, 64, 256)),
        *(("rollouts", {"rollouts": num}) for num in (16, 32, 64)),
        *(("steps", {"steps": num}) for num in (4, 8, 16, 32)),
        *(("model", {"size": size, "problems": 4}) for size in list(SIZES)[1:]),
    ]
    for what, changed in plans:
        setting = {"size": "0.2M", "problems": 16, "rollouts": 16, "steps": 8, "slots": 64} | changed
        size = setting["size"]
        if size not in benches:
            benches[size] = Bench(size)
        bench = benches[size]
        result, _ = bench.grow(bel(), **{key: value for key, value in setting.items() if key != "size"})
        work = {"engine_steps" if key == "steps" else key: value for key, value in result.items()}
        rows.append({"grows": what, **setting, "parameters": bench.parameters, **work})
        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "64 slots; the quantity that grows comes first.",
        "",
        "| grows | problems | rollouts | steps | parameters | tokens sampled and fed | seconds "
        "| ms of processor a token | occupancy | prefix cache, MB | memory of the process, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        work = row["tokens"] + row["fed"]
        lines.append(
            f"| {row['grows']} | {row['problems']} | {row['rollouts']} | {row['steps']} | "
            f"{row['parameters'] / 1e6:.1f}M | {work:,} | {row['seconds']:.1f} | "
            f"{1000 * row['cpu_seconds'] / work:.3f} | {row['occupancy']:.2f} | {row['prefix_mb']:.0f} | "
            f"{row['memory_mb']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    args = parser.parse_args()
    torch.set_num_threads(1)
    benches: dict[str, Bench] = {}
    try:
        rows = growth(benches)
    finally:
        for bench in benches.values():
            bench.tool.close()
    publish(args.out, "growth", "ELPO's rollout phase as the work grows", {"rows": rows}, table(rows))


if __name__ == "__main__":
    main()
