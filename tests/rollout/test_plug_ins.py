"""Tools and graders that break their promises: a rollout is lost to a fault that names them, nothing else."""

import math
import re

import pytest

from elpo.algorithms.strategies import bel, independent
from elpo.engines.scripted import ScriptedEngine
from elpo.rollout.episode import Limits
from elpo.rollout.faults import MIN_EVENTS_IF_NONE_WENT_WELL, FaultMeter, InfrastructureError
from elpo.rollout.plug_ins import MAX_OUTPUT_CHARS, called, graded
from elpo.rollout.scheduler import Scheduler
from elpo.types import Outcome, Problem, StopReason, ToolCall, ToolResult, ToolStatus
from tests.rollout.conftest import CounterSession, CounterTool, SumTask, call

PROBLEM = Problem("p", (), "")


class Session:
    def __init__(self, answer):
        self.answer = answer

    def call(self, call):
        return self.answer(self)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda session: {}["boom"], r"KeyError: 'boom' \(test_plug_ins.py:\d+\)"),
        (lambda session: "text", "call returned 'text', not"),
        (lambda session: None, "call returned None, not"),
        (lambda session: (ToolResult(ToolStatus.OK, None), session), "its output is None, not text"),
        (lambda session: (ToolResult(ToolStatus.OK, 5), session), "its output is 5, not text"),
    ],
)
def test_a_tool_that_breaks_its_promise_is_a_fault(answer, said):
    session = Session(answer)
    result, after = called(session, ToolCall("mine", {}))
    assert result.status is ToolStatus.INFRASTRUCTURE_FAULT and after is session
    assert result.output.startswith("[the tool mine failed: ") and re.search(said, result.output)


def test_output_that_no_tokenizer_takes_is_made_valid_and_short():
    for text, shown in (("a\ud800b", "a?b"), ("x" * (MAX_OUTPUT_CHARS + 7), "\n[7 more characters]")):
        result, _ = called(Session(lambda s, t=text: (ToolResult(ToolStatus.OK, t), s)), ToolCall("mine", {}))
        assert result.status is ToolStatus.OK and result.output.endswith(shown)
        assert result.output.encode() and len(result.output) < MAX_OUTPUT_CHARS + 30


@pytest.mark.parametrize(
    ("grade", "said"),
    [
        (lambda *_: {}["boom"], r"the grader raised KeyError: 'boom' \(test_plug_ins.py:\d+\) on problem p"),
        (lambda *_: None, "the grader returned None"),
        (lambda *_: Outcome(math.nan, False, StopReason.ANSWER), "the reward nan on problem p"),
    ],
)
def test_a_grader_that_breaks_its_promise_is_a_fault(grade, said):
    from elpo.interfaces import InfrastructureFault

    with pytest.raises(InfrastructureFault, match=said):
        graded(grade, PROBLEM, [], StopReason.ANSWER)


def test_what_a_confidential_problem_says_is_not_told():
    from elpo.interfaces import InfrastructureFault

    def grade(problem, steps, stop):
        raise ValueError("the secret")

    with pytest.raises(InfrastructureFault) as raised:
        graded(grade, Problem("p", (), "", {"confidential": True}), [], StopReason.ANSWER)
    assert "secret" not in str(raised.value) and "ValueError" in str(raised.value)


class Rash(SumTask):
    """Raises for some answers, as a grader with a defect does."""

    def grade(self, problem, steps, stop):
        if steps[-1].text.endswith("{5}"):
            raise IndexError("defect")
        return super().grade(problem, steps, stop)


def policy(context, uniform):
    shown = re.findall(r"<tool_response>\n(\d+)\n", context)
    if shown and int(shown[-1]) >= 3:
        return f"\\boxed{{{shown[-1]}}}"
    return f"add {call(3 if uniform < 0.1 else 1)}"


def make_scheduler(dialogue, task):
    engine = ScriptedEngine(policy, dialogue.tokenizer, 7, lambda context, turn: 0.0)
    return Scheduler(engine, task, {"counter": CounterTool()}, dialogue, Limits(8, 600, 80))


def test_a_rollout_that_the_grader_raises_for_is_lost_alone_and_why_is_told(dialogue):
    with pytest.warns(RuntimeWarning, match=r"first of gradings\): the grader raised IndexError: defect"):
        trees, counts = make_scheduler(dialogue, Rash()).grow(Rash().problems("train", 12), bel(), 16, seed=0)
    assert 0 < counts.faults == counts.grader_faults < 0.1 * counts.rollouts
    assert sum(len(tree.outcomes) for tree in trees) == counts.rollouts - counts.faults


def test_a_tool_that_raises_loses_the_rollouts_that_call_it(dialogue, monkeypatch):
    before = CounterSession.call

    def call_of_three_raises(self, call):
        return {}["three"] if call.arguments.get("add") == 3 else before(self, call)

    monkeypatch.setattr(CounterSession, "call", call_of_three_raises)
    with pytest.warns(RuntimeWarning, match=r"first of tool calls\): \[the tool counter failed: KeyError"):
        trees, counts = make_scheduler(dialogue, SumTask()).grow(
            SumTask().problems("train", 4), independent(), 16, seed=0
        )
    lost = counts.statuses[ToolStatus.INFRASTRUCTURE_FAULT]
    assert lost == counts.faults > 0 and sum(len(tree.outcomes) for tree in trees) == 64 - lost


@pytest.mark.filterwarnings("ignore:lost to a fault")
def test_what_has_never_worked_ends_the_run_before_long():
    meter = FaultMeter("gradings")
    for _ in range(MIN_EVENTS_IF_NONE_WENT_WELL - 1):
        meter.record("broken")
    with pytest.raises(InfrastructureError, match=r"24 of the last 24 gradings.*The latest: broken"):
        meter.record("broken")

    hopeful = FaultMeter("gradings")
    hopeful.record(None)
    for _ in range(MIN_EVENTS_IF_NONE_WENT_WELL + 1):
        hopeful.record("broken")
