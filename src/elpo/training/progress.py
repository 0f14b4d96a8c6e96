"""What a person sees of a run while it runs: a live display in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"

LINE_SECONDS = 5.0
"""Steps quicker than this share a line in a log; the first and the last step of a phase always have one."""

SHOWN = {
    "success/heldout": "held-out success",
    "success/train": "success",
    "reward/mean": "reward",
    "loss": "loss",
    "entropy/mean": "entropy",
    "localization/finished_share": "localized",
    "clip/low_share": "clipped low",
    "clip/high_share": "clipped high",
    "kl/approx": "kl",
    "turns/mean": "turns",
    "tool/failed_share": "failed calls",
    "faults/count": "lost to faults",
    "grad/norm": "grad norm",
    "time/total": "seconds",
}
"""Metrics worth a glance, in this order, and their short names."""


class Progress(Protocol):
    """Told by a run what it is doing."""

    def start(self, phase: str, num_steps: int, done: int = 0) -> None:
        """A phase of `num_steps` steps begins, `done` of which an earlier session already did."""
        ...

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` (counted from 1) of the phase ended with these metrics."""
        ...

    def note(self, message: str) -> None:
        """Something worth a line: an evaluation's result, a checkpoint, a warning."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class SilentProgress:
    """Shows nothing; for tests and for use as a library."""

    def start(self, phase: str, num_steps: int, done: int = 0) -> None:
        """See `Progress`."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Progress`."""

    def note(self, message: str) -> None:
        """See `Progress`."""

    def close(self) -> None:
        """See `Progress`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LineProgress(SilentProgress):
    """Prints compact lines, at most one every `LINE_SECONDS`; for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = _Clock()
        self._phase = ""
        self._printed: float | None = None  # when, in this phase

    def start(self, phase: str, num_steps: int, done: int = 0) -> None:
        """See `Progress`."""
        self._phase, self._printed = phase, None
        self._clock.start(num_steps, done)
        rest = f", {done} done" if done else ""
        unit = "problems" if phase == "evaluation" else "steps"
        self._print(f"{phase}: {num_steps} {unit}{rest}")

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Progress`."""
        self._clock.tick(step)
        now = time.monotonic()
        due = self._printed is None or now - self._printed >= LINE_SECONDS
        if not due and step < self._clock.num_steps:
            return
        self._printed = now
        shown = "  ".join(f"{name} {value:.4g}" for name, value in _shown(metrics))
        self._print(f"{self._phase} {step}/{self._clock.num_steps}  {shown}  left {self._clock.left()}")

    def note(self, message: str) -> None:
        """See `Progress`."""
        self._print(message)

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


class LiveProgress(SilentProgress):
    """A display that is redrawn in place: phase, step, time left, learning curve, latest metrics."""

    def __init__(self, console: Console) -> None:
        self._clock = _Clock()
        self._phase = "preparing"
        self._step = 0
        self._metrics: dict[str, float] = {}
        self._curves: dict[str, list[float]] = {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)
        self._live.start()

    def start(self, phase: str, num_steps: int, done: int = 0) -> None:
        """See `Progress`."""
        if self._step:
            self._live.console.print(self._summary())
        self._phase, self._step = phase, done
        self._metrics, self._curves = {}, {}
        self._clock.start(num_steps, done)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Progress`."""
        self._clock.tick(step)
        self._step = step
        self._metrics |= metrics
        for name, value in metrics.items():
            self._curves.setdefault(name, []).append(value)

    def note(self, message: str) -> None:
        """See `Progress`."""
        self._live.console.print(Text(message))

    def close(self) -> None:
        """See `Progress`."""
        if self._live.is_started:
            self._live.stop()
            if self._step:
                self._live.console.print(self._summary())

    def _summary(self) -> Text:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in _shown(self._metrics))
        return Text(f"{self._phase} {self._step}/{self._clock.num_steps}  {shown}")

    def _render(self) -> RenderableType:
        done = self._step / self._clock.num_steps if self._clock.num_steps else 0.0
        width = 30
        bar = "█" * round(done * width) + "░" * (width - round(done * width))
        head = Text.assemble(
            (f"{self._phase:<11}", "bold"),
            f"{bar} {self._step}/{self._clock.num_steps}  ",
            (f"left {self._clock.left()}", "dim"),
        )
        table = Table.grid(padding=(0, 2))
        for key, name in SHOWN.items():
            if key in self._metrics:
                curve = self._curves[key]
                table.add_row(name, f"{self._metrics[key]:.4g}", Text(sparkline(curve[-40:]), "cyan"))
        return Group(head, table)


def console_progress(console: Console | None = None) -> Progress:
    """The display that suits where output goes: live in a terminal, lines elsewhere."""
    console = console or Console()
    return LiveProgress(console) if console.is_terminal else LineProgress(console)


def sparkline(values: list[float]) -> str:
    """A curve of one character a value, from the lowest to the highest of them; NaN is a gap.

    >>> sparkline([0.0, 0.1, 0.4, 0.7])
    '▁▂▅█'
    """
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((v - low) * scale)] if v in finite else " " for v in values)


class _Clock:
    """How long the rest of a phase will take, from the steps done in this session."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._first = self._step = 0
        self._begin = time.monotonic()

    def start(self, num_steps: int, done: int) -> None:
        self.num_steps = num_steps
        self._first = self._step = done
        self._begin = time.monotonic()

    def tick(self, step: int) -> None:
        self._step = step

    def left(self) -> str:
        """`m:ss` or `h:mm:ss`; `?` before the first step."""
        steps = self._step - self._first
        if steps <= 0:
            return "?"
        seconds = round((time.monotonic() - self._begin) / steps * (self.num_steps - self._step))
        minutes, seconds = divmod(max(seconds, 0), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _shown(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    return [
        (name, metrics[key])
        for key, name in SHOWN.items()
        if key in metrics and (metrics[key] or key != "faults/count")
    ]
