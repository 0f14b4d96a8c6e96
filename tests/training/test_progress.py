"""What is shown while a run runs."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from elpo.training import progress
from elpo.training.progress import LineProgress, LiveProgress, SilentProgress, console_progress, sparkline


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=100, _environ={"TERM": "xterm"}), stream


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    target, stream = console(terminal=False)
    with console_progress(target) as shown:
        assert isinstance(shown, LineProgress)
        shown.start("rl", 6, done=2)
        now[0] = 60.0
        shown.update(3, {"reward/mean": 0.123456, "unknown": 1.0, "success/train": 0.5})
        shown.note("saved [bold]x[/bold]")
        now[0] = 7200.0
        shown.update(4, {"faults/count": 0.0})
        shown.update(6, {"faults/count": 3.0})
    assert stream.getvalue().splitlines() == [
        "rl: 6 steps, 2 done",
        "rl 3/6  success 0.5  reward 0.1235  left 3:00",
        "saved [bold]x[/bold]",
        "rl 4/6    left 2:00:00",
        "rl 6/6  lost to faults 3  left 0:00",
    ]


def test_quick_steps_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    target, stream = console(terminal=False)
    shown = LineProgress(target)
    for phase, seconds in (("sft", 1.0), ("rl", 6.0)):
        shown.start(phase, 8)
        for step in range(1, 9):
            now[0] += seconds
            shown.update(step, {})
        shown.note(f"{phase} done")
    lines = [line.partition("    left")[0] for line in stream.getvalue().splitlines()]
    # the first, one every five seconds, the last; notes are never held back
    assert lines[:5] == ["sft: 8 steps", "sft 1/8", "sft 6/8", "sft 8/8", "sft done"]
    assert lines[5:] == ["rl: 8 steps", *(f"rl {step}/8" for step in range(1, 9)), "rl done"]


def test_a_line_is_not_wrapped() -> None:
    target, stream = console(terminal=False)
    shown = LineProgress(target)
    shown.start("rl", 1)
    shown.update(1, dict.fromkeys(progress.SHOWN, 1 / 3))
    assert len(stream.getvalue().splitlines()) == 2


def test_live_display_in_a_terminal() -> None:
    target, stream = console(terminal=True)
    with console_progress(target) as shown:
        assert isinstance(shown, LiveProgress)
        shown.start("sft", 2)
        shown.update(2, {"loss": 2.5})
        shown.start("rl", 4)
        for step in (1, 2, 3):
            shown.update(step, {"success/train": step / 10})
        shown.note("held-out 0.3")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "sft 2/2  loss 2.5" in text  # a phase leaves its last line behind
    assert "held-out 0.3" in text
    assert "rl 3/4  success 0.3" in text


def test_live_display_draws_the_curve() -> None:
    target, _ = console(terminal=True)
    shown = LiveProgress(target)
    shown.start("rl", 4)
    for step in (1, 2, 3):
        shown.update(step, {"success/train": step / 10})
    with target.capture() as capture:
        target.print(shown._render())
    shown.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capture.get())
    assert "3/4" in text
    assert re.search(r"success\s+0\.3\s+▁[▄▅]█", text)


def test_silence() -> None:
    with SilentProgress() as shown:
        shown.start("rl", 1)
        shown.update(1, {"loss": 1.0})
        shown.note("x")


@pytest.mark.parametrize(
    ("values", "curve"),
    [([], ""), ([float("nan")], ""), ([1.0, 1.0], "▁▁"), ([0.0, float("nan"), 1.0], "▁ █")],
)
def test_sparkline(values: list[float], curve: str) -> None:
    assert sparkline(values) == curve
