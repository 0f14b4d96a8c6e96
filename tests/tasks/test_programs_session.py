from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elpo.tasks.programs import ProgramsTask, written_program
from elpo.tasks.programs_session import Definition
from elpo.tasks.programs_spec import Line, Spec, draw_spec
from elpo.tasks.tool_turns import MAX_CODE_CHARS
from elpo.types import Problem, Step, ToolCall, ToolResult, ToolStatus

from .ledger_transcripts import step
from .program_transcripts import Session

LINES = (Line("add", "raise by", 5), Line("sub", "lower by", 4), Line("cap", "cap at", 20))
PROBLEM = ProgramsTask().problem(Spec(14, LINES))  # 14, 19, 15, 15
INPUTS = range(-30, 200)


def sources(steps: list[Step], problem: Problem = PROBLEM) -> list[str] | None:
    written = written_program(problem, steps)
    return None if written is None else [definition.source for definition in written]


def recorded(*codes: str, status: ToolStatus = ToolStatus.OK) -> list[Step]:
    return [step(code, ToolCall("python", {"code": code}), ToolResult(status, "")) for code in codes]


# what the session does


def test_a_session_by_hand() -> None:
    session = Session(PROBLEM)
    outputs = [
        session.call(f"print({code})").tool_result.output.strip()  # type: ignore[union-attr]
        for code in (
            "f.look()",
            "f.then(lambda x: x * 5)",
            "f.then(lambda x: x + 5)",
            "f.then(lambda x: x / 1 - 4)",
            "f.then(lambda x: 'x')",
            "f.then(lambda x: x // 0)",
            "f.then(lambda x: max(x - 4, 0))",
            "f.look()",
            "f.then(lambda x: x % 20)",
            "f.then(lambda x: x)",
        )
    ]
    assert outputs == [
        "14",
        "refused: 70, not 19",
        "19",
        "refused: 15.0, not 15",
        "refused: x, not 15",
        "integer division or modulo by zero",
        "15",
        "15",
        "15",
        "refused: no line is left",
    ]
    assert [line(100) for line in session.committed] == [105, 96, 0]


def test_one_line_per_call() -> None:
    session = Session(PROBLEM)
    session.call("f.then(lambda x: x + 5)\nprint(f.then(lambda x: x - 4))")
    assert session.value == 19
    session.call("f.then(lambda x: x + 4)\nf.then(lambda x: x - 4)")
    assert session.value == 15


def test_the_setup_does_not_give_the_lines_away() -> None:
    other = (Line("add", "lift by", 5), Line("gap", "stray from", 4), Line("mod", "wrap at", 30))
    assert (
        ProgramsTask().problem(Spec(14, other)).metadata["python_setup"] == PROBLEM.metadata["python_setup"]
    )


# the replay by syntax is what the executed session commits

ATOMS = st.sampled_from(["x", "x", "x", "0", "1", "4", "5", "15", "19", "20", "x * 2"])


def combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        st.builds("({0[0]} {1} {0[1]})".format, pairs, st.sampled_from("+ - * // %".split())),  # noqa: SIM905
        st.builds("{1}({0[0]}, {0[1]})".format, pairs, st.sampled_from(["max", "min"])),
        st.builds("abs({})".format, inner),
        st.builds("-{}".format, inner),
        st.builds("({0[0]} if {0[1]} < 10 else 15)".format, pairs),
        st.builds("({0[0]} == {0[1]})".format, pairs),
        st.builds("min({})".format, inner),
    )


RIGHT = ["x + 5", "x - 4", "max(x - 4, 0)", "abs(x - 4)", "min(x, 20)", "x % 20", "19", "15", "x"]
BODIES = st.recursive(ATOMS, combined, max_leaves=5) | st.sampled_from(RIGHT)
THEN = st.builds("f.then(lambda x: {})".format, BODIES)
STATEMENTS = THEN | st.builds("print({})".format, THEN) | st.sampled_from(["f.look()", "print(f.look())"])
ASIDES = st.sampled_from(
    ["1 + 1", "y = 14 + 5", "y", "print(y, 5)", "z = max(3, 4)", "# x", "", "1 / 0", "x = 3"]
)
BROKEN = st.sampled_from(
    ["f.then(lambda x: x + 5", "return f.then(lambda x: x)", "f.then(lambda x: x) = 3", "f.then(lambda x:)",
     "  f.then(lambda x: x + 5)", "f.then(lambda x: 05)", "f.then(lambda x, x: x + 5)", "f.look()\0", "break"]
)  # fmt: skip
CALLS = st.one_of(
    st.lists(STATEMENTS, min_size=1, max_size=3).map("\n".join),
    st.lists(STATEMENTS, min_size=2, max_size=3).map("; ".join),
    st.lists(ASIDES, min_size=1, max_size=3).map("\n".join),
    BROKEN,
)


