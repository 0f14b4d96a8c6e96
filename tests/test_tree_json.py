"""A tree that went through JSON is the same tree."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elpo.algorithms.credit import assign_credit
from elpo.tree import ROOT, RolloutTree
from elpo.tree_json import tree_from_json, tree_to_json
from elpo.types import (
    Localization,
    Outcome,
    Probe,
    Problem,
    Step,
    StopReason,
    ToolCall,
    ToolResult,
    ToolStatus,
)
from elpo.viz.tree import tree_text
from tests.trees import Figure4

texts = st.text(st.characters(), max_size=8)  # surrogates included: a tool may print anything
floats32 = st.floats(-50, 50, width=32)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    n = draw(st.integers(0, 5))
    arguments = st.dictionaries(texts, st.one_of(texts, st.integers(), st.none(), st.lists(st.booleans())))
    call = draw(st.none() | st.builds(ToolCall, texts, arguments))
    result = draw(st.none() | st.builds(ToolResult, st.sampled_from(ToolStatus), texts, st.just(0.25)))
    return Step(
        token_ids=np.array(draw(st.lists(st.integers(0, 2**40), min_size=n, max_size=n)), np.int64),
        sampled=np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), np.bool_),
        logprobs=np.array(draw(st.lists(floats32, min_size=n, max_size=n)), np.float32),
        entropies=np.array(draw(st.lists(floats32, min_size=n, max_size=n)), np.float32),
        text=draw(texts),
        tool_call=call,
        tool_result=result,
    )


@st.composite
def trees(draw: st.DrawFn) -> RolloutTree:
    problem = Problem(
        draw(texts), ({"role": "user", "content": draw(texts)},), draw(texts), {"depth": [1, "a"]}
    )
    tree = RolloutTree(
        problem, np.array(draw(st.lists(st.integers(0, 9))), np.int64), draw(st.integers(0, 9))
    )
    outcomes = st.builds(
        Outcome, st.floats(-2, 2), st.booleans(), st.sampled_from(StopReason), st.none() | texts
    )
    for _ in range(draw(st.integers(0, 4))):
        inner = [i for i in range(len(tree.nodes)) if i not in tree.outcomes]
        prefix = draw(st.sampled_from([ROOT, *inner]))
        tree.add(prefix, draw(st.lists(steps(), min_size=1, max_size=3)), draw(outcomes))
    for leaf in tree.leaves[:2]:
        probes = tuple(Probe(node, 2, 1) for node in tree.path(leaf)[:-1])
        tree.localizations.append(
            Localization(
                leaf, draw(st.none() | st.sampled_from(tree.path(leaf))), probes, draw(st.booleans())
            )
        )
    return tree


def through_text(tree: RolloutTree, credit: Any = None) -> tuple[RolloutTree, Any]:
    text = json.dumps(tree_to_json(tree, credit), allow_nan=False)
    text.encode("utf-8")
    return tree_from_json(json.loads(text))


@settings(max_examples=60, deadline=None)
@given(trees())
def test_round_trip(tree: RolloutTree) -> None:
    back, credit = through_text(tree)
    assert credit is None
    assert back.problem == Problem(
        tree.problem.id, tree.problem.messages, tree.problem.answer, {"depth": [1, "a"]}
    )
    assert back.policy_version == tree.policy_version
    assert back.outcomes == tree.outcomes
    assert list(back.outcomes) == list(tree.outcomes)  # the order drawn
    assert back.localizations == tree.localizations
    np.testing.assert_array_equal(back.prompt_ids, tree.prompt_ids)
    assert [node.parent for node in back.nodes] == [node.parent for node in tree.nodes]
    for a, b in zip(back.nodes, tree.nodes, strict=True):
        assert (a.step.text, a.step.tool_call, a.step.tool_result) == (
            b.step.text,
            b.step.tool_call,
            b.step.tool_result,
        )
        for name in ("token_ids", "sampled"):
            x, y = getattr(a.step, name), getattr(b.step, name)
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        for name in ("logprobs", "entropies"):
            x, y = getattr(a.step, name), getattr(b.step, name)
            assert x.dtype == y.dtype == np.float32
            np.testing.assert_allclose(x, y, rtol=5.1e-6)


@settings(max_examples=30, deadline=None)
@given(trees())
def test_credit_comes_along(tree: RolloutTree) -> None:
    credit = assign_credit(tree)
    _, back = through_text(tree, credit)
    for name in ("advantages", "branch", "trajectory", "clip_low", "clip_high"):
        np.testing.assert_allclose(getattr(back, name), getattr(credit, name), rtol=1e-5, atol=1e-300)


def test_foreign_metadata_becomes_json() -> None:
    problem = Problem(
        "p", (), "a", {"array": np.arange(3), "number": np.float32(2), "set": {1}, "nan": float("nan")}
    )
    back, _ = through_text(RolloutTree(problem, np.array([1])))
    assert back.problem.metadata == {"array": [0, 1, 2], "number": 2.0, "set": "{1}", "nan": "nan"}


@pytest.mark.parametrize("damage", [{"format": 99}, {"nodes": [{}]}, {"nodes": None}, {"problem": 3}])
def test_what_is_no_tree_is_refused(damage: dict[str, Any]) -> None:
    data = tree_to_json(RolloutTree(Problem("p", (), "a"), np.array([1]))) | damage
    with pytest.raises(ValueError, match="not a rollout tree"):
        tree_from_json(data)


def test_falls_and_credit_of_single_trajectories_come_along() -> None:
    tree = Figure4().fill_and_search()
    found = replace(tree.localizations[1], falls=(tree.path(tree.localizations[1].leaf)[0],))
    tree.localizations[1] = found
    own = np.linspace(-1, 1, len(tree.leaves))
    back, credit = through_text(tree, replace(assign_credit(tree), own=own))
    assert back.localizations == tree.localizations
    assert credit is not None and credit.own is not None
    np.testing.assert_allclose(credit.own, own, rtol=1e-5)
    assert f"fall of {tree.leaves.index(found.leaf)}" in tree_text(back)
