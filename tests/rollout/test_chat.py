"""Rollouts of messages, through a real server, against the scheduler's rollouts of token ids."""

from __future__ import annotations

import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.credit import assign_credit
from elpo.algorithms.strategies import RolloutRequest, grow, independent
from elpo.batch import token_batch
from elpo.chat import Completion, RawCall
from elpo.endpoints.openai import Endpoint, Retries
from elpo.engines.scripted import ScriptedEngine
from elpo.evaluation.trajectories import sample_from_record, trajectory_records
from elpo.interfaces import InfrastructureFault
from elpo.rollout.chat import MAX_LOST_IN_A_ROW, ChatAgent, Outage
from elpo.rollout.episode import Limits
from elpo.rollout.faults import InfrastructureError
from elpo.rollout.messages import step_messages
from elpo.rollout.scheduler import Scheduler
from elpo.tree import ROOT, RolloutTree
from elpo.tree_json import tree_from_json, tree_to_json
from elpo.tree_packing import pack_trees
from elpo.types import MessageStep, Outcome, Problem, Step, StopReason, ToolStatus
from tests.rollout.conftest import CounterTool, SumTask, call
from tests.serving.scripted import counting, serving, total_of

LIMITS = Limits(max_turns=6, max_tokens=2000, max_turn_tokens=200)
PROBLEM = Problem("p", ({"role": "user", "content": "reach 3"},), "3")


def agent(policy, tools=None, grade=None, limits=LIMITS, seed=0):
    tools = {"counter": CounterTool()} if tools is None else tools
    return ChatAgent(policy, "counter", tools, grade or SumTask().grade, limits, 1.0, seed, Outage())


def grown(chat_agent, num, problem=PROBLEM):
    tree = RolloutTree(problem, np.empty(0, np.int64))
    with ThreadPoolExecutor(4) as threads, closing(chat_agent.draw_with(threads)) as draws:
        grow(tree, independent(), BudgetLedger(num), np.random.default_rng(0), draws)
    return tree


def malformed(context, uniform):
    return "<tool_call>\nnot json\n</tool_call>" if total_of(context) else call(1)


POLICIES = {
    "right": counting(0.0),
    "wrong answer": lambda context, uniform: "\\boxed{7}",
    "never ends": lambda context, uniform: call(0),
    "malformed calls": malformed,
    "open call": lambda context, uniform: "<tool_call>\n{",
    "no arguments object": lambda c, u: '<tool_call>\n{"name": "counter", "arguments": 3}\n</tool_call>',
    "unknown tool": lambda c, u: '<tool_call>\n{"name": "nothing", "arguments": {}}\n</tool_call>',
    "bad argument": lambda context, uniform: call('"one"'),
    "thoughtful": lambda c, u: f"so far {total_of(c)}\n{call(1)}" if total_of(c) < 3 else "\\boxed{3}",
    "too long": lambda context, uniform: "word " * 400,
    "text after a call": lambda c, u: f"{call(1)}\nand so on" if total_of(c) < 3 else "\\boxed{3}",
}


@pytest.mark.parametrize("name", POLICIES)
def test_messages_over_http_go_as_token_ids_do(name, tokenizer, dialogue):
    policy = POLICIES[name]
    engine = ScriptedEngine(policy, tokenizer)
    scheduler = Scheduler(engine, SumTask(), {"counter": CounterTool()}, dialogue, LIMITS)
    (expected,), _ = scheduler.grow([PROBLEM], independent(), 1, seed=0)
    with serving(policy, tokenizer) as server:
        tree = grown(agent(Endpoint(server.url)), 1)

    def told(tree):
        (leaf,) = tree.leaves
        steps = [tree.nodes[node].step for node in tree.path(leaf)]
        said = [step.text.partition("</tool_call>")[0] for step in steps]  # the rest is dropped
        return tree.outcomes[leaf], [
            (s, x.tool_call, x.tool_result) for s, x in zip(said, steps, strict=True)
        ]

    assert told(tree) == told(expected)
    (leaf,) = tree.leaves
    lengths = [int(tree.nodes[node].step.sampled.sum()) for node in tree.path(leaf)]
    (leaf,) = expected.leaves
    assert lengths == [int(expected.nodes[node].step.sampled.sum()) for node in expected.path(leaf)]