def check_replay(problem: Problem, codes: list[str]) -> None:
    session = Session(problem)
    steps = [session.call(code) for code in codes]
    written = written_program(problem, steps)
    assert written is not None
    assert len(written) == len(session.committed)
    for definition, function in zip(written, session.committed, strict=True):
        for x in INPUTS:
            try:
                right = function(x)
            except (ArithmeticError, TypeError) as error:
                with pytest.raises(type(error)):
                    definition.compute(x)
                assert not definition.passes([(x, 0)])
                continue
            assert (definition.compute(x), type(definition.compute(x))) == (right, type(right))
            assert definition.passes([(x, right)]) == (type(right) is int)


@settings(max_examples=200)
@given(st.lists(CALLS, max_size=8))
def test_replay_equals_execution(codes: list[str]) -> None:
    check_replay(PROBLEM, codes)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.data())
def test_replay_equals_execution_on_drawn_specifications(seed: int, data: st.DataObject) -> None:
    from elpo.tasks.programs_demonstrations import definition
    from elpo.tasks.programs_spec import CONFUSED_WITH

    spec = draw_spec(random.Random(seed), 4, 6)
    choices = [definition(op, line.amount) for line in spec.lines for op in (line.op, CONFUSED_WITH[line.op])]
    codes = data.draw(st.lists(st.sampled_from(choices) | CALLS, max_size=12))
    check_replay(ProgramsTask().problem(spec), [code for line in spec.lines for code in codes[:3]] + codes)


@pytest.mark.parametrize(
    "code",
    [
        "g = f",
        "f.then",
        "f.then(abs)",
        "def g(x): return x + 5\nf.then(g)",
        "n = 5\nf.then(lambda x: x + n)",
        "f.then(lambda x: x + 5, )\nf._value = 3",
        "f._expected = ()",
        "f._call = None",
        "for n in range(30): f.then(lambda x: n)",
        "Program.then = None",
        "import sys",
        "f.then(lambda x: x ** 5)",
        "f.then(lambda x: x + 5.0)",
        "f.then(lambda x: [x][0])",
        "f.then(lambda x: x.real)",
        "f.then(lambda x: (y := x) + 5)",
        "f.then(lambda x: x and 5)",
        "f.then(lambda x, y=5: x + y)",
        "f.then(lambda *x: x[0])",
        "f.then(lambda max: max(max, 5))",
        "f.then(lambda x: max([x, 5]))",
        "f.then(lambda x: max(x, 5, key=abs))",
        "f.then(lambda x: x + 99999999)",
        "f.then(lambda x: x" + " + 1" * 40 + ")",
        "f.then(lambda x: x if True else f)",
        "f.look(1)",
        "f.look().real",
        "max = min",
        "exec('f._value = 3')",
        "print(f)",
        "f.then(line=lambda x: x + 5)",
        "f.then(*[lambda x: x + 5])",
        "print(f.look(), end='')",
        "x" * (MAX_CODE_CHARS + 1),
    ],
)
def test_what_cannot_be_followed_spoils_the_program(code: str) -> None:
    assert sources(recorded(code)) is None
    assert sources(recorded("f.then(lambda x: x + 5)", code)) is None


def test_calls_that_never_ran_commit_nothing() -> None:
    code = "f.then(lambda x: x + 5)"
    for status in (ToolStatus.TIMEOUT, ToolStatus.RESOURCE_LIMIT, ToolStatus.MALFORMED_CALL):
        assert sources(recorded(code, status=status)) == []
        assert sources(recorded("g = f", status=status)) == []
    assert sources(recorded(code)) == ["lambda x: x + 5"]
    assert sources([step(code)]) == []
    assert sources([step(code, ToolCall("search", {"code": code}), ToolResult(ToolStatus.OK, ""))]) == []
    assert sources([step(code, ToolCall("python", {"code": 3}), ToolResult(ToolStatus.OK, ""))]) == []


def test_a_call_that_ran_but_does_not_parse_is_not_trusted() -> None:
    broken = "f.then(lambda x: x + 5"
    assert sources(recorded(broken)) is None
    assert sources(recorded(broken, status=ToolStatus.PROGRAM_ERROR)) == []


def test_passing_is_exact() -> None:
    assert Definition("", lambda x: x + 1).passes([(1, 2), (2, 3)])
    assert not Definition("", lambda x: x + 1).passes([(1, 2), (2, 4)])
    assert not Definition("", lambda x: x == 1).passes([(1, 1)])
    assert not Definition("", lambda x: 1 // x).passes([(0, 0)])
