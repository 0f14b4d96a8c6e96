"""What a search found as one HTML page: no scripts, no network, readable in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from elpo.debugger.finding import AnchorProbe, Continuation, Finding, ShownStep
from elpo.viz.finding_text import cost_lines, headline, lost_lines, one_line

STYLE = """
:root { color-scheme: light dark; --edge: #8886; --bad: #d55e00; --good: #0072b2; --soft: #8882 }
@media (prefers-color-scheme: dark) { :root { --bad: #ff9a4d; --good: #66b8ff } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.35rem } h2 { font-size: 1.05rem; margin-top: 2rem }
details { border-left: 4px solid var(--edge); margin: .4rem 0; padding: .2rem .8rem }
details.critical { border-color: var(--bad); background: var(--soft) }
details.recovered { border-color: var(--good) }
summary { cursor: pointer; overflow-wrap: anywhere }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft);
      padding: .6rem; margin: .4rem 0 }
.mark { font-weight: 600; margin-right: .6rem } .bad { color: var(--bad) } .good { color: var(--good) }
.bar { display: inline-block; height: .6rem; background: var(--bad); min-width: 1px }
.dim { opacity: .75 }
"""


def write_page(finding: Finding, path: Path) -> Path:
    """Write the page and return where it is."""
    path.write_text(page(finding), encoding="utf-8", errors="replace")
    return path


def page(finding: Finding) -> str:
    """The page as text. Whatever the policy or a tool wrote is shown, never interpreted."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(headline(finding))}</title><style>{STYLE}</style></head><body><main>",
            f"<h1>{escape(headline(finding))}</h1>",
            f'<p class="dim">problem {escape(finding.problem)}, model {escape(finding.model)}, '
            f"success: {escape(finding.grader)}</p>",
            "<h2>The failed trajectory</h2>",
            "<p>Each step: how many continuations from after it succeeded, and the probability that it is "
            "the first irrecoverable one.</p>",
            *_steps(finding),
            *_continuations(finding),
            "<h2>Cost</h2>",
            *(f"<p>{escape(line)}</p>" for line in cost_lines(finding)),
            *(f"<p>note: {escape(notice)}</p>" for notice in finding.notices),
            *(f"<p>{escape(line)}</p>" for line in lost_lines(finding)),
            "</main></body></html>\n",
        ]
    )


def _steps(finding: Finding) -> Iterator[str]:
    probes = {probe.step: probe for probe in finding.probes}
    if 0 in probes:
        yield f"<p>{_probe(probes[0])} from the prompt</p>"
    for number, step in enumerate(finding.steps, 1):
        critical = number == finding.critical
        chance = finding.posterior[number - 1]
        head = f'<span class="mark">{number}</span>'
        if critical:
            head += '<span class="mark bad">first irrecoverable</span>'
        if number in probes:
            head += _probe(probes[number])
        head += f'<span class="bar" style="width:{chance * 6:.2f}rem" title="{chance:.0%}"></span> '
        head += f'<span class="dim">{chance:.0%}</span> {escape(one_line(step))}'
        kind = ' class="critical" open' if critical else ""
        yield f"<details{kind}><summary>{head}</summary>{_step(step)}</details>"


def _probe(probe: AnchorProbe) -> str:
    kind = "good" if probe.successes else "bad"
    lost = f", {probe.lost} lost" if probe.lost else ""
    return f'<span class="mark {kind}">{probe.successes} of {probe.drawn} recovered{lost}</span>'


def _step(step: ShownStep) -> str:
    feedback = f"<p>answered</p><pre>{escape(step.feedback)}</pre>" if step.feedback else ""
    said = "\n".join(filter(None, (step.text, *step.calls)))
    return f"<pre>{escape(said)}</pre>{feedback}"


def _continuations(finding: Finding) -> Iterator[str]:
    if not finding.continuations:
        return
    yield "<h2>Recovered continuations</h2>"
    for number, continuation in enumerate(finding.continuations):
        yield _continuation(continuation, shown=number == 0)


def _continuation(continuation: Continuation, shown: bool) -> str:
    where = f"from after step {continuation.after}" if continuation.after else "from the prompt"
    answer = f", answer {escape(continuation.answer)}" if continuation.answer else ""
    steps = "".join(
        f"<p>step {number}</p>{_step(step)}"
        for number, step in enumerate(continuation.steps, continuation.after + 1)
    )
    opened = " open" if shown else ""
    return f'<details class="recovered"{opened}><summary>{where}{answer}</summary>{steps}</details>'
