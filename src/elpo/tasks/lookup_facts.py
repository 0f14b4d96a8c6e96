"""The knowledge base of the lookup task: what heat, acid and water make of every substance."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from elpo.tools.search_backend import STOP_WORDS, words_of

Treatment = Literal["heat", "acid", "water"]

TREATMENTS: tuple[Treatment, ...] = ("heat", "acid", "water")
_WORDS = """
amber ash bark bone brass brick bronze chalk clay coal cobalt copper coral cork cotton flint fur glass
gold grain gravel gum hemp horn ink iron ivory jade lead leaf lime linen marble moss mud nickel oak opal
paper pearl peat pitch quartz resin rope rubber ruby rust salt sand silk silver slate soap soot stone
straw sugar tar tin wax wheat wood wool zinc
"""

NAMES = tuple(_WORDS.split())
"""Substances are single common words, so that a small model reads each as one token."""


@dataclass(frozen=True)
class KnowledgeBase:
    """Every substance gives three different ones, none of them itself: one with each treatment."""

    substances: tuple[str, ...]
    facts: Mapping[tuple[str, Treatment], str]

    def documents(self) -> Iterator[Mapping[str, str]]:
        """A document for every fact, by substance. It names the substance treated twice and the other one
        once, so that a search for the fact never finds the reverse one first."""
        for substance in self.substances:
            for treatment in TREATMENTS:
                text = f"{substance} with {treatment} gives {self.facts[substance, treatment]}."
                yield {"id": f"{substance}-{treatment}", "title": substance, "text": text}


def knowledge_base(seed: int, num_substances: int) -> KnowledgeBase:
    """The knowledge base that a seed makes; every treatment is a random permutation of the substances."""
    rng = random.Random(f"knowledge base {seed}")
    substances = tuple(rng.sample(NAMES, num_substances))
    taken: dict[str, set[str]] = {substance: {substance} for substance in substances}
    facts: dict[tuple[str, Treatment], str] = {}
    for treatment in TREATMENTS:
        products = list(substances)
        while any(product in taken[source] for source, product in zip(substances, products, strict=True)):
            rng.shuffle(products)
        for source, product in zip(substances, products, strict=True):
            taken[source].add(product)
            facts[source, treatment] = product
    return KnowledgeBase(substances, facts)


def fact_asked_for(query: str) -> tuple[str, Treatment] | None:
    """The (substance, treatment) that a query asks for, or None where it is no such question.

    The words of the query must be a treatment and one other word, in any order; common words do not matter.

    >>> [fact_asked_for(query) for query in ("heat tin", "What is tin with heat?", "heat or acid tin", "tin")]
    [('tin', 'heat'), ('tin', 'heat'), None, None]
    """
    words = {word for word in words_of(query) if word not in STOP_WORDS}
    found = [treatment for treatment in TREATMENTS if treatment in words]
    if len(words) != 2 or len(found) != 1:
        return None
    (name,) = words - {found[0]}
    return name, found[0]