def test_the_reported_context_bounds_a_trajectory(tokenizer):
    with serving(POLICIES["never ends"], tokenizer) as server:
        tree = grown(agent(Endpoint(server.url), limits=Limits(100, 150, 100)), 1)
        (outcome,) = tree.outcomes.values()
        assert outcome.stop is StopReason.TOKEN_LIMIT and 2 < len(tree.nodes) < 20
    with serving(POLICIES["never ends"], tokenizer, context=120) as server:  # the server's own limit
        tree = grown(agent(Endpoint(server.url), limits=Limits(100, 10_000, 100)), 1)
        (outcome,) = tree.outcomes.values()
        assert outcome.stop is StopReason.TOKEN_LIMIT


class Answers:
    """A policy that says the given completions, one after the other, or raises them."""

    def __init__(self, *completions):
        self.completions = itertools.chain(completions, itertools.repeat(completions[-1]))
        self.requests = []

    def complete(self, request):
        self.requests.append(request)
        said = next(self.completions)
        if isinstance(said, Exception):
            raise said
        return said

    def close(self):
        pass


def test_one_call_a_turn_and_the_others_are_dropped():
    calls = tuple(RawCall(f"c{i}", "counter", f'{{"add": {i}}}') for i in (1, 2))
    policy = Answers(Completion("both", calls), Completion("\\boxed{1}"))
    tree = grown(agent(policy, grade=lambda *_: Outcome(0.0, False)), 1)
    assert tree.nodes[0].step.tool_result.output == "1"
    said, answered = policy.requests[1].messages[1:]
    assert [c["id"] for c in said["tool_calls"]] == ["c1"] == [answered["tool_call_id"]]


@pytest.mark.parametrize("arguments", ["{", "3", "[]", '"x"'])
def test_arguments_that_are_no_object_are_the_policys_mistake(arguments):
    policy = Answers(Completion("", (RawCall("c", "counter", arguments),)), Completion("\\boxed{3}"))
    tree = grown(agent(policy), 1)
    first = tree.nodes[0].step
    assert (first.tool_call, first.tool_result.status) == (None, ToolStatus.MALFORMED_CALL)
    assert tree.outcomes[1].correct
    assert policy.requests[1].messages[-1]["tool_call_id"] == "c"


def test_faults_are_no_rollouts_and_too_many_are_an_outage():
    fault = InfrastructureFault("away")
    tree = grown(agent(Answers(fault, Completion("\\boxed{3}"))), 3)
    assert len(tree.leaves) == 2 and all(outcome.correct for outcome in tree.outcomes.values())
    with pytest.raises(InfrastructureError, match=f"{MAX_LOST_IN_A_ROW} completions in a row failed.*away"):
        grown(agent(Answers(fault)), 20)

    def burning(problem, steps, stop):
        raise InfrastructureFault("the grader burns")

    assert not grown(agent(Answers(Completion("\\boxed{3}")), grade=burning), 20).leaves
    call_fault = Answers(Completion("", (RawCall("c", "counter", '{"add": "fault"}'),)))
    assert not grown(agent(call_fault), 20).leaves


def prefix_tree(*amounts, answers=None):
    """A tree with one trajectory of messages that added these amounts."""
    totals = list(itertools.accumulate(amounts)) if answers is None else answers
    steps = []
    for amount, total in zip(amounts, totals, strict=True):
        made = {
            "id": "c",
            "type": "function",
            "function": {"name": "counter", "arguments": f'{{"add": {amount}}}'},
        }
        steps.append(
            MessageStep.of(
                [
                    {"role": "assistant", "content": "", "tool_calls": [made]},
                    {"role": "tool", "tool_call_id": "c", "content": str(total)},
                ]
            )
        )
    tree = RolloutTree(PROBLEM, np.empty(0, np.int64))
    tree.add(ROOT, [*steps, MessageStep.of([{"role": "assistant", "content": "?"}])], Outcome(0.0, False))
    return tree


