"""No change may make the work grow unseen: counts of tokens, engine steps and forwarded tokens."""

import json

import counts  # of the folder benchmarks


def test_no_count_of_work_has_grown() -> None:
    now, before = counts.measure(), json.loads(counts.RECORD.read_text())
    assert now.keys() == before.keys()
    worse = counts.grown(now, before)
    assert not worse, f"if this is meant: python benchmarks/counts.py, and commit the record; {worse}"
    assert now["ELPO prefix tokens fed again"] == now["GRPO prefix tokens fed again"] == 0
    assert now["ELPO forwarded a unique token, packed"] == 1


def test_a_count_that_grows_or_vanishes_is_found() -> None:
    assert counts.grown({"a": 2, "b": 1}, {"a": 1, "b": 1, "c": 3}) == ["a: 1 -> 2", "c: 3 -> None"]
