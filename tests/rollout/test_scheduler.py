"""Episodes and the scheduler with scripted policies: how trajectories end, branches, budgets, faults."""

import itertools
import json
import re
import threading
from dataclasses import replace

import numpy as np
import pytest

from elpo.algorithms.strategies import RolloutRequest, bel, independent, random_prefix
from elpo.engines.scripted import ScriptedEngine
from elpo.interfaces import InfrastructureFault
from elpo.rollout.episode import MAX_MALFORMED_CALLS, Limits
from elpo.rollout.faults import InfrastructureError
from elpo.rollout.scheduler import Scheduler
from elpo.tree import ROOT
from elpo.types import StopReason, ToolStatus
from tests.rollout.conftest import CounterTool, SumTask, call

LIMITS = Limits(max_turns=8, max_tokens=600, max_turn_tokens=80)


def make_scheduler(dialogue, policy, limits=LIMITS, entropy=lambda context, turn: 0.0, **kwargs):
    engine = ScriptedEngine(policy, dialogue.tokenizer, kwargs.pop("num_slots", 7), entropy)
    return Scheduler(engine, SumTask(), {"counter": CounterTool()}, dialogue, limits, **kwargs)


def grow(dialogue, policy, strategy=None, num_problems=1, num_rollouts=1, seed=0, **kwargs):
    scheduler = make_scheduler(dialogue, policy, **kwargs)
    problems = SumTask().problems("train", num_problems)
    return scheduler.grow(problems, strategy or independent(), num_rollouts, seed)


def totals(context):
    return [int(n) for n in re.findall(r"<tool_response>\n(\d+)\n", context)]


def stepper(context, uniform):
    """Adds 1 until the goal is reached, answers what the counter shows; at times it adds 3 instead."""
    goal = int(re.search(r"reach (\d+)", context)[1])
    shown = totals(context)
    if shown and shown[-1] >= goal:
        return f"\\boxed{{{shown[-1]}}}"
    return f"add {call(3 if uniform < 0.3 else 1)}"


def test_a_trajectory_that_calls_and_answers(dialogue):
    trees, counts = grow(dialogue, lambda context, u: stepper(context, 0.9))
    (tree,) = trees
    (leaf,) = tree.leaves
    steps = [tree.nodes[i].step for i in tree.path(leaf)]
    assert [step.tool_result.output for step in steps[:-1]] == ["1", "2"]
    assert tree.outcomes[leaf].correct and tree.outcomes[leaf].stop is StopReason.ANSWER
    assert counts.tool_calls == 2 and counts.turns == 3 and counts.statuses == {ToolStatus.OK: 2}
    for step in steps:
        assert step.sampled.any() and len(step.sampled) == len(step.token_ids)
        sampled = dialogue.tokenizer.decode(step.token_ids[step.sampled].tolist(), skip_special_tokens=False)
        assert sampled == step.text + "<|im_end|>"
    rendered = dialogue.tokenizer.decode(tree.context(leaf).tolist(), skip_special_tokens=False)
    assert rendered.count("<tool_response>") == 2 and rendered.endswith("\\boxed{2}<|im_end|>")


@pytest.mark.parametrize(
    ("turn", "stop", "num_steps"),
    [
        ("<tool_call>oops", StopReason.MALFORMED_CALLS, MAX_MALFORMED_CALLS),
        (call(1), StopReason.TURN_LIMIT, 8),
        ("x" * 500, StopReason.TOKEN_LIMIT, 1),
        ("no idea", StopReason.ANSWER, 1),
        ("", StopReason.ANSWER, 1),
    ],
)
def test_every_way_to_stop(dialogue, turn, stop, num_steps):
    trees, _ = grow(dialogue, lambda context, u: turn)
    (outcome,) = trees[0].outcomes.values()
    assert outcome.stop is stop and not outcome.correct
    assert len(trees[0].nodes) == num_steps


def test_feedback_that_does_not_fit_ends_the_trajectory(dialogue):
    limits = Limits(max_turns=50, max_tokens=120, max_turn_tokens=80)
    trees, _ = grow(dialogue, lambda context, u: call(1), limits=limits)
    (leaf,) = trees[0].leaves
    assert trees[0].outcomes[leaf].stop is StopReason.TOKEN_LIMIT
    assert len(trees[0].context(leaf)) <= 120
    assert not trees[0].nodes[leaf].step.token_ids[~trees[0].nodes[leaf].step.sampled].size


def test_malformed_and_unknown_calls_become_feedback(dialogue):
    def policy(context, u):
        if "malformed tool call" not in context:
            return "<tool_call>{}</tool_call>"
        if "no tool" not in context:
            return '<tool_call>{"name": "abacus", "arguments": {}}</tool_call>'
        if "not a number" not in context:
            return call('"x"')
        return "\\boxed{2}"

    trees, _ = grow(dialogue, policy)
    steps = [node.step for node in trees[0].nodes]
    assert [step.tool_result and step.tool_result.status for step in steps] == [
        ToolStatus.MALFORMED_CALL,
        ToolStatus.MALFORMED_CALL,
        ToolStatus.PROGRAM_ERROR,
        None,
    ]
    assert steps[0].tool_call is None and steps[1].tool_call.name == "abacus"
    assert trees[0].outcomes[trees[0].leaves[0]].correct


