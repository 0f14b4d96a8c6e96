"""The tree of the paper's Figure 4, computed anew: its credit, critical steps, and how many numbers agree.

    python benchmarks/figure4.py
    python benchmarks/figure4.py --out figure4.svg

Prints the tree as `elpo tree` does, then compares the 116 numbers that the figure shows, to three decimals;
exits with 1 where one differs. The tree is tests/fixtures/figure4_tree.json, transcribed from the paper.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for the fixture

from elpo.algorithms.advantage import node_values
from elpo.algorithms.credit import assign_credit
from elpo.viz.tree import tree_text
from tests.trees import Figure4


def main(argv: Sequence[str] | None = None) -> int:
    """Print, compare, and draw where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="also draw the tree into this .svg, .png or .pdf")
    args = parser.parse_args(argv)
    figure = Figure4()
    tree = figure.fill_and_search()
    credit = assign_credit(tree)
    print(tree_text(tree, credit))
    values = {
        "R": node_values(tree),
        "A": credit.advantages,
        "branch": credit.branch,
        "traj": credit.trajectory,
    }
    pairs = [
        (f"{key} of {name}", values[key][figure.index[name]], printed)
        for name, node in figure.nodes.items()
        for key, printed in (node["printed"] or {}).items()
    ]
    others = [pair for pair in pairs if abs(pair[1] - pair[2]) > 5.01e-4]
    for name, ours, printed in others:
        print(f"{name} is {ours:.6f}, printed {printed}")
    print(f"{len(pairs) - len(others)} of the {len(pairs)} numbers of Figure 4 agree")
    if args.out:
        from elpo.viz.figure import write_tree_figure

        print(write_tree_figure(tree, credit, args.out))
    return int(bool(others))


if __name__ == "__main__":
    sys.exit(main())
