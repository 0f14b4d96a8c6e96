"""`elpo localize` in a world whose truth is known, through a real server and through a bad connection."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.strategies import grow, independent
from elpo.debugger.search import SearchSettings, search
from elpo.debugger.trajectory import Failed, from_messages
from elpo.endpoints.account import Spending
from elpo.endpoints.connection import kept
from elpo.endpoints.openai import Endpoint, Retries
from elpo.interfaces import InfrastructureFault
from elpo.rollout.chat import ChatAgent, Outage
from elpo.rollout.episode import Limits
from elpo.rollout.messages import messages_of
from elpo.tree import RolloutTree
from elpo.types import Problem
from elpo.viz.finding_page import page
from elpo.viz.finding_text import LiveSearch, headline, render_finding
from tests.endpoints.faulty_proxy import KINDS, FaultyProxy
from tests.rollout.conftest import CounterTool, SumTask, dialogue, tokenizer
from tests.serving.scripted import counting, serving, truth

__all__ = ["dialogue", "tokenizer"]

LIMITS = Limits(max_turns=12, max_tokens=4000, max_turn_tokens=64)
SETTINGS = SearchSettings(budget=40, min_suffixes=6, max_suffixes=6)
NUM = 5


@pytest.fixture(scope="module")
def server(tokenizer):
    with serving(counting(error=0.15), tokenizer) as running:
        yield running


def agent(policy, seed=0):
    return ChatAgent(
        policy, "counter", {"counter": CounterTool()}, SumTask().grade, LIMITS, 1.0, seed, Outage()
    )


@pytest.fixture(scope="module")
def failures(server):
    """Failed trajectories of the server's own policy, as messages, with the truth of each."""
    found = []
    policy = Endpoint(server.url)
    with ThreadPoolExecutor(8) as threads:
        for number in range(100):
            target = 4 + number % 4
            problem = Problem(f"p{number}", ({"role": "user", "content": f"reach {target}"},), str(target))
            tree = RolloutTree(problem, np.empty(0, np.int64))
            draws = agent(policy, seed=1).draw_with(threads)
            grow(tree, independent(), BudgetLedger(1), np.random.default_rng(0), draws)
            ((leaf, outcome),) = tree.outcomes.items()
            steps = [tree.nodes[node].step for node in tree.path(leaf)]
            if not outcome.correct and len(steps) > 2:
                messages = [m for step in steps for m in messages_of(step)]
                given = from_messages(json.loads(json.dumps(messages)), problem)
                found.append((given, truth(target, steps)))
            if len(found) == NUM:
                return found
    raise AssertionError("too few failures")


def searched(url, failed, journal, attempts=5, spending=None, settings=SETTINGS, timeout=20.0):
    endpoint = Endpoint(url, retries=Retries(attempts, 0.005, timeout))
    with kept(endpoint, journal, spending or Spending()) as policy:
        found, tree = search(
            agent(policy), failed, policy, settings, 6, "sum", failures=lambda: endpoint.failures
        )
    return found, tree


@pytest.fixture(scope="module")
def clean(server, failures, tmp_path_factory):
    """What a search through a good connection finds of each."""
    folder = tmp_path_factory.mktemp("clean")
    return [searched(server.url, failed, folder / f"{i}.jsonl")[0] for i, (failed, _) in enumerate(failures)]


def test_it_finds_the_step_that_doomed_the_trajectory(failures, clean):
    hits = [finding.critical == step for finding, (_, step) in zip(clean, failures, strict=True)]
    assert sum(hits) >= NUM - 1  # six failing suffixes of a recoverable step are rare, not impossible
    for finding in clean:
        assert finding.confidence == max(finding.posterior) and finding.confidence > 0.5
        assert finding.stopped is None and not finding.lost
        first, last = finding.continuations[0], finding.continuations[-1]
        assert last.after <= first.after == finding.critical - 1
        assert first.steps[-1].text == f"\\boxed{{{first.answer}}}"
        assert finding.cost.rollouts == sum(probe.drawn for probe in finding.probes)