def test_a_call_beyond_the_limit_is_not_run_but_answered(dialogue):
    """Also where the calls before it belong to the prefix of a branch."""

    def policy(context, u):
        return "\\boxed{2}" if "no tool call is left" in context else call(1)

    def twice(tree, ledger, rng):
        yield RolloutRequest(ROOT, 1)
        yield RolloutRequest(0, 1)  # after the first call

    trees, counts = grow(dialogue, policy, twice, num_rollouts=2, limits=Limits(8, 2000, 200, max_calls=2))
    for leaf in trees[0].leaves:
        steps = [trees[0].nodes[node].step for node in trees[0].path(leaf)]
        statuses = [step.tool_result and step.tool_result.status for step in steps]
        assert statuses == [ToolStatus.OK, ToolStatus.OK, ToolStatus.RESOURCE_LIMIT, None]
        assert "the limit is 2" in steps[2].tool_result.output
    assert counts.tool_calls == 3 and all(outcome.correct for outcome in trees[0].outcomes.values())


@pytest.mark.parametrize(
    "strategy", [independent(), bel(), random_prefix()], ids=["independent", "bel", "random"]
)
def test_budgets_are_exact_and_branches_continue_their_prefix(dialogue, strategy):
    trees, counts = grow(dialogue, stepper, strategy, num_problems=9, num_rollouts=16, num_slots=5)
    assert [len(tree.outcomes) for tree in trees] == [16] * 9
    assert counts.rollouts == 9 * 16
    for tree in trees:
        for leaf in tree.leaves:
            total = 0
            for node in tree.path(leaf):
                step = tree.nodes[node].step
                if step.tool_call:  # the environment of a branch is exactly its prefix's
                    total += step.tool_call.arguments["add"]
                    assert step.tool_result.output == str(total)


def snapshot(tree):
    return (
        [(node.parent, node.step.token_ids.tolist(), node.step.text) for node in tree.nodes],
        [(leaf, outcome) for leaf, outcome in tree.outcomes.items()],
        tree.localizations,
    )


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    "strategy", [independent(), bel(), random_prefix()], ids=["independent", "bel", "random"]
)
def test_many_trees_at_once_equal_one_tree_at_a_time(dialogue, strategy, deterministic):
    entropy = lambda context, turn: (len(context) % 7) / 3  # noqa: E731
    many, _ = grow(
        dialogue, stepper, strategy, 12, 16, seed=3, num_slots=9, entropy=entropy, deterministic=deterministic
    )
    problems = SumTask().problems("train", 12)
    for problem, tree in zip(problems, many, strict=True):
        alone, _ = make_scheduler(dialogue, stepper, num_slots=1, entropy=entropy).grow(
            [problem], strategy, 16, 3
        )
        assert snapshot(alone[0]) == snapshot(tree)


def test_another_seed_draws_other_rollouts(dialogue):
    first, second = (snapshot(grow(dialogue, stepper, num_rollouts=16, seed=s)[0][0]) for s in (0, 1))
    assert first != second


def faulty(share):
    def policy(context, u):
        return call('"fault"') if u < share else stepper(context, u)

    return policy


def test_faults_make_rollouts_unusable_but_cost_their_draw(dialogue):
    trees, counts = grow(dialogue, faulty(0.03), bel(), num_problems=20, num_rollouts=16)
    assert counts.rollouts == 20 * 16 and counts.faults > 0
    assert sum(len(tree.outcomes) for tree in trees) == counts.rollouts - counts.faults
    for tree in trees:
        assert not any(outcome.stop is StopReason.FAULT for outcome in tree.outcomes.values())


def test_too_many_faults_stop_the_run(dialogue):
    with pytest.raises(InfrastructureError, match=r"tool calls were infrastructure faults.*burns"):
        grow(dialogue, faulty(0.5), independent(), num_problems=50, num_rollouts=16)


class SickGrader(SumTask):
    """Fails by itself for the trajectories it is told to."""

    def __init__(self, is_sick):
        self.is_sick, self.numbers = is_sick, itertools.count(1)

    def grade(self, problem, steps, stop):
        if self.is_sick(next(self.numbers)):
            raise InfrastructureFault("the grader is out of memory")
        return super().grade(problem, steps, stop)


@pytest.mark.parametrize("strategy", [independent(), bel()], ids=["independent", "bel"])
def test_a_grader_that_fails_makes_the_rollout_unusable(dialogue, strategy):
    scheduler = make_scheduler(dialogue, stepper)
    object.__setattr__(scheduler, "task", SickGrader(lambda number: number % 16 == 0))
    trees, counts = scheduler.grow(SumTask().problems("train", 20), strategy, 16, seed=0)
    assert counts.rollouts == 20 * 16
    assert counts.faults == counts.grader_faults == 20
    assert sum(len(tree.outcomes) for tree in trees) == 20 * 16 - 20
    assert all(outcome.stop is not StopReason.FAULT for tree in trees for outcome in tree.outcomes.values())


