"""The lookup task: follow a chain of facts with the search tool, with an exact oracle for the fatal step.

A question leads from one substance to another over several hops, and only the search tool knows the facts.
The first fact looked up of a substance is the one that counts, so a hop read wrongly stands for good; a
fruitless query costs a turn. The answer is the last substance. So every failure has one first irrecoverable
step, and it is computed here rather than estimated.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import count, islice
from typing import Annotated, Any

from pydantic import Field, model_validator

from elpo.graders.boxed import stated_answer
from elpo.interfaces import Split
from elpo.schema import Count
from elpo.tasks.lookup_demonstrations import demonstrate, demonstrator_success
from elpo.tasks.lookup_facts import NAMES, Treatment, fact_asked_for, knowledge_base
from elpo.tasks.lookup_question import MAX_HOPS, VERBS, Question, questions
from elpo.tasks.synthetic import Rate, SyntheticConfig, first_lost_step
from elpo.tools.search import SearchTool
from elpo.tools.search_backend import passage_from
from elpo.tools.search_index import FullTextIndex
from elpo.types import Outcome, Problem, Step, StopReason, ToolCall, ToolStatus

INSTRUCTION = (
    "Search a fact a call: heat, acid or water and the substance. Of each substance only the first fact "
    "searched counts. Then answer \\boxed{substance}."
)

NumHops = Annotated[int, Field(ge=4, le=MAX_HOPS, strict=True)]
NumSubstances = Annotated[int, Field(ge=24, le=len(NAMES), strict=True)]


class LookupConfig(SyntheticConfig):
    """Options of the task: its facts and questions, its rewards, and how sloppy the demonstrations are.

    `easy_error` and `hard_error` are the chances that the reader takes a verb for the wrong treatment;
    `hard_verbs` are those of the second kind. `misspelling` and `no_treatment` are its chances of a harmless
    detour before a lookup.
    """

    detours = ("misspelling", "no_treatment")

    num_substances: NumSubstances = 40
    min_hops: NumHops = 4
    max_hops: NumHops = 8
    slack: Count = 2  # turns beyond one per hop and one for the answer
    easy_error: Rate = 0.05
    hard_verbs: tuple[str, ...] = ("toast", "pickle", "corrode", "steep")
    misspelling: Rate = 0.03
    no_treatment: Rate = 0.03

    @model_validator(mode="after")
    def _consistent(self) -> LookupConfig:
        self.check("hops", VERBS)
        return self


class LookupTask:
    """Procedural lookup problems (`Task`), their documents, grader, oracle and demonstrations."""

    Options = LookupConfig
    name = "lookup"
    tool_names: Sequence[str] = ("search",)

    def __init__(self, config: LookupConfig | None = None) -> None:
        self.config = config or LookupConfig()
        self.base = knowledge_base(self.config.seed, self.config.num_substances)

    def documents(self) -> Iterator[Mapping[str, str]]:
        """What the search tool searches: a document for every fact."""
        return self.base.documents()

    def problems(self, split: Split, num: int) -> list[Problem]:
        """The first `num` problems of a split. A question's content decides its split, for every seed."""
        return [self.problem(question) for question in islice(self._questions("questions", split), num)]

    def problem(self, question: Question) -> Problem:
        """`question` as a problem; `hops` is the truth: (substance, treatment, verb) of each."""
        columns = (question.substances[:-1], question.treatments, question.verbs)
        return Problem(
            id=f"lookup-{self.config.seed}-{question.digest[:16]}",
            messages=({"role": "user", "content": f"{question.text}\n{INSTRUCTION}"},),
            answer=question.substances[-1],
            metadata={
                "hops": list(zip(*columns, strict=True)),
                "search_top_k": 1,
                "max_turns": len(question.verbs) + 1 + self.config.slack,
            },
        )

    def grade(self, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
        """Correct where the policy stopped with the right substance and every hop rightly looked up."""
        finished = stop is StopReason.ANSWER and bool(steps) and not steps[-1].is_tool_step
        correct = finished and recoverable(problem, steps)
        answer = _answer(steps[-1]) if finished else None
        return Outcome(self.config.reward(correct), correct, stop, answer)

    def gold_turns(self, problem: Problem) -> Sequence[ToolCall | str]:
        """Every fact looked up in order, and the last substance: a right solution."""
        queries = [f"{hop[1]} {hop[0]}" for hop in problem.metadata["hops"]]
        calls = [ToolCall("search", {"query": query}) for query in queries]
        return [*calls, f"\\boxed{{{problem.answer}}}"]

    def demonstrations(self, num: int, seed: int) -> list[dict[str, Any]]:
        """`num` conversations of the sloppy reader on training problems, for a cold start."""
        sequence = self._questions(f"demonstrations {seed}", "train")
        return [
            demonstrate(
                self.problem(question), self.base, self._tool, self.config, random.Random(f"{seed}:{index}")
            )
            for index, question in enumerate(islice(sequence, num))
        ]

    def demonstrator_success(self, num_hops: int) -> float:
        """The probability that a demonstration of a question with `num_hops` hops is right."""
        return demonstrator_success(self.config, num_hops)

    def _questions(self, key: str, split: Split) -> Iterator[Question]:
        config = self.config
        key = f"{config.seed} {key}"
        return questions(self.base, key, split, config.min_hops, config.max_hops)

    @cached_property
    def _tool(self) -> SearchTool:
        return SearchTool(FullTextIndex.of(map(passage_from, self.documents(), count(1))))


def facts_looked_up(steps: Sequence[Step]) -> dict[str, Treatment]:
    """The fact that counts of every substance asked for: the first. Reads the calls only."""
    facts: dict[str, Treatment] = {}
    for step in steps:
        call, result = step.tool_call, step.tool_result
        if call is None or result is None or result.status is not ToolStatus.OK or call.name != "search":
            continue
        query = call.arguments.get("query")
        asked = fact_asked_for(query) if isinstance(query, str) else None
        if asked is not None:
            facts.setdefault(*asked)
    return facts


def recoverable(problem: Problem, steps: Sequence[Step]) -> bool:
    """True where the best possible policy could still succeed after `steps`.

    That is: of no substance on the way another fact was looked up first, and the turns left suffice for the
    hops left and the answer; after a final answer, that it is right and no hop is left. Exact as long as the
    rollout's own turn limit is not below `metadata["max_turns"]`.
    """
    hops, facts = problem.metadata["hops"], facts_looked_up(steps)
    found = [facts.get(hop[0]) for hop in hops]
    if any(treatment not in (None, hop[1]) for treatment, hop in zip(found, hops, strict=True)):
        return False
    hops_left, turns_left = found.count(None), int(problem.metadata["max_turns"]) - len(steps)
    if steps and not steps[-1].is_tool_step:
        return hops_left == 0 and turns_left >= 0 and _answer(steps[-1]) == problem.answer
    return turns_left >= hops_left + 1


first_irrecoverable_step = partial(first_lost_step, recoverable)
"""Of a problem, the steps of a trajectory and why it stopped: see `elpo.tasks.synthetic.first_lost_step`."""


def _answer(step: Step) -> str | None:
    """The substance that a final turn names, without regard to case."""
    answer = stated_answer(step.text)
    return None if answer is None else answer.casefold()
