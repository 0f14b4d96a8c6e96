from __future__ import annotations

import random
from collections import Counter
from functools import cache
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from elpo.tasks.check import check_task
from elpo.tasks.loading import load_task
from elpo.tasks.lookup import (
    LookupConfig,
    LookupTask,
    facts_looked_up,
    first_irrecoverable_step,
    recoverable,
)
from elpo.tasks.lookup_question import VERBS, Question, follow
from elpo.types import Problem, Step, StopReason, ToolCall, ToolResult, ToolStatus

from .ledger_transcripts import step
from .lookup_transcripts import answer, lookup, search_tool

TASK = LookupTask(LookupConfig(slack=1))
BASE = TASK.base
TOOL = search_tool(TASK)


def chain(verbs: tuple[str, ...], task: LookupTask = TASK, start: int = 0) -> Problem:
    """A problem over those verbs, from one of the substances from which none is met twice."""
    treatments = [VERBS[verb] for verb in verbs]
    ways = [follow(BASE, substance, treatments) for substance in BASE.substances]
    way = [way for way in ways if len(set(way)) == len(way)][start]
    return task.problem(Question(verbs, way))


PROBLEM = chain(("roast", "etch", "rinse"))  # 3 hops, 5 turns
LAST = PROBLEM.answer
A, B, C = (hop[0] for hop in PROBLEM.metadata["hops"])
RIGHT = (f"heat {A}", f"acid {B}", f"water {C}")


def played(*queries: object, final: object = None, problem: Problem = PROBLEM) -> list[Step]:
    steps = [lookup(TOOL, problem, query) for query in queries]
    return steps if final is None else [*steps, answer(final)]


# grading


def test_the_right_lookups_and_substance_are_correct() -> None:
    outcome = TASK.grade(PROBLEM, played(*RIGHT, final=f" {LAST.title()} "), StopReason.ANSWER)
    assert (outcome.correct, outcome.reward, outcome.answer) == (True, 1, LAST)
    assert outcome.stop is StopReason.ANSWER


@pytest.mark.parametrize(
    "steps",
    [
        played(*RIGHT, final=A),
        played(*RIGHT, final=f"{LAST} {A}"),
        played(*RIGHT[:2], final=LAST),  # a hop is missing
        played(final=LAST),  # guessed
        played(f"acid {A}", *RIGHT, final=LAST),  # the second fact of a substance does not count
        played(f"water {C}", f"acid {C}", *RIGHT[:2], f"water {A}", final=LAST),  # six turns
        [*played(*RIGHT), step(f"it is {LAST}")],
        [*played(*RIGHT), step(f"\\boxed{{{LAST}")],
        [*played(*RIGHT), step(f"\\boxed{{{LAST}}} or \\boxed{{{A}}}")],
        [*played(*RIGHT), step("\\boxed{gravy}")],  # no such substance
        [*played(*RIGHT), step("\\boxed{}")],
        played(*RIGHT),
        [],
    ],
    ids=range(13),
)
def test_everything_else_is_wrong(steps: list[Step]) -> None:
    outcome = TASK.grade(PROBLEM, steps, StopReason.ANSWER)
    assert (outcome.correct, outcome.reward) == (False, -1)


def test_hops_may_be_looked_up_in_any_order_and_wording() -> None:
    for queries in (
        RIGHT[::-1],
        (f"{A} heat", f"What is {B} with acid?", f"THE WATER ON {C}"),
        (f"acid {BASE.facts[A, 'acid']}", *RIGHT),  # a substance that is not on the way
    ):
        assert TASK.grade(PROBLEM, played(*queries, final=LAST), StopReason.ANSWER).correct, queries


@pytest.mark.parametrize("stop", [stop for stop in StopReason if stop is not StopReason.ANSWER])
def test_a_trajectory_that_was_cut_is_wrong(stop: StopReason) -> None:
    outcome = TASK.grade(PROBLEM, played(*RIGHT, final=LAST), stop)
    assert (outcome.correct, outcome.answer, outcome.stop) == (False, None, stop)


def test_rewards_are_options() -> None:
    task = LookupTask(LookupConfig(reward_correct=2.0, reward_wrong=0.5))
    assert task.grade(PROBLEM, played(*RIGHT, final=LAST), StopReason.ANSWER).reward == 2.0
    assert task.grade(PROBLEM, played(final=LAST), StopReason.ANSWER).reward == 0.5


@settings(max_examples=200)
@given(
    st.lists(st.text(max_size=30) | st.sampled_from(RIGHT) | st.none() | st.integers(), max_size=6),
    st.text(max_size=20) | st.sampled_from([f"\\boxed{{{LAST}}}", f"Answer: {LAST}"]),
)
def test_nothing_the_policy_writes_raises(queries: list[Any], text: str) -> None:
    ok = ToolResult(ToolStatus.OK, "")
    steps = [step("", ToolCall("search", {"query": query}), ok) for query in queries]
    for stop in StopReason:
        TASK.grade(PROBLEM, [*steps, step(text)], stop)
        first_irrecoverable_step(PROBLEM, [*steps, step(text)], stop)


