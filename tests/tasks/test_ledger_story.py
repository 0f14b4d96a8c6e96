from __future__ import annotations

import random
from collections import Counter
from itertools import combinations, islice
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elpo.tasks.ledger_story import MAX_COUNT, OPERATIONS, VERBS, Line, Story, apply, draw_story, stories


@given(st.integers(0, 2**32), st.integers(4, 12))
def test_a_story_stays_in_range_and_uses_a_verb_once(seed: int, num_lines: int) -> None:
    story = draw_story(random.Random(seed), num_lines, num_lines)
    assert len(story.lines) == len({line.verb for line in story.lines}) == num_lines
    assert all(1 <= count <= MAX_COUNT for count in (story.start, *story.counts))
    for line in story.lines:
        assert line.op == VERBS[line.verb]
        assert line.amount in (range(2, 4) if line.op == "mul" else range(2, 10))


@given(st.integers(0, 2**32))
def test_no_wrong_operation_gives_a_right_count(seed: int) -> None:
    story = draw_story(random.Random(seed), 4, 12)
    for before, line, after in zip((story.start, *story.counts), story.lines, story.counts, strict=False):
        others = [op for op in OPERATIONS if op != line.op]
        assert after not in [apply(op, before, line.amount) for op in others]


def test_counts_and_text_of_a_story_by_hand() -> None:
    lines = (Line("add", "finds", 5), Line("sub", "loses", 3), Line("mul", "scales by", 2))
    story = Story("Ann", "shells", 14, lines)
    assert story.counts == (19, 16, 32)
    assert story.text == (
        "Ann has 14 shells and\nfinds 5,\nloses 3,\nscales by 2.\nHow many shells are there now?"
    )


def test_every_operation_has_four_verbs() -> None:
    assert Counter(VERBS.values()) == dict.fromkeys(OPERATIONS, 4)


def test_sets_of_verbs_are_uniform_whatever_fits() -> None:
    """Rejection must not favour some verbs: the closed form of the success rate rests on it."""
    num = 12_000
    drawn = (draw_story(random.Random(f"u{i}"), 4, 4) for i in range(num))
    pairs = Counter(pair for story in drawn for pair in combinations(sorted(x.verb for x in story.lines), 2))
    expected = num * comb(10, 2) / comb(12, 4)
    assert len(pairs) == comb(12, 2)
    chi2 = sum((n - expected) ** 2 / expected for n in pairs.values())
    assert chi2 < 110  # 66 cells, 63 measured; drawing the verbs again after a rejection gives 237


def test_splits_share_no_story() -> None:
    train, validation, test = (
        {story.digest for story in islice(stories("0", split, 4, 8), 3000)}
        for split in ("train", "validation", "test")
    )
    assert len(train) == len(validation) == len(test) == 3000
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_a_story_has_one_split_under_every_key() -> None:
    train = {story.digest for key in "abc" for story in islice(stories(key, "train", 4, 4), 2000)}
    test = {story.digest for key in "abc" for story in islice(stories(key, "test", 4, 4), 500)}
    assert not train & test
    assert len(train) > 5900
    assert len(test) > 1490


def test_retelling_a_story_does_not_change_its_split() -> None:
    story = draw_story(random.Random(0), 6, 6)
    retold = Story("Zoe", "kites", story.start, story.lines)
    assert retold.digest == story.digest
    changed = Story(story.name, story.item, story.start + 1, story.lines)
    assert changed.digest != story.digest


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_sequence_begins_the_same_however_far_it_is_read(split: str) -> None:
    first = list(islice(stories("7", split, 4, 8), 10))  # type: ignore[arg-type]
    assert first == list(islice(stories("7", split, 4, 8), 100))[:10]  # type: ignore[arg-type]
    assert first != list(islice(stories("8", split, 4, 8), 10))  # type: ignore[arg-type]