def test_a_branch_starts_from_the_tools_as_its_prefix_left_them():
    tool = CounterTool()
    policy = Answers(Completion("", (RawCall("c", "counter", '{"add": 10}'),)), Completion("\\boxed{3}"))
    tree = prefix_tree(1, 2, 3)
    chat_agent = agent(policy, {"counter": tool})
    with ThreadPoolExecutor(1) as threads, closing(chat_agent.draw_with(threads)) as draws:
        ((steps, _),) = draws(tree, RolloutRequest(1, 1))
        assert steps[0].tool_result.output == "13"
        assert not draws.differences
        assert [m["role"] for m in policy.requests[0].messages] == ["user", *["assistant", "tool"] * 2]
        draws(tree, RolloutRequest(1, 1))
        seeds = [request.seed for request in policy.requests]
        assert len(set(seeds)) == len(seeds)
    assert tool.opened == 1 and tool.closed > 0


def test_tools_that_answer_otherwise_now_are_noticed():
    tree = prefix_tree(1, 2, answers=[1, 77])
    with ThreadPoolExecutor(1) as threads:
        draws = agent(Answers(Completion("\\boxed{3}"))).draw_with(threads)
        draws(tree, RolloutRequest(1, 1))
        assert draws.differences == [1]


def test_a_session_of_the_prefix_outlives_the_rollouts_that_left_it():
    class Picky(CounterTool):
        name = "picky"

    class Strict:
        """A session that refuses calls once it is closed."""

        def __init__(self, total=0):
            self.total, self.open = total, True

        def call(self, made):
            assert self.open, "a closed session was called"
            result, _ = CounterTool().open(None).call(made)
            after = Strict(self.total + made.arguments["add"])
            return type(result)(result.status, str(after.total)), after

        def close(self):
            self.open = False

    strict = CounterTool()
    strict.open = lambda problem: Strict()
    other = Picky()
    turns = [
        Completion("", (RawCall("c", "picky", '{"add": 1}'),)),
        Completion("", (RawCall("c", "counter", '{"add": 1}'),)),
        Completion("\\boxed{3}"),
    ]
    chat_agent = agent(Answers(*turns, *turns), {"counter": strict, "picky": other})
    tree = prefix_tree(1, 1)
    with ThreadPoolExecutor(1) as threads, closing(chat_agent.draw_with(threads)) as draws:
        for rollout in draws(tree, RolloutRequest(1, 2)):
            assert rollout is not None
            assert rollout[0][1].tool_result.output == "3"


def test_trees_of_messages_cannot_be_trained_on_but_stored_and_counted(tokenizer):
    with serving(counting(0.0), tokenizer) as server:
        tree = grown(agent(Endpoint(server.url, retries=Retries())), 2)
    credit = assign_credit(tree)
    for use in (
        lambda: token_batch([tree], [credit]),
        lambda: pack_trees([tree], [credit], "token-mean", "once", 100),
    ):
        with pytest.raises(ValueError, match="without token ids"):
            use()
    back, _ = tree_from_json(tree_to_json(tree))
    assert [node.step.text for node in back.nodes] == [node.step.text for node in tree.nodes]
    assert all(np.isnan(node.step.entropies).all() for node in back.nodes)
    record = trajectory_records(tree, 2)[0]
    assert record["entropy"] is None and record["sampled_tokens"] > 0
    assert np.isnan(sample_from_record(record).entropy)


def test_messages_of_a_step_with_token_ids():
    nothing = np.zeros(0)
    made = POLICIES["thoughtful"]("", 0.0)
    step = Step(nothing, nothing, nothing, nothing, made)
    assert step_messages(step) == [{"role": "assistant", "content": made}]
    assert re.match("so far 0", step_messages(step)[0]["content"])