def test_the_task_passes_its_own_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elpo.tasks.check.NUM_LISTED", 200)
    checks = check_task(TASK, {"search": TOOL}, num=30)
    assert not [finding for check in checks for finding in check.findings]
    own = next(check for check in checks if check.name == "own solutions")
    assert own.num_tried == 90


# what counts as looked up


@pytest.mark.parametrize(
    "query",
    [A, "heat", f"{A} {A}", f"heat acid {A}", f"heat {A} {B}", f"cold {A}", f"heats {A}", f"haet {A}",
     f"heat {A}s", "", None, 3, [f"heat {A}"], f"heat {A} " * 300],
)  # fmt: skip
def test_what_is_no_question_for_one_fact_looks_up_nothing(query: object) -> None:
    steps = played(query)
    assert A not in facts_looked_up(steps)
    assert recoverable(PROBLEM, steps)


def test_only_calls_of_the_search_tool_that_ran_count() -> None:
    call = ToolCall("search", {"query": f"acid {A}"})
    for status in ToolStatus:
        looked_up = facts_looked_up([step("", call, ToolResult(status, ""))])
        assert looked_up == ({A: "acid"} if status is ToolStatus.OK else {})
    other = step("", ToolCall("python", call.arguments), ToolResult(ToolStatus.OK, ""))
    malformed = step("<tool_call>", None, ToolResult(ToolStatus.MALFORMED_CALL, "Error"))
    assert facts_looked_up([other, malformed, step("text")]) == {}


def test_the_tool_answers_every_question_with_the_fact_that_is_then_counted() -> None:
    """The oracle reads queries, the policy reads answers: they speak of the same fact, for every wording."""
    forms = ("{t} {s}", "{s} {t}", "What is {s} with {t}?", "the {t} of {s}", "{s}, {t}!")
    for (substance, treatment), made_of_it in BASE.facts.items():
        for form in forms:
            made = lookup(TOOL, PROBLEM, form.format(s=substance, t=treatment))
            assert made.tool_result is not None
            shown = f"[1] {substance}: {substance} with {treatment} gives {made_of_it}."
            assert made.tool_result.output == shown
            assert facts_looked_up([made]) == {substance: treatment}


# the oracle against brute force


def is_correct(problem: Problem, queries: tuple[str, ...], answered: str) -> bool:
    """Success as the rules say it, followed hop by hop from what the tool really shows."""
    if len(queries) + 1 > problem.metadata["max_turns"]:
        return False
    shown: dict[str, str] = {}
    for query in queries:
        words = query.split()
        if len(words) == 2:  # "treatment substance", the only form in the alphabet below that is a question
            result = lookup(TOOL, problem, query).tool_result
            assert result is not None
            title, _, fact = result.output.removeprefix("[1] ").partition(": ")
            if title == words[1] and fact.startswith(f"{title} with {words[0]} gives "):
                shown.setdefault(title, fact)
    substance = problem.metadata["hops"][0][0]
    for _, treatment, _ in problem.metadata["hops"]:
        expected = f"{substance} with {treatment} gives "
        fact = shown.get(substance, "")
        if not fact.startswith(expected):
            return False
        substance = fact.removeprefix(expected).rstrip(".")
    return answered == substance


@pytest.mark.parametrize("start", range(3))
@pytest.mark.parametrize("slack", [0, 1])
def test_recoverable_is_what_exhaustive_search_finds(start: int, slack: int) -> None:
    verbs = random.Random(start).sample(["roast", "etch", "rinse", "sour"], 2)
    problem = chain(tuple(verbs), LookupTask(LookupConfig(slack=slack)), start)
    met = [hop[0] for hop in problem.metadata["hops"]]
    outsider = next(substance for substance in BASE.substances if substance not in met)
    alphabet = [f"{treatment} {substance}" for substance in met for treatment in ("heat", "acid", "water")]
    alphabet += [f"acid {outsider}", met[0]]
    max_turns = problem.metadata["max_turns"]
    steps = {query: lookup(TOOL, problem, query) for query in alphabet}

    @cache
    def can_succeed(queries: tuple[str, ...]) -> bool:
        if any(is_correct(problem, queries, answered) for answered in BASE.substances):
            return True
        return len(queries) < max_turns and any(can_succeed((*queries, query)) for query in alphabet)

    flags = set()
    for length in range(max_turns + 1):
        for queries in product(alphabet, repeat=length):
            assert recoverable(problem, [steps[query] for query in queries]) == can_succeed(queries), queries
            flags.add(can_succeed(queries))
    assert flags == {True, False}


QUERIES = [*RIGHT, f"acid {A}", f"water {B}", A, f"acid {A}0", "cold 0"]


