from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elpo.tasks.ledger import LedgerTask
from elpo.tasks.ledger_book import Entry, written_entries
from elpo.tasks.ledger_story import Line, Story, draw_story
from elpo.tasks.tool_turns import MAX_CODE_CHARS
from elpo.types import Problem, Step, ToolCall, ToolResult, ToolStatus

from .ledger_transcripts import Session, step

LINES = (Line("add", "finds", 5), Line("sub", "loses", 3), Line("mul", "scales by", 2))
PROBLEM = LedgerTask().problem(Story("Ann", "shells", 14, LINES))


def written(steps: list[Step], problem: Problem = PROBLEM) -> list[tuple[str, int]] | None:
    entries = written_entries([amount for _, _, amount in problem.metadata["lines"]], steps)
    return None if entries is None else [(entry.op, entry.amount) for entry in entries]


def recorded(*codes: str, status: ToolStatus = ToolStatus.OK) -> list[Step]:
    return [step(code, ToolCall("python", {"code": code}), ToolResult(status, "")) for code in codes]


# what the book does


def test_the_book_returns_the_new_count_of_each_entry() -> None:
    session = Session(PROBLEM)
    outputs = [
        session.call(f"print({code})").tool_result.output  # type: ignore[union-attr]
        for code in ("book.look()", "book.add(5)", "book.sub(3)", "book.mul(2)", "book.look()")
    ]
    assert outputs == ["14\n", "19\n", "16\n", "32\n", "32\n"]


def test_the_book_takes_a_wrong_operation_and_refuses_a_wrong_amount() -> None:
    session = Session(PROBLEM)
    session.call("book.add(6)")
    assert session.count == 14
    session.call("book.mul(5)")
    assert session.count == 70


def test_the_book_takes_one_entry_per_call() -> None:
    session = Session(PROBLEM)
    session.call("book.add(5)\nbook.sub(3)\nbook.sub(3)")
    assert session.count == 19
    session.call("book.sub(3)")
    assert session.count == 16


def test_the_book_is_full_after_the_last_line() -> None:
    session = Session(PROBLEM)
    for code in ("book.add(5)", "book.sub(3)", "book.mul(2)", "book.add(5)", "book.mul(2)"):
        session.call(code)
    assert session.count == 32


def test_the_setup_does_not_give_the_operations_away() -> None:
    other = Story("Ann", "shells", 14, tuple(Line("sub", "loses", line.amount) for line in LINES))
    same = LedgerTask().problem(other).metadata["python_setup"]
    assert same == PROBLEM.metadata["python_setup"]
    assert len(same) < 1500


# the replay by syntax is what the executed book contains

METHODS = st.sampled_from(["add", "sub", "mul", "look", "undo", "count"])
ARGUMENTS = st.sampled_from(
    ["2", "3", "5", "+5", "-5", "5.0", "True", "'5'", "0x5", "[5]", "", "5, 3", "n=5", "amount=5", "None"]
)
BOOK_STATEMENTS = st.builds("book.{}({})".format, METHODS, ARGUMENTS)
STATEMENTS = st.one_of(
    BOOK_STATEMENTS,
    st.builds("print({})".format, BOOK_STATEMENTS),
    st.builds("book.{}({})".format, st.sampled_from(["add", "sub", "mul"]), st.sampled_from(["5", "3", "2"])),
)
ASIDES = st.sampled_from(
    [
        "1 + 1",
        "x = 14 + 5",
        "x",
        "print(x, 5)",
        "y = max(3, x)",
        "# add 5",
        "",
        "1 / 0",
        "f'{x:>5}'",
        "x = y = 3",
    ]
)
BROKEN = st.sampled_from(
    ["book.add(5", "return book.add(5)", "await book.add(5)", "book.add(5) = 3", "  book.add(5)",
     "book.add 5", "book.add(5)\n  book.sub(3)", "book.add(5)\0", "book.add(05)",
     "book.add(n=1, n=2)", "break"]
)  # fmt: skip
CALLS = st.one_of(
    st.lists(STATEMENTS, min_size=1, max_size=4).map("\n".join),
    st.lists(STATEMENTS, min_size=2, max_size=3).map("; ".join),
    st.lists(ASIDES, min_size=1, max_size=3).map("\n".join),
    BROKEN,
)


