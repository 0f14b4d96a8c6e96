"""Branching while a trajectory is uncertain: ARPO's rollouts, and AEPO's, which balance them."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.strategies import Search, Strategy, ask, at_least
from elpo.tree import ROOT, RolloutTree
from elpo.types import Step

Rule = Literal["paper", "code"]
PreMonitor = Literal["none", "counted", "reused"]

LOG_VOCABULARY = math.log(151_936)
"""Both codes divide entropies by log V; this is the V of their models (Qwen2.5), so that their constants keep
their meaning with any tokenizer."""

BASE, THRESHOLD = 0.5, 0.5
"""α and τ of both methods."""

BALANCE = 0.5
"""β of AEPO's split of the budget, as its code has it."""


def entropy_branching(
    num_chains: int = 8,
    rule: Rule = "paper",
    entropy_weight: float = 0.2,
    penalty: float = 0.0,
    pre_monitor: PreMonitor = "none",
    entropy_tokens: int = 20,
) -> Strategy:
    """Chains from the prompt, each copied after those tool calls at which its entropy is high.

    Turn by turn, every trajectory that goes on after its tool call is copied there at most once (a beam of
    2): the copy draws the rest anew, and may itself be copied at later turns. It is copied if

        (base + w Δ)(1 − penalty · l) > τ,   Δ = (H − H_initial) / log V,   H = Σ entropy of the first tokens

    - `paper`: base = α = 0.5 = τ, so that every rise of the entropy branches; H is that of the step after the
      tool's answer, H_initial that of the path's first step; l counts the copies in a row on this path;
    - `code`: base ~ U(0, 1), H is that of the step that made the call, H_initial that of the first step the
      trajectory drew itself (its own, for a copy); l counts all copies of the prompt.

    What is left when all trajectories have ended goes to fresh ones from the prompt. A copy is drawn from the
    finished chain's prefix, which is the same distribution as copying it on the way.

    With `pre_monitor` the number of chains is AEPO's, from one trajectory of its own:

        m = ⌊n σ(β (H_root − mean H_tool))⌋ + 1,   n = the budget, β = 0.5

    `reused`: that trajectory is the first of the m; `counted`: it comes on top, is never copied, and is paid
    for all the same (the authors' code does not count it).

    Source: ARPO, arXiv 2507.19849 (w = 0.2, no penalty); AEPO, arXiv 2510.14545 (penalty 0.05), and their
    code. Deviations: entropies are exact, not those of the ten likeliest tokens; H_initial is never left over
    from another batch; fresh trajectories are drawn at once at the end.

    Raises:
        ValueError: for a count below 1, a negative weight, a penalty outside [0, 1] or an unknown name.
    """
    at_least("num_chains", num_chains, 1)
    at_least("entropy_tokens", entropy_tokens, 0)
    for name, value, known in (("rule", rule, Rule), ("pre_monitor", pre_monitor, PreMonitor)):
        if value not in get_args(known):
            raise ValueError(f"unknown {name} {value!r}: use one of {', '.join(get_args(known))}")
    if entropy_weight < 0 or not 0 <= penalty <= 1:
        raise ValueError(
            f"entropy_weight {entropy_weight} or penalty {penalty} is out of range: use 0 or more, and 0 to 1"
        )

    def rise(tree: RolloutTree, path: list[int], turn: int, born: int) -> float:
        after, before = (path[turn], path[0]) if rule == "paper" else (path[turn - 1], path[born])
        return _opening(tree, after, entropy_tokens) - _opening(tree, before, entropy_tokens)

    def strategy(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
        live, wanted = [], num_chains
        if pre_monitor != "none" and ledger.remaining:
            total = ledger.remaining
            first = yield from ask(ROOT, 1, ledger)
            wanted = balanced_chains(tree, first[0], total, entropy_tokens) if first else num_chains
            if pre_monitor == "reused":
                live, wanted = first, wanted - 1
        if wanted and ledger.remaining:
            live = live + (yield from ask(ROOT, min(wanted, ledger.remaining), ledger))
        born = dict.fromkeys(live, 0)  # turns a trajectory shares with what it was copied from
        in_a_row = dict.fromkeys(live, 0)
        copies, turn = 0, 1
        while ledger.remaining and any(turn < len(tree.path(leaf)) for leaf in born):
            for leaf in [leaf for leaf in born if born[leaf] < turn < len(tree.path(leaf))]:
                base = BASE if rule == "paper" else rng.random()
                earlier = in_a_row[leaf] if rule == "paper" else copies
                path = tree.path(leaf)
                score = (base + entropy_weight * rise(tree, path, turn, born[leaf])) * (1 - penalty * earlier)
                in_a_row[leaf] = in_a_row[leaf] + 1 if score > THRESHOLD else 0
                if score > THRESHOLD and ledger.remaining:
                    copies += 1
                    for copy in (yield from ask(path[turn - 1], 1, ledger)):
                        born[copy], in_a_row[copy] = turn, in_a_row[leaf]
            turn += 1
        if ledger.remaining:
            yield from ask(ROOT, ledger.remaining, ledger)

    return strategy


def balanced_chains(tree: RolloutTree, leaf: int, total: int, entropy_tokens: int = 20) -> int:
    """AEPO's number of trajectories from the prompt, out of `total`: more where the prompt is uncertain.

    Without a tool call both entropies count as equal.
    """
    root, *tool = [_opening(tree, node, entropy_tokens) for node in tree.path(leaf)]
    gap = root - (sum(tool) / len(tool) if tool else root)
    sigmoid = 0.5 * (1 + math.tanh(0.5 * BALANCE * gap))
    return min(total, math.floor(total * sigmoid) + 1)


def _opening(tree: RolloutTree, node: int, num_tokens: int) -> float:
    step: Step = tree.nodes[node].step
    return float(step.entropies[step.sampled][: num_tokens or None].sum(dtype=np.float64)) / LOG_VOCABULARY
