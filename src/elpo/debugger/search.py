"""Searching one failed trajectory of any agent: the strategy of the training, driven by chat rollouts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.localization import Loop
from elpo.algorithms.strategies import RolloutRequest, Search, Strategy, ask, grow, localize
from elpo.debugger.finding import AnchorProbe, Cost, Finding, anchor_probes, posterior_of, recovered, shown
from elpo.debugger.trajectory import Failed
from elpo.endpoints.account import LimitReached
from elpo.endpoints.journal import KeptPolicy
from elpo.interfaces import InfrastructureFault
from elpo.rollout.chat import ChatAgent, ChatDraws, Rollout
from elpo.rollout.faults import InfrastructureError
from elpo.rollout.plug_ins import graded
from elpo.tree import ROOT, RolloutTree
from elpo.types import Outcome


@dataclass(frozen=True)
class SearchSettings:
    """Rollouts in all, and how many from each anchor; as in `elpo.algorithms.strategies.localize`."""

    budget: int = 32
    min_suffixes: int = 4
    max_suffixes: int = 4
    loop: Loop = "figure"


class Watcher(Protocol):
    """Is told what a search does; of draws from many threads."""

    def probing(self, step: int, num_rollouts: int) -> None:
        """Continuations from after `step` (0: the prompt) are being drawn."""
        ...

    def drawn(self, step: int, success: bool | None) -> None:
        """One of them ended; None: it was lost."""
        ...


class Silent:
    """A watcher that shows nothing."""

    def probing(self, step: int, num_rollouts: int) -> None:
        """See `Watcher`."""

    def drawn(self, step: int, success: bool | None) -> None:
        """See `Watcher`."""


def search(
    agent: ChatAgent,
    failed: Failed,
    policy: KeptPolicy,
    settings: SearchSettings,
    concurrency: int,
    grader: str,
    watcher: Watcher | None = None,
    failures: Callable[[], Counter[str]] = Counter,
) -> tuple[Finding, RolloutTree]:
    """Find the first irrecoverable step of a failed trajectory, and all the rollouts that say so.

    A limit, an endpoint that is down or an interrupt ends the search early; the finding says so, and holds
    what was found until then.

    Args:
        policy: what `agent` asks; kept and paid for.
        grader: what judges, in words.
        failures: failed attempts so far.

    Raises:
        ValueError: the trajectory is no failure, or longer than `agent.limits` permits continuations to be.
    """
    begun = time.monotonic()
    outcome = _checked(agent, failed)
    tree = RolloutTree(failed.problem, np.empty(0, np.int64))
    leaf = tree.add(ROOT, failed.steps, outcome)
    path = tree.path(leaf)
    ledger = BudgetLedger(settings.budget)
    watching = watcher or Silent()
    reasons: list[str] = []
    number = {ROOT: 0, **{node: i for i, node in enumerate(path, 1)}}

    def on_draw(prefix: int, ended: Rollout | str) -> None:
        if isinstance(ended, str):
            reasons.append(ended)
        watching.drawn(number[prefix], None if isinstance(ended, str) else ended[1].correct)

    stopped = None
    threads = ThreadPoolExecutor(concurrency, "elpo-rollout")
    draws = agent.draw_with(threads, on_draw)
    lost: Counter[int] = Counter()

    def draw(tree: RolloutTree, request: RolloutRequest) -> list[Rollout | None]:
        watching.probing(number[request.prefix], request.num_rollouts)
        return whole_evidence(draws, tree, request, lost)

    try:
        grow(tree, from_anchors(leaf, settings), ledger, np.random.default_rng(agent.seed), draw)
    except (LimitReached, InfrastructureError) as reason:
        stopped = str(reason)
    except KeyboardInterrupt:
        stopped = "interrupted"
    finally:
        if stopped is not None:
            policy.give_up()
        threads.shutdown(cancel_futures=True)
        draws.close()
    found = next(iter(tree.localizations), None)
    critical = None if found is None or found.critical is None else path.index(found.critical) + 1
    if critical is None and stopped is None:
        stopped = f"the budget of {ledger.total} rollouts ended before the search"
    probes = anchor_probes(tree, leaf, lost)
    account = policy.account
    finding = Finding(
        problem=failed.problem.id,
        model=agent.model,
        grader=grader,
        steps=tuple(shown(step) for step in failed.steps),
        critical=critical,
        posterior=posterior_of(probes, len(path)),
        probes=probes,
        continuations=recovered(tree, leaf, len(path) if critical is None else critical),
        lost=tuple(reasons),
        cost=Cost(
            rollouts=ledger.spent,
            budget=ledger.total,
            requests=account.requests,
            prompt_tokens=account.prompt_tokens,
            completion_tokens=account.completion_tokens,
            cost=account.cost,
            failed_attempts=dict(failures()),
            replayed=policy.num_replayed,
            seconds=time.monotonic() - begun,
        ),
        stopped=stopped,
        notices=_notices(draws, path, critical, probes),
    )
    return finding, tree


def from_anchors(leaf: int, settings: SearchSettings) -> Strategy:
    """The search of `localize`, then, where it names the first step, as many rollouts from the prompt.

    Without those nothing shows that the model can solve the problem at all.
    """
    inner = localize(leaf, settings.min_suffixes, settings.max_suffixes, loop=settings.loop)

    def strategy(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
        yield from inner(tree, ledger, rng)
        if tree.localizations[-1].critical == tree.path(leaf)[0] and ledger.remaining:
            yield from ask(ROOT, min(settings.max_suffixes, ledger.remaining), ledger)

    return strategy


def whole_evidence(
    draws: ChatDraws, tree: RolloutTree, request: RolloutRequest, lost: Counter[int]
) -> list[Rollout | None]:
    """The rollouts of a request; lost ones are drawn again, then replaced by others.

    No success among some of the rollouts is no verdict: what was lost might have succeeded. Then the search
    stops, and a later call goes on. One success is a verdict, whatever else was lost. `lost` counts, by node,
    the rollouts that could not even be replaced.

    Raises:
        InfrastructureError: there is no verdict.
    """
    numbers = draws.next_numbers(request.prefix, request.num_rollouts)
    found = draws.rollouts(tree, request.prefix, numbers)
    for replaced in (False, False, True):
        missing = [i for i, rollout in enumerate(found) if rollout is None]
        again = [numbers[i] for i in missing]
        if replaced:
            again = draws.next_numbers(request.prefix, len(missing))
        for i, rollout in zip(missing, draws.rollouts(tree, request.prefix, again), strict=True):
            found[i] = rollout
    num_lost = found.count(None)
    lost[request.prefix] += num_lost
    if num_lost and not any(rollout is not None and rollout[1].correct for rollout in found):
        raise InfrastructureError(
            f"{num_lost} of {len(found)} continuations could not be drawn, and none of the others succeeded: "
            "without them there is no verdict"
        )
    return found


def _checked(agent: ChatAgent, failed: Failed) -> Outcome:
    limit = agent.limits.for_problem(failed.problem).max_turns
    if len(failed.steps) > limit:
        raise ValueError(
            f"the trajectory has {len(failed.steps)} turns and rollout.max_turns is {limit}: no continuation "
            "could be as long; raise it"
        )
    try:
        outcome = graded(agent.grade, failed.problem, failed.steps, failed.stop)
    except InfrastructureFault as fault:
        raise InfrastructureError(f"the trajectory cannot be judged: {fault}") from fault
    if outcome.correct:
        raise ValueError("the grader says that this trajectory succeeded: there is no error to find")
    return outcome


def _notices(
    draws: ChatDraws, path: list[int], critical: int | None, probes: Sequence[AnchorProbe]
) -> tuple[str, ...]:
    notices = []
    if draws.differences:
        steps = ", ".join(str(path.index(node) + 1) for node in sorted(draws.differences))
        notices.append(
            f"the tools answered otherwise than recorded when the calls of step {steps} were repeated: "
            "continuations started from their present state, with the recorded answers in the conversation"
        )
    if critical == 1 and not any(probe.successes for probe in probes):
        notices.append(
            "no rollout succeeded, from the prompt neither: perhaps this model cannot solve the problem, and "
            "then no step is to blame"
        )
    return tuple(notices)
