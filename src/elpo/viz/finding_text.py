"""A search for the first irrecoverable step as text: while it runs, and what it found."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from elpo.debugger.finding import Continuation, Finding, ShownStep
from elpo.viz.tree import clean, excerpt

MAX_REASONS = 5
MARKS = {True: ("●", "green"), False: ("×", "red"), None: ("?", "yellow")}
"""Of a rollout that succeeded, failed, could not be drawn. Told apart without colour."""


class LineSearch:
    """A line for every anchor; for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def probing(self, step: int, num_rollouts: int) -> None:
        """See `elpo.debugger.search.Watcher`."""
        where = f"after step {step}" if step else "from the prompt"
        self._console.print(Text(f"probing {where}: {num_rollouts} continuations"), soft_wrap=True)

    def drawn(self, step: int, success: bool | None) -> None:
        """See `elpo.debugger.search.Watcher`."""

    def close(self) -> None:
        """Nothing is open."""


class LiveSearch:
    """The trajectory, redrawn in place: what is probed, and how every continuation ended."""

    def __init__(self, console: Console, steps: Sequence[ShownStep]) -> None:
        self._steps = steps
        self._lock = threading.Lock()
        self._wanted: dict[int, int] = {}
        self._ended: dict[int, list[bool | None]] = {}
        self._now: int | None = None
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4, transient=True)
        self._live.start()

    def probing(self, step: int, num_rollouts: int) -> None:
        """See `elpo.debugger.search.Watcher`."""
        with self._lock:
            self._now = step
            self._wanted[step] = len(self._ended.get(step, ())) + num_rollouts

    def drawn(self, step: int, success: bool | None) -> None:
        """See `elpo.debugger.search.Watcher`."""
        with self._lock:
            self._ended.setdefault(step, []).append(success)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def render(self) -> RenderableType:
        """The present picture."""
        with self._lock:
            table = Table.grid(padding=(0, 2))
            rows = [("prompt", ""), *((str(i), one_line(step)) for i, step in enumerate(self._steps, 1))]
            for step, (name, text) in enumerate(rows):
                ended = self._ended.get(step, [])
                marks = Text.assemble(*(MARKS[success] for success in ended))
                marks.append("·" * (self._wanted.get(step, 0) - len(ended)), "dim")
                pointer = Text("▶" if step == self._now else " ", "bold")
                table.add_row(pointer, name, marks, Text(text, "dim"))
            return Group(Text("where could it still succeed?", "bold"), table)


def render_finding(finding: Finding, full: bool = False) -> RenderableType:
    """What was found, on how much evidence, at what cost."""
    return Group(
        _headline(finding),
        Text(),
        _steps(finding),
        *_continuations(finding, full),
        Text(),
        *(Text(line, "dim") for line in cost_lines(finding)),
        *(Text(f"note: {notice}", "yellow") for notice in finding.notices),
        *(Text(line, "yellow") for line in lost_lines(finding)),
    )


def headline(finding: Finding) -> str:
    """The result in one line."""
    if finding.critical is None:
        return (
            f"not found yet ({finding.stopped}); so far step {finding.likeliest} is the likeliest "
            f"({finding.posterior[finding.likeliest - 1]:.0%})"
        )
    last = " (the last one: every earlier step could be recovered)" if (
        finding.critical == len(finding.steps)
    ) else ""  # fmt: skip
    return f"first irrecoverable step: {finding.critical} of {len(finding.steps)}{last}, " + (
        f"confidence {finding.confidence:.0%} for this model"
    )


def cost_lines(finding: Finding) -> list[str]:
    """What it cost."""
    cost = finding.cost
    failed = ", ".join(f"{count} {kind}" for kind, count in sorted(cost.failed_attempts.items()))
    lines = [
        f"{cost.rollouts} of {cost.budget} rollouts, {cost.requests} completions "
        f"({cost.replayed} from an earlier call), {cost.prompt_tokens} + {cost.completion_tokens} tokens"
        + (f", cost {cost.cost:.4g}" if cost.cost else "")
        + f", {cost.seconds:.0f} s",
    ]
    if failed:
        lines.append(f"failed attempts that were repeated: {failed}")
    return lines


def lost_lines(finding: Finding) -> list[str]:
    """Why rollouts were lost, the most frequent reasons first; they were drawn again as far as possible."""
    reasons = Counter(finding.lost).most_common(MAX_REASONS)
    return [f"lost and drawn again as far as possible: {count} x {clean(why)}" for why, count in reasons]


def one_line(step: ShownStep) -> str:
    """A step in one line."""
    said = "  ".join(excerpt(part) for part in (step.text, *step.calls) if part)
    return said + (f" → {excerpt(step.feedback)}" if step.feedback else "")


def full_text(step: ShownStep) -> str:
    """A step as it was, safe to print."""
    return clean(
        "\n".join(
            [*filter(None, (step.text, *step.calls)), *([f"→ {step.feedback}"] if step.feedback else [])]
        )
    )


def _headline(finding: Finding) -> Text:
    return Text(headline(finding), "bold magenta" if finding.critical is not None else "bold yellow")


def _steps(finding: Finding) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("step", "recovered", "P", ""):
        table.add_column(title)
    probes = {probe.step: probe for probe in finding.probes}
    rows = [(0, "(the prompt)"), *((i, one_line(step)) for i, step in enumerate(finding.steps, 1))]
    for number, text in rows:
        probe = probes.get(number)
        if number == 0 and probe is None:
            continue
        shown = "" if probe is None else f"{probe.successes}/{probe.drawn}"
        if probe is not None and probe.lost:
            shown += f" ({probe.lost} lost)"
        chance = f"{finding.posterior[number - 1]:.0%}" if number else ""
        style = "bold magenta" if number and number == finding.critical else ""
        table.add_row(str(number), shown, chance, Text(text), style=style)
    return table


def _continuations(finding: Finding, full: bool) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for continuation in finding.continuations if full else finding.continuations[:1]:
        lines += [Text(), Text(f"recovered {_left(continuation)}:", "bold green")]
        for i, step in enumerate(continuation.steps, continuation.after + 1):
            lines.append(Text(f"  {i}  {full_text(step) if full else one_line(step)}"))
    return lines


def _left(continuation: Continuation) -> str:
    return f"from after step {continuation.after}" if continuation.after else "from the prompt"
