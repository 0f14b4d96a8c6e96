"""A rollout tree as text: what was tried, where it went wrong, and the credit every step received.

One block a node, as in the paper's Figure 4:

    step 1 [5,8-12]  R 0.300  A 1.729  branch 2.828  traj 0.630  probed 1/2
      python(n = 17 * 3) → 51

The step's number; the rollouts through it, numbered in the order they were drawn; R, the node's value
(Eq. 6), A, its advantage (Eq. 10), with its two parts; then what the search found out about it.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from elpo.algorithms.advantage import first_wrong_nodes, node_values
from elpo.algorithms.credit import Credit
from elpo.rollout.messages import call_text
from elpo.tree import ROOT, RolloutTree
from elpo.types import Step, StopReason, ToolStatus

MAX_EXCERPT = 100
"""Characters of a call, a result or a thought in the short form."""


def render_tree(
    tree: RolloutTree, credit: Credit | None = None, *, full_text: bool = False
) -> RenderableType:
    """`tree` for a rich console; `tree_text` gives a string.

    Marks: `first wrong n: ...` on the shallowest node without success of n failed rollouts, as Fig. 4's
    FW labels; `CRITICAL` where a search ended, `critical?` where its budget ended before it did;
    `probed s/n` where a search drew n suffixes, s of which succeeded. Colour only repeats what the text
    says.

    Args:
        tree: a finished tree.
        credit: its credit; without it A, branch and traj are left out.
        full_text: show every step's whole text and feedback instead of one line each.
    """
    number = {leaf: i for i, leaf in enumerate(tree.leaves)}
    rollouts = [[number[leaf] for leaf in leaves] for leaves in tree.leaves_below()]
    values = node_values(tree)
    marks = node_marks(tree, number)

    num_solved = sum(outcome.correct for outcome in tree.outcomes.values())
    head = Text(
        f"{tree.problem.id}: {len(number)} rollouts, {num_solved} solved, policy {tree.policy_version}"
    )
    question = tree.problem.messages[-1]["content"] if tree.problem.messages else ""
    head.append(f"\n{clean(question) if full_text else excerpt(question)}", "dim")
    head.append(f"\nanswer {excerpt(tree.problem.answer)}", "dim")

    branches = {ROOT: Tree(head, guide_style="dim")}
    depth = {ROOT: 0}
    for i, node in enumerate(tree.nodes):
        depth[i] = depth[node.parent] + 1
        outcome = tree.outcomes.get(i)
        label = Text(f"step {depth[i]} [{ranges(rollouts[i])}]", "bold")
        label.append(f"  R {values[i]:.3f}", "not bold")
        if credit is not None:
            advantage = credit.advantages[i]
            color = "green" if advantage > 0 else "red" if advantage < 0 else "default"
            label.append(f"  A {three_decimals(advantage)}", color)
            label.append(f"  branch {three_decimals(credit.branch[i])}", "not bold")
            label.append(f"  traj {three_decimals(credit.trajectory[i])}", "not bold")
        for mark, style in marks.get(i, []):
            label.append(f"  {mark}", style)
        for line in _full_lines(node.step) if full_text else short_lines(node.step):
            label.append(f"\n  {line}", "not bold dim")
        if outcome is not None:
            verdict, style = ("solved", "green") if outcome.correct else ("failed", "red")
            label.append(f"\n  rollout {number[i]} {verdict}", style)
            label.append(f"  reward {outcome.reward:g}", "not bold")
            if outcome.stop is not StopReason.ANSWER:
                label.append(f"  stopped by {outcome.stop.value}", "yellow")
            if outcome.answer is not None:
                label.append(f"  answer {excerpt(outcome.answer)}", "not bold")
        branches[i] = branches[node.parent].add(label)
    return Group(branches[ROOT], *_search_lines(tree, number, depth))


def tree_text(
    tree: RolloutTree, credit: Credit | None = None, *, full_text: bool = False, width: int = 160
) -> str:
    """`render_tree` as plain text; lines longer than `width` wrap."""
    console = Console(width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(render_tree(tree, credit, full_text=full_text))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending integers, runs of three and more shortened.

    >>> ranges([5, 8, 9, 10, 11, 12, 14, 15])
    '5,8-12,14,15'
    """
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 2 else ",".join(map(str, r)) for r in runs)


def node_marks(tree: RolloutTree, number: dict[int, int]) -> dict[int, list[tuple[str, str]]]:
    """What the search says about nodes: texts with their styles, by node."""
    marks: dict[int, list[tuple[str, str]]] = {}
    wrong: dict[int, list[int]] = {}
    for leaf, node in first_wrong_nodes(tree).items():
        wrong.setdefault(node, []).append(number[leaf])
    for node, leaves in wrong.items():
        marks.setdefault(node, []).append((f"first wrong {len(leaves)}: {ranges(leaves)}", "yellow"))
    for found in tree.localizations:
        for probe in found.probes:
            text = f"probed {probe.num_successes}/{probe.num_rollouts}"
            marks.setdefault(probe.anchor, []).append((text, "cyan"))
        if found.critical is not None:
            text = f"{'CRITICAL' if found.exact else 'critical?'} of {number[found.leaf]}"
            marks.setdefault(found.critical, []).append((text, "bold magenta"))
        for node in found.falls:
            marks.setdefault(node, []).append((f"fall of {number[found.leaf]}", "magenta"))
    return marks


def _search_lines(tree: RolloutTree, number: dict[int, int], depth: dict[int, int]) -> list[Text]:
    """One line for every search, in the order they ran."""
    lines = []
    for found in tree.localizations:
        probes = ", ".join(
            f"step {depth[probe.anchor]}: {probe.num_successes}/{probe.num_rollouts}"
            for probe in found.probes
        )
        result = "no step found" if found.critical is None else f"critical step {depth[found.critical]}"
        unfinished = "" if found.exact else ", the budget ended first"
        line = f"search of rollout {number[found.leaf]}: {result}{unfinished} (probes {probes or 'none'})"
        lines.append(Text(line))
    return lines


def short_lines(step: Step) -> list[str]:
    """A step in one line: its call with the result, or what it says."""
    result = step.tool_result
    line = excerpt(step.text if step.tool_call is None else call_text(step.tool_call))
    if result is None:
        return [line] if line else []
    status = "" if result.status is ToolStatus.OK else f"[{result.status.value}] "
    return [f"{line} → {status}{excerpt(result.output)}"]


def _full_lines(step: Step) -> list[str]:
    lines = clean(step.text).splitlines()
    if step.tool_result is not None:
        status, *rest = (
            f"→ [{step.tool_result.status.value}]",
            *clean(step.tool_result.output).splitlines(),
        )
        lines += [status, *(f"  {line}" for line in rest)]
    return lines


def excerpt(text: str) -> str:
    """`text` on one line, its middle left out where it is long."""
    line = " ⏎ ".join(part.strip() for part in clean(text).strip().splitlines())
    if len(line) <= MAX_EXCERPT:
        return line
    half = (MAX_EXCERPT - 3) // 2
    return f"{line[:half]} … {line[-half:]}"


def clean(text: str) -> str:
    """`text` without what a terminal would obey or refuse: control characters, lone surrogates."""
    return "".join(c if c in "\n\t" or c.isprintable() else "�" for c in text)


def three_decimals(value: float) -> str:
    """Three decimals; what rounds to zero has no sign."""
    return f"{round(value, 3) + 0.0:.3f}"
