"""The script that shows the paper's Figure 4 says what agrees, and what does not."""

from __future__ import annotations

from pathlib import Path

import figure4
import pytest

from elpo.algorithms.credit import assign_credit


def test_the_numbers_of_the_figure_are_computed_anew(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert figure4.main(["--out", str(tmp_path / "tree.svg")]) == 0
    told = capsys.readouterr().out
    assert "116 of the 116 numbers of Figure 4 agree" in told
    assert "search of rollout 5: critical step 2 (probes step 1: 2/2, step 2: 0/3)" in told
    assert (tmp_path / "tree.svg").read_text().startswith("<?xml")


def test_another_convention_is_found_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure4, "assign_credit", lambda tree: assign_credit(tree, std="sample"))
    assert figure4.main([]) == 1
    told = capsys.readouterr().out
    assert "39 of the 116" in told and "branch of " in told