@settings(max_examples=150)
@given(st.lists(st.sampled_from(QUERIES), max_size=4), st.sampled_from([A, LAST]))
def test_recoverability_ends_once_and_grading_agrees(queries: list[str], answered: str) -> None:
    """The oracle is monotone, and a trajectory succeeds iff it is recoverable to its very end."""
    steps = played(*queries, final=answered)
    flags = [recoverable(PROBLEM, steps[:length]) for length in range(len(steps) + 1)]
    assert flags == sorted(flags, reverse=True)
    assert TASK.grade(PROBLEM, steps, StopReason.ANSWER).correct == flags[-1]
    first = first_irrecoverable_step(PROBLEM, steps)
    assert first == (None if flags[-1] else flags.index(False))


def test_first_irrecoverable_step_by_hand() -> None:
    def first(*queries: str, final: object = LAST) -> int | None:
        return first_irrecoverable_step(PROBLEM, played(*queries, final=final))

    assert first(*RIGHT) is None
    assert first(f"haet {A}", *RIGHT) is None  # a misspelt treatment costs a turn
    assert first(*RIGHT, final=A) == 4
    assert first(f"acid {A}", *RIGHT[1:]) == 1
    assert first(f"acid {A}", f"heat {A}", *RIGHT[1:]) == 1
    assert first(RIGHT[0], f"heat {B}", RIGHT[2]) == 2
    assert first(RIGHT[0], f"acid {C}", *RIGHT[1:]) == 2  # a later substance, wrongly and too early
    assert first(RIGHT[0], RIGHT[0], *RIGHT[1:]) is None  # asked again: nothing but a turn is lost
    assert first(A, B, *RIGHT) == 2  # too few turns are left


def test_a_trajectory_cut_while_recoverable_was_lost_with_its_last_step() -> None:
    steps = played(*RIGHT[:2])
    assert recoverable(PROBLEM, steps)
    assert first_irrecoverable_step(PROBLEM, steps, StopReason.TOKEN_LIMIT) == 2
    with pytest.raises(ValueError, match="at least one step"):
        first_irrecoverable_step(PROBLEM, [])


# problems


def asked(problem: Problem) -> tuple[str, ...]:
    """What a question comes down to: its first substance and its verbs."""
    hops = problem.metadata["hops"]
    return hops[0][0], *(hop[2] for hop in hops)


def test_splits_never_overlap_and_are_the_same_for_every_seed() -> None:
    splits = {
        split: {asked(p) for p in TASK.problems(split, 400)} for split in ("train", "validation", "test")
    }
    assert all(len(questions) == 400 for questions in splits.values())
    assert not splits["train"] & splits["validation"]
    assert not splits["train"] & splits["test"]
    assert not splits["validation"] & splits["test"]
    other = LookupTask(LookupConfig(seed=9))
    train = {asked(p) for p in other.problems("train", 2000)}
    assert not train & splits["test"]


def test_problems_are_deterministic_prefix_stable_and_of_the_wanted_length() -> None:
    task = LookupTask(LookupConfig(min_hops=5, max_hops=7, slack=3))
    problems = task.problems("train", 40)
    assert problems[:7] == LookupTask(task.config).problems("train", 7)
    assert len({problem.id for problem in problems}) == 40
    assert {len(problem.metadata["hops"]) for problem in problems} == {5, 6, 7}
    for problem in problems:
        assert problem.metadata["max_turns"] == len(problem.metadata["hops"]) + 1 + 3
        assert f"Take {problem.metadata['hops'][0][0]},\n1 " in problem.messages[0]["content"]


def test_no_substance_is_the_answer_much_more_often_than_others() -> None:
    answers = Counter(problem.answer for problem in TASK.problems("train", 2000))
    assert set(answers) == set(BASE.substances)
    assert max(answers.values()) < 2.5 * 2000 / len(BASE.substances)


def test_the_longest_questions_can_be_made() -> None:
    task = LookupTask(LookupConfig(min_hops=12, max_hops=12, num_substances=24))
    (problem,) = task.problems("test", 1)
    assert len({hop[0] for hop in problem.metadata["hops"]}) == 12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_hops": 3}, "min_hops"),
        ({"max_hops": 13}, "max_hops"),
        ({"min_hops": 8, "max_hops": 7}, "min_hops 8 is above max_hops 7"),
        ({"num_substances": 23}, "num_substances"),
        ({"reward_wrong": 1.0}, "is not below"),
        ({"hard_verbs": ["eat"]}, "'eat'"),
        ({"hard_verbs": ["bake", "bake"]}, "twice"),
        ({"misspelling": 0.5, "no_treatment": 0.5}, "below 1"),
        ({"hops": 4}, "hops"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        load_task("lookup", options)
    assert "task.options" in str(refused.value)
    with pytest.raises(ValidationError):
        LookupConfig(**options)