def test_a_grader_that_fails_too_often_stops_the_run(dialogue):
    scheduler = make_scheduler(dialogue, stepper)
    object.__setattr__(scheduler, "task", SickGrader(lambda number: number > 200 and number % 5 == 0))
    problems = SumTask().problems("train", 12)
    for step in range(2):
        scheduler.grow(problems, independent(), 8, seed=step)
    with pytest.raises(InfrastructureError, match=r"of the last \d+ gradings were.*out of memory"):
        scheduler.grow(problems * 10, independent(), 8, seed=2)
    assert 300 < next(scheduler.task.numbers) < 1192


def test_a_tool_that_cannot_open_is_a_fault(dialogue):
    scheduler = make_scheduler(dialogue, stepper)

    def no_session(problem):
        raise RuntimeError("out of order")

    scheduler.tools["counter"].open = no_session
    trees, counts = scheduler.grow(SumTask().problems("train", 1), independent(), 5, seed=0)
    assert trees[0].outcomes == {} and counts.faults == 5
    assert counts.statuses == {ToolStatus.INFRASTRUCTURE_FAULT: 5}


def test_a_tree_of_faults_alone_is_empty(dialogue):
    trees, counts = grow(dialogue, faulty(1.1), bel(), num_rollouts=5)
    assert trees[0].outcomes == {} and counts.faults == 5


def test_sessions_are_closed_and_threads_end(dialogue):
    scheduler = make_scheduler(dialogue, stepper)
    before = threading.active_count()
    scheduler.grow(SumTask().problems("train", 4), bel(), 16, seed=0)
    assert scheduler.tools["counter"].closed > 0
    assert threading.active_count() == before


def test_an_error_in_the_grader_is_not_swallowed(dialogue):
    scheduler = make_scheduler(dialogue, stepper)
    object.__setattr__(scheduler, "task", type("Broken", (SumTask,), {"grade": lambda *_: 1 / 0})())
    with pytest.warns(RuntimeWarning, match="the grader raised ZeroDivisionError"):
        _, counts = scheduler.grow(SumTask().problems("train", 1), independent(), 1, seed=0)
    assert counts.grader_faults == 1


def test_a_prompt_without_room_is_a_clear_error(dialogue):
    with pytest.raises(ValueError, match=r"train-0.*rollout\.max_tokens is 5"):
        grow(dialogue, stepper, limits=Limits(8, 5, 5))


def test_trees_are_reported_as_they_finish(dialogue):
    seen = []
    scheduler = make_scheduler(dialogue, stepper)
    problems = SumTask().problems("train", 6)
    trees, _ = scheduler.grow(problems, bel(), 16, seed=0, on_tree=seen.append)
    assert sorted(tree.problem.id for tree in seen) == sorted(p.id for p in problems)
    assert [tree.problem for tree in trees] == problems


def test_the_tree_with_most_of_its_budget_left_goes_first(dialogue):
    started = []

    class Watched(ScriptedEngine):
        def submit(self, request):
            if request.rollout not in started:
                started.append(request.rollout)
                groups.append(request.group)
            super().submit(request)

    groups = []
    scheduler = replace(
        make_scheduler(dialogue, stepper), engine=Watched(stepper, dialogue.tokenizer, num_slots=4)
    )
    scheduler.grow(SumTask().problems("train", 6), bel(max_failures=3), 16, seed=0)
    assert len(groups) == 6 * 16
    assert groups[:18] == [tree for tree in range(6) for _ in range(3)]  # the first request of each
    last_started = [len(groups) - groups[::-1].index(tree) for tree in range(6)]
    assert min(last_started) > 0.8 * len(groups)  # all end together


def test_searching_many_trees_keeps_the_batch_full(dialogue):
    scheduler = make_scheduler(dialogue, stepper, num_slots=16)
    scheduler.grow(SumTask().problems("train", 48), bel(), 16, seed=0)
    counts = scheduler.engine.counts
    assert counts.decoded_tokens / (counts.decode_steps * 16) > 0.95


def test_a_root_request_after_a_branch_starts_clean(dialogue):
    def strategy(tree, ledger, rng):
        from elpo.algorithms.strategies import RolloutRequest

        leaves = yield RolloutRequest(ROOT, 1)
        branch = yield RolloutRequest(tree.path(leaves[0])[0], 2)
        assert all(tree.nodes[tree.path(leaf)[1]].parent == tree.path(leaf)[0] for leaf in branch)
        yield RolloutRequest(ROOT, 1)

    trees, _ = grow(dialogue, lambda context, u: stepper(context, 0.9), strategy, num_rollouts=4)
    assert len(trees[0].children()[ROOT]) == 2
    assert np.all([outcome.correct for outcome in trees[0].outcomes.values()])
    assert (
        json.dumps(sorted(len(tree.path(leaf)) for tree in trees for leaf in tree.leaves)) == "[3, 3, 3, 3]"
    )
