"""Shaped rewards by hand, and that shaping leaves the verdict alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elpo.algorithm_config import RewardConfig
from elpo.algorithms.reward_shaping import call_bonus, overlong_penalty, shape_rewards, stage
from elpo.types import ToolCall, ToolResult, ToolStatus
from tests.trees import build_outcome, build_step, empty_tree, flat

CALL = ToolCall("python", {"code": "1"})


def call_step(status, call=CALL):
    return replace(build_step(True), tool_call=call, tool_result=ToolResult(status, ""))


def test_the_overlong_penalty_is_dapos():
    """20480 tokens with a cache of 4096, as published: 0 up to 16384, −1 at the end."""
    published = [(0, 0), (16384, 0), (16384 + 2048, -0.5), (20480, -1), (30000, -1)]
    for length, penalty in published:
        assert overlong_penalty(length, 20480, 0.2) == pytest.approx(penalty)
    with pytest.raises(ValueError, match="buffer of 0"):
        overlong_penalty(1, 10, 0.0)


@given(st.integers(0, 300), st.floats(0.05, 1))
def test_the_overlong_penalty_never_rises(length, buffer):
    assert -1 <= overlong_penalty(length + 1, 200, buffer) <= overlong_penalty(length, 200, buffer) <= 0


@pytest.mark.parametrize(
    ("reward", "correct", "num_calls", "expected"),
    [(-1, False, 0, -1), (-1, False, 3, -0.7), (-1, False, 9, -0.6), (1, True, 9, 1), (-0.5, False, 9, -0.5)],
)
def test_the_call_bonus_is_capped(reward, correct, num_calls, expected):
    assert call_bonus(reward, correct, num_calls) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("steps", "reached"),
    [
        ([build_step(False)], 0),
        ([call_step(ToolStatus.MALFORMED_CALL, call=None)], 0),
        ([call_step(ToolStatus.MALFORMED_CALL)], 1),  # an unknown tool
        ([call_step(ToolStatus.PROGRAM_ERROR)], 1),
        ([call_step(ToolStatus.PROGRAM_ERROR), call_step(ToolStatus.OK)], 2),
    ],
)
def test_stages(steps, reached):
    assert stage(steps) == reached


def test_stages_reward_failures_and_never_more_than_a_success():
    tree = empty_tree()
    for steps, correct in [
        ([build_step(False)], False),
        ([call_step(ToolStatus.PROGRAM_ERROR), build_step(False)], False),
        ([call_step(ToolStatus.OK), build_step(False)], False),
        ([build_step(False)], True),
    ]:
        tree.add(-1, steps, build_outcome(correct, 1.0 if correct else -1.0))
    shape_rewards(tree, RewardConfig(stages=(0.1, 0.2)), max_tokens=1000)
    assert [o.reward for o in tree.outcomes.values()] == pytest.approx([-1.0, -0.9, -0.8, 1.0])
    assert [o.correct for o in tree.outcomes.values()] == [False, False, False, True]


def test_the_room_for_a_response_is_what_the_prompt_leaves():
    """2 tokens of prompt, responses of 10 (a tool step and an answer): 12 tokens are the limit."""
    tree = flat([1.0])
    shape_rewards(tree, RewardConfig(overlong_buffer=0.5), max_tokens=12)
    assert tree.outcomes[tree.leaves[0]].reward == 0.0
    untouched = flat([1.0])
    shape_rewards(untouched, RewardConfig(), max_tokens=12)
    assert untouched.outcomes == flat([1.0]).outcomes
