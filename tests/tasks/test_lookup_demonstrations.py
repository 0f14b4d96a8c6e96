from __future__ import annotations

import random
from collections import Counter
from itertools import combinations, pairwise
from math import prod
from typing import Any

import pytest

from elpo.tasks.lookup import LookupConfig, LookupTask
from elpo.tasks.lookup_demonstrations import demonstrate, demonstrator_success
from elpo.tasks.lookup_facts import NAMES, TREATMENTS, knowledge_base
from elpo.tasks.lookup_question import CONFUSED_WITH, VERBS
from elpo.types import Problem, StopReason

from .lookup_transcripts import lookup, search_tool, steps_of

DETOURS = LookupConfig(misspelling=0.1, no_treatment=0.1)


def reader(config: LookupConfig, num: int) -> list[tuple[Problem, dict[str, Any]]]:
    task = LookupTask(config)
    tool, problems = search_tool(task), task.problems("train", num)
    return [(p, demonstrate(p, task.base, tool, config, random.Random(i))) for i, p in enumerate(problems)]


def test_format_of_a_demonstration() -> None:
    config = LookupConfig(easy_error=0, hard_error=0, misspelling=0, no_treatment=0, max_hops=4)
    task = LookupTask(config)
    (conversation,) = task.demonstrations(1, seed=0)
    user, *turns, final = conversation["messages"]
    assert [message["role"] for message in turns] == ["assistant", "tool"] * 4
    first, *hops = user["content"].split(".\nWhat")[0].split(",\n")
    substance = first.removeprefix("Take ")
    for hop, (turn, feedback) in zip(hops, zip(turns[::2], turns[1::2], strict=True), strict=True):
        number, verb = hop.split()
        treatment = VERBS[verb]
        call = turn["tool_calls"][0]["function"]
        assert turn["content"] == f"{number} {verb} {treatment} {substance}"
        assert call == {"name": "search", "arguments": {"query": f"{treatment} {substance}"}}
        product = task.base.facts[substance, treatment]
        assert feedback["content"] == f"[1] {substance}: {substance} with {treatment} gives {product}."
        substance = product
    assert final.keys() == {"role", "content"}
    assert final["content"] == f"\\boxed{{{substance}}}"
    assert [tool["function"]["name"] for tool in conversation["tools"]] == ["search"]


def test_feedback_is_what_the_tool_answers() -> None:
    tool = search_tool(LookupTask(DETOURS))
    seen = Counter[str]()
    for problem, conversation in reader(DETOURS, 150):
        for message, feedback in pairwise(conversation["messages"]):
            for call in message.get("tool_calls", []):
                query = call["function"]["arguments"]["query"]
                result = lookup(tool, problem, query).tool_result
                assert result is not None
                assert feedback["content"] == result.output
                seen[query.split()[0]] += 1
    assert min(seen[treatment] for treatment in TREATMENTS) > 100
    assert sum(count for word, count in seen.items() if word in NAMES) > 20
    assert min(seen[misspelt] for misspelt in ("haet", "aicd", "wtaer")) > 5


def test_a_careful_reader_always_succeeds_detours_included() -> None:
    config = DETOURS.model_copy(update={"easy_error": 0.0, "hard_error": 0.0, "max_hops": 12})
    task, num_detours = LookupTask(config), 0
    tool = search_tool(task)
    for problem, conversation in reader(config, 300):
        steps = steps_of(conversation, tool, problem)
        assert len(steps) <= problem.metadata["max_turns"]
        assert task.grade(problem, steps, StopReason.ANSWER).correct
        num_detours += len(steps) - len(problem.metadata["hops"]) - 1
    assert num_detours > 300


