"""Questions of the lookup task: from one substance, step by step, to another; which is it?"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from elpo.interfaces import Split
from elpo.tasks.lookup_facts import KnowledgeBase, Treatment
from elpo.tasks.synthetic import digest_of, without_repetition

VERBS: dict[str, Treatment] = {
    "roast": "heat",
    "bake": "heat",
    "scorch": "heat",
    "toast": "heat",
    "etch": "acid",
    "pickle": "acid",
    "sour": "acid",
    "corrode": "acid",
    "rinse": "water",
    "soak": "water",
    "wash": "water",
    "steep": "water",
}
"""The treatment behind each verb. A question uses a verb at most once, so a verb names its hop."""

MAX_HOPS = len(VERBS)

CONFUSED_WITH: dict[Treatment, Treatment] = {"heat": "acid", "acid": "water", "water": "heat"}
"""The treatment that a confused reader takes instead."""


@dataclass(frozen=True)
class Question:
    """A chain of hops over a knowledge base. `substances` are those met on the way, all different: the first
    is given, the last is asked for."""

    verbs: tuple[str, ...]
    substances: tuple[str, ...]  # one more than verbs

    @property
    def text(self) -> str:
        """The question as the policy reads it, a line for each hop."""
        hops = ",\n".join(f"{hop} {verb}" for hop, verb in enumerate(self.verbs, 1))
        return f"Take {self.substances[0]},\n{hops}.\nWhat is it then?"

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        """What has to be looked up at each hop."""
        return tuple(VERBS[verb] for verb in self.verbs)

    @property
    def digest(self) -> str:
        """A hash of what is asked."""
        return digest_of((self.substances[0], self.verbs))


def follow(base: KnowledgeBase, start: str, treatments: Sequence[Treatment]) -> tuple[str, ...]:
    """The substances met from `start` on, itself included."""
    substances = [start]
    for treatment in treatments:
        substances.append(base.facts[substances[-1], treatment])
    return tuple(substances)


def draw_question(base: KnowledgeBase, rng: random.Random, min_hops: int, max_hops: int) -> Question:
    """A random question.

    The set of verbs is uniform among the sets of its size (start and order are drawn again until the
    substances differ, the verbs are not), so that success rates over questions have a closed form.
    """
    num_hops = rng.randint(min_hops, max_hops)
    verbs = rng.sample(sorted(VERBS), num_hops)
    while True:
        rng.shuffle(verbs)
        treatments = tuple(VERBS[verb] for verb in verbs)
        substances = follow(base, rng.choice(base.substances), treatments)
        if len(set(substances)) == len(substances):
            return Question(tuple(verbs), substances)


def questions(
    base: KnowledgeBase, key: str, split: Split, min_hops: int, max_hops: int
) -> Iterator[Question]:
    """The endless, repetition-free sequence of a split's questions that `key` seeds."""
    return without_repetition(lambda rng: draw_question(base, rng, min_hops, max_hops), key, split)