@pytest.mark.parametrize("kind", ["all", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS)])
def test_no_kind_of_fault_changes_a_verdict(server, failures, clean, tmp_path, kind):
    rate = {"timeout": 0.1, "all": 0.2}.get(kind, 0.4)
    kinds = KINDS if kind == "all" else (kind,)
    with FaultyProxy(server.url, rate=rate, stall=1.2, seed=3, kinds=kinds) as proxy:
        for i in range(2):
            timeout = 1.0 if kind in ("timeout", "all") else 20.0
            finding, _ = searched(
                proxy.url, failures[i][0], tmp_path / f"{i}.jsonl", attempts=10, timeout=timeout
            )
            assert (finding.critical, finding.probes) == (clean[i].critical, clean[i].probes)
            assert finding.cost.requests == clean[i].cost.requests  # nothing is lost, nothing paid twice
        assert sum(proxy.spoilt.values()) > 1
        proxy.shutdown()


def test_with_faults_and_no_patience_no_verdict_is_wrong_and_a_second_call_goes_on(
    server, failures, clean, tmp_path
):
    """One attempt for a request: rollouts are lost, searches stop. What is left is never made a verdict."""
    kinds = tuple(kind for kind in KINDS if kind != "timeout")
    stopped = lost = 0
    with FaultyProxy(server.url, rate=0.3, stall=1.0, seed=1, kinds=kinds) as proxy:
        for i, (failed, _) in enumerate(failures):
            finding, _ = searched(proxy.url, failed, tmp_path / f"{i}.jsonl", attempts=1)
            lost += len(finding.lost)
            if finding.critical is None:
                stopped += 1
                assert "could not be drawn" in finding.stopped
                assert "not found yet" in headline(finding)
            else:
                # another draw stands for one that was lost for good: the verdict has all its evidence
                assert all(probe.drawn == 6 or probe.successes for probe in finding.probes)
            again, _ = searched(server.url, failed, tmp_path / f"{i}.jsonl")
            assert again.critical == clean[i].critical
            assert again.cost.replayed >= finding.cost.requests // 2  # others stood in for lost ones
        proxy.shutdown()
    assert stopped and lost


def test_a_killed_search_replays_what_it_drew(server, failures, clean, tmp_path):
    """The journal is cut at any place, in the middle of a line even: the rest is drawn again, no more."""
    whole = tmp_path / "whole.jsonl"
    searched(server.url, failures[0][0], whole)
    lines = whole.read_bytes()
    for share in (0.0, 0.3, 0.77, 1.0):
        file = tmp_path / f"{share}.jsonl"
        file.write_bytes(lines[: int(share * len(lines))])
        complete = file.read_bytes().count(b"\n")
        finding, _ = searched(server.url, failures[0][0], file)
        assert (finding.critical, finding.probes) == (clean[0].critical, clean[0].probes)
        assert finding.cost.replayed == complete
        assert finding.cost.requests == lines.count(b"\n") == file.read_bytes().count(b"\n")


