"""Figures of measured results: the numbers drawn are those of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from elpo.viz.results import plot_results


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "num_problems": 8}


EVALUATION = {"metrics": {"pass@16": estimate(0.75), "pass@1": estimate(0.25), "pass@4": estimate(0.5),
                          "major@4": estimate(0.375), "reward/mean": estimate(-0.5)}}  # fmt: skip
RECOVERY = {
    "results": [
        {
            "run": "runs/tiny",
            "recovery": [
                {"edit": "no edit", "recovered": 0.25, "interval": [0.125, 0.5]},
                {"edit": "first error", "recovered": 0.75, "interval": [0.5, 0.875]},
                {"edit": "third irrecoverable", "recovered": float("nan"), "interval": [float("nan")] * 2},
            ],
        }
    ]
}
RANKING = {
    "rows": [
        {"run": "a/b", "algorithm": name, "prefixes": "all", "pairwise_accuracy": estimate(value),
         "kendall_tau": estimate(value - 0.25)}
        for name, value in (("elpo", 0.75), ("elpo-no-bel", 0.5))
    ]
}  # fmt: skip


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def write(path: Path, data: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def test_pass_at_k(tmp_path: Path, drawn: list[Figure]) -> None:
    file = write(tmp_path / "best-1" / "result.json", EVALUATION)
    assert plot_results([file], tmp_path / "k.svg").read_text().startswith("<?xml")
    passes, majors = drawn[0].axes[0].lines
    np.testing.assert_array_equal(passes.get_xydata(), [[1, 0.25], [4, 0.5], [16, 0.75]])
    np.testing.assert_array_equal(majors.get_xydata(), [[4, 0.375]])
    assert passes.get_label() == "best-1 Pass@K"


def test_recovery(tmp_path: Path, drawn: list[Figure]) -> None:
    assert plot_results([write(tmp_path / "r.json", RECOVERY)], tmp_path / "r.png").stat().st_size > 5000
    axes = drawn[0].axes[0]
    assert [bar.get_height() for bar in axes.patches][:2] == [0.25, 0.75]
    (whiskers,) = [c for c in axes.collections if len(c.get_segments()) == 3]
    np.testing.assert_allclose(whiskers.get_segments()[1][:, 1], [0.5, 0.875])
    assert axes.get_xticklabels()[0].get_text() == "no\nedit"


def test_ranking(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_results([write(tmp_path / "r.json", RANKING)], tmp_path / "r.pdf")
    assert [bar.get_height() for bar in drawn[0].axes[0].patches] == [0.75, 0.5, 0.5, 0.25]
    assert len({bar.get_hatch() for bar in drawn[0].axes[0].patches}) == 2


def test_mistakes_are_named(tmp_path: Path) -> None:
    good = write(tmp_path / "a.json", EVALUATION)
    with pytest.raises(ValueError, match="different kinds"):
        plot_results([good, write(tmp_path / "b.json", RANKING)], tmp_path / "o.png")
    for content in ("{}", "[]", "nonsense", '{"rows": []}', '{"metrics": {}}', '{"results": [3]}'):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(ValueError, match=r"c\.json"):
            plot_results([tmp_path / "c.json"], tmp_path / "o.png")
    with pytest.raises(ValueError, match=r"nowhere\.json"):
        plot_results([tmp_path / "nowhere.json"], tmp_path / "o.png")