@settings(max_examples=600)
@given(st.lists(CALLS, max_size=8))
def test_replay_equals_execution(codes: list[str]) -> None:
    session = Session(PROBLEM, symbolic=True)
    steps = [session.call(code) for code in codes]
    assert written(steps) == list(session.count.written)


@given(st.integers(0, 10_000), st.data())
def test_replay_equals_execution_on_drawn_stories(seed: int, data: st.DataObject) -> None:
    story = draw_story(random.Random(seed), 4, 8)
    problem = LedgerTask().problem(story)
    session = Session(problem, symbolic=True)
    steps = []
    for line in story.lines:
        op = data.draw(st.sampled_from([line.op, line.op, "add", "sub", "mul"]))
        amount = data.draw(st.sampled_from([line.amount, line.amount, 4]))
        steps.append(session.call(f"book.{op}({amount})"))
    assert written(steps, problem) == list(session.count.written)


@given(st.text(max_size=40) | st.text("bok.ad()5=\n _x[]:", max_size=30))
def test_replay_never_raises(code: str) -> None:
    for status in ToolStatus:
        written(recorded("book.add(5)", code, status=status))


# what the replay refuses to follow

SPOILING = [
    "book._count = 32",
    "book._amounts = ()",
    "b = book",
    "b = book.add\nb(5)",
    "for n in [5, 3]: book.add(n)",
    "while True: break",
    "book.add(*[5])",
    "book.add(**{})",
    "book.add(2 + 3)",
    "n = 5\nbook.add(n)",
    "x = book.add(5)",
    "book",
    "print(book)",
    "print(book.add(5), book.sub(3))",
    "book._enter(5, max)",
    "book.__class__(1, (2,))",
    "book.add.__func__",
    "book.add(book.look())",
    "book.add(5) if 1 else 0",
    "(book).add",
    "del book",
    "import __main__",
    "import sys",
    "globals()['bo' + 'ok'].add(5)",
    "exec('book.add(5)')",
    "eval('book.add(5)')",
    "def f(): book.add(5)",
    "lambda: book",
    "class Book: pass",
    "Book.add = Book.sub",
    "x = Book",
    "print = 3",
    "int = float",
    "book = 3",
    "[book.add(5) for _ in '1']",
    "(b := book)",
    "getattr(book, 'add')(5)",
    "with open('x') as f: pass",
    "vars()",
]


@pytest.mark.parametrize("code", SPOILING)
def test_any_other_touch_spoils_the_book(code: str) -> None:
    assert written(recorded(code)) is None
    assert written(recorded("book.add(5)", code, "book.sub(3)")) is None


def test_monkeypatching_is_not_rescued_by_right_entries() -> None:
    session = Session(PROBLEM)
    steps = [session.call("Book.sub = Book.add"), session.call("book.sub(5)")]
    assert session.count == 19
    assert written(steps) is None


@pytest.mark.parametrize("status", [ToolStatus.TIMEOUT, ToolStatus.RESOURCE_LIMIT, ToolStatus.MALFORMED_CALL])
def test_a_call_that_was_killed_or_never_ran_wrote_nothing(status: ToolStatus) -> None:
    assert written(recorded("book.add(5)", "b = book", status=status)) == []


def test_calls_of_other_tools_and_shapes_write_nothing() -> None:
    ok = ToolResult(ToolStatus.OK, "")
    calls = [
        ToolCall("search", {"code": "book.add(5)"}),
        ToolCall("python", {"source": "book.add(5)"}),
        ToolCall("python", {"code": 5}),
    ]
    assert written([*(step("", call, ok) for call in calls), step("no call"), step("bad", None, ok)]) == []


def test_code_that_ran_but_does_not_parse_is_not_the_code_recorded() -> None:
    assert written(recorded("```python\nbook.add(5)\n```", status=ToolStatus.OK)) is None
    assert written(recorded("```python\nbook.add(5)\n```", status=ToolStatus.PROGRAM_ERROR)) == []


def test_very_long_and_deeply_nested_calls_are_data() -> None:
    assert written(recorded("1" + " + 1" * MAX_CODE_CHARS)) is None
    deep = "(" * 3000 + ")" * 3000
    assert written(recorded(deep, status=ToolStatus.PROGRAM_ERROR)) == []


def test_entries_are_values() -> None:
    assert written_entries([5], recorded("book.add(5)")) == (Entry("add", 5),)