@pytest.mark.parametrize("num_hops", [4, 8])
def test_success_rate_of_the_reader_is_the_computed_one(num_hops: int) -> None:
    config = LookupConfig(min_hops=num_hops, max_hops=num_hops)
    task, num = LookupTask(config), 1500
    tool = search_tool(task)
    successes = sum(
        task.grade(problem, steps_of(conversation, tool, problem), StopReason.ANSWER).correct
        for problem, conversation in reader(config, num)
    )
    expected = task.demonstrator_success(num_hops)
    deviation = (expected * (1 - expected) / num) ** 0.5
    assert abs(successes / num - expected) < 4 * deviation


@pytest.mark.parametrize("num_hops", [1, 2, 4, 11, 12])
def test_computed_success_is_the_mean_over_all_sets_of_verbs(num_hops: int) -> None:
    config = LookupConfig()
    sets = list(combinations(VERBS, num_hops))
    mean = sum(prod(1 - config.error_rate(verb) for verb in verbs) for verbs in sets) / len(sets)
    assert demonstrator_success(config, num_hops) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("num_hops", [0, 13])
def test_success_of_an_impossible_length_is_refused(num_hops: int) -> None:
    with pytest.raises(ValueError, match=str(num_hops)):
        demonstrator_success(LookupConfig(), num_hops)


def test_the_reader_confuses_each_verb_at_its_rate_and_always_with_the_same_treatment() -> None:
    config = LookupConfig(hard_verbs=("bake", "sour"), easy_error=0.1, hard_error=0.7)
    taken: dict[str, Counter[str]] = {verb: Counter() for verb in VERBS}
    for _, conversation in reader(config, 1500):
        for message in conversation["messages"]:
            for call in message.get("tool_calls", []):
                _, verb, _, _ = message["content"].split()
                treatment, _, _ = call["function"]["arguments"]["query"].partition(" ")
                if treatment in TREATMENTS:
                    taken[verb][treatment] += 1
    for verb, treatment in VERBS.items():
        counts = taken[verb]
        assert set(counts) == {treatment, CONFUSED_WITH[treatment]}
        rate, num = counts[CONFUSED_WITH[treatment]] / counts.total(), counts.total()
        expected = config.error_rate(verb)
        assert abs(rate - expected) < 4 * (expected * (1 - expected) / num) ** 0.5


def test_demonstrations_are_deterministic_prefix_stable_and_train_only() -> None:
    task = LookupTask()
    twenty = task.demonstrations(20, seed=3)
    assert twenty[:5] == task.demonstrations(5, seed=3)
    assert twenty != task.demonstrations(20, seed=4)
    asked = [c["messages"][0]["content"].split(".\nWhat")[0] for c in task.demonstrations(1500, seed=3)]
    for split in ("validation", "test"):
        held_out = task.problems(split, 500)  # type: ignore[arg-type]
        assert not set(asked) & {p.messages[0]["content"].split(".\nWhat")[0] for p in held_out}
    assert len(set(asked)) == 1500


# the knowledge base


@pytest.mark.parametrize("num_substances", [24, 40, len(NAMES)])
@pytest.mark.parametrize("seed", range(3))
def test_every_substance_gives_three_different_others(seed: int, num_substances: int) -> None:
    base = knowledge_base(seed, num_substances)
    assert len(set(base.substances)) == num_substances
    for substance in base.substances:
        products = {base.facts[substance, treatment] for treatment in TREATMENTS}
        assert len(products) == 3
        assert substance not in products
    for treatment in TREATMENTS:
        assert {base.facts[name, treatment] for name in base.substances} == set(base.substances)
    assert len(list(base.documents())) == 3 * num_substances
    assert base.facts != knowledge_base(seed + 1, num_substances).facts


def test_every_fact_of_the_largest_knowledge_base_can_be_found() -> None:
    task = LookupTask(LookupConfig(num_substances=len(NAMES)))
    tool = search_tool(task)
    (problem,) = task.problems("test", 1)
    for (substance, treatment), product in task.base.facts.items():
        result = lookup(tool, problem, f"{treatment} {substance}").tool_result
        assert result is not None
        assert result.output == f"[1] {substance}: {substance} with {treatment} gives {product}."