def test_a_limit_stops_and_a_higher_one_goes_on(server, failures, clean, tmp_path):
    file = tmp_path / "j.jsonl"
    used = clean[0].cost.prompt_tokens + clean[0].cost.completion_tokens
    finding, tree = searched(server.url, failures[0][0], file, spending=Spending(max_tokens=used // 2))
    assert finding.critical is None and "might pass the limit" in finding.stopped
    assert finding.cost.prompt_tokens + finding.cost.completion_tokens <= used // 2
    assert len(tree.leaves) >= 1
    again, _ = searched(server.url, failures[0][0], file, spending=Spending(max_tokens=50 * used))
    assert (again.critical, again.cost.replayed) == (clean[0].critical, finding.cost.requests)


def test_an_endpoint_that_is_down_is_no_verdict(failures, tmp_path):
    finding, _ = searched("http://127.0.0.1:1/v1", failures[0][0], tmp_path / "j.jsonl", attempts=1)
    assert finding.critical is None and finding.cost.requests == 0 and len(finding.lost) > 0
    assert all(probe.drawn == 0 for probe in finding.probes)
    assert len(set(finding.posterior)) == 1  # nothing is known


def test_a_budget_that_ends_first_says_so(server, failures, tmp_path):
    settings = SearchSettings(budget=3, min_suffixes=2, max_suffixes=2)
    finding, _ = searched(server.url, failures[0][0], tmp_path / "j.jsonl", settings=settings)
    assert finding.cost.rollouts == 3
    assert finding.critical is not None or "the budget of 3 rollouts ended" in finding.stopped


def test_an_interrupt_keeps_what_was_drawn(server, failures, clean, tmp_path):
    endpoint = Endpoint(server.url)
    answered = threading.Semaphore(10)

    class Interrupted:
        def complete(self, request):
            if not answered.acquire(blocking=False):
                raise KeyboardInterrupt
            return endpoint.complete(request)

        def close(self):
            pass

    with kept(Interrupted(), tmp_path / "j.jsonl", Spending()) as policy:
        finding, _ = search(agent(policy), failures[0][0], policy, SETTINGS, 2, "sum")
    assert finding.stopped == "interrupted" and finding.critical is None
    again, _ = searched(server.url, failures[0][0], tmp_path / "j.jsonl")
    assert (again.critical, again.cost.replayed) == (clean[0].critical, 10)


def test_a_trajectory_that_cannot_be_searched_is_refused(server, failures, tmp_path):
    failed, _ = failures[0]
    right = from_messages(
        [{"role": "user", "content": "reach 3"}, {"role": "assistant", "content": "\\boxed{3}"}],
        Problem("p", (), "3"),
    )
    with pytest.raises(ValueError, match="this trajectory succeeded"):
        searched(server.url, right, tmp_path / "a.jsonl")
    long = Failed(failed.problem, failed.steps * 9, failed.stop)
    with pytest.raises(ValueError, match=r"turns and rollout\.max_turns is 12"):
        searched(server.url, long, tmp_path / "b.jsonl")


def test_a_grader_that_fails_is_no_verdict_on_the_agent(server, failures, tmp_path):
    calls = iter(range(10**6))

    def burning(problem, steps, stop):
        if next(calls):
            raise InfrastructureFault("the grader burns")
        return SumTask().grade(problem, steps, stop)

    with kept(Endpoint(server.url), tmp_path / "j.jsonl", Spending()) as policy:
        fragile = ChatAgent(policy, "counter", {"counter": CounterTool()}, burning, LIMITS, 1.0, 0, Outage())
        finding, _ = search(fragile, failures[0][0], policy, SETTINGS, 4, "sum")
    assert finding.critical is None and "the grader burns" in finding.lost[0]
    assert sum(probe.drawn for probe in finding.probes) == 0


def test_without_any_success_it_says_that_no_step_may_be_to_blame(tokenizer, tmp_path):
    with serving(lambda context, uniform: "\\boxed{0}", tokenizer) as hopeless:
        given = from_messages(
            [
                {"role": "user", "content": "reach 3"},
                {"role": "assistant", "content": "hm", "tool_calls": []},
                {"role": "user", "content": "go on"},
                {"role": "assistant", "content": "\\boxed{1}"},
            ],
            Problem("p", (), "3"),
        )
        finding, _ = searched(hopeless.url, given, tmp_path / "j.jsonl")
    assert finding.critical == 1 and finding.confidence < 0.9
    assert [probe.step for probe in finding.probes] == [0, 1]
    assert "perhaps this model cannot solve the problem" in finding.notices[0]


def test_the_text_and_the_page_show_it_and_interpret_nothing(failures, clean):
    from dataclasses import replace

    from rich.console import Console

    hostile = replace(
        clean[0].steps[0], text="<script>alert(1)</script> \x1b[31m[bold]x[/bold]", feedback="</pre><b>"
    )
    finding = replace(clean[0], steps=(hostile, *clean[0].steps[1:]), lost=("<i>lost</i>",))
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        console.print(render_finding(finding, full=True))
    text = capture.get()
    assert f"first irrecoverable step: {finding.critical} of {len(finding.steps)}" in text
    assert "\x1b" not in text and "[bold]x[/bold]" in text
    html = page(finding)
    assert "<script" not in html and "<b>" not in html and "<i>" not in html and "http" not in html
    assert html.count("<details") == len(finding.steps) + len(finding.continuations)
    assert html.count('class="critical" open') == 1
    json.dumps(finding.to_json())


def test_the_live_picture(clean):
    from rich.console import Console

    console = Console(width=100, force_terminal=True, color_system=None)
    live = LiveSearch(console, clean[0].steps)
    live.probing(2, 4)
    for success in (True, False, None):
        live.drawn(2, success)
    with console.capture() as capture:
        console.print(live.render())
    live.close()
    (line,) = [line for line in capture.get().splitlines() if "▶" in line]
    assert "2" in line and "●×?·" in line
