"""What `elpo localize` reads and judges with: trajectories, graders, tools of a user's own."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from elpo.debugger.grading import GraderChoice
from elpo.debugger.trajectory import Failed, from_messages, read_failed, read_problem
from elpo.evaluation.trajectories import trajectory_records
from elpo.interfaces import InfrastructureFault
from elpo.rollout.messages import calls_of, messages_of, recorded_outputs
from elpo.tools.functions import FunctionTool, load_function_tool
from elpo.tree import ROOT, RolloutTree
from elpo.tree_json import tree_to_json
from elpo.types import MessageStep, Outcome, Problem, Step, StopReason, ToolCall, ToolResult, ToolStatus

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "b"}]},
    {"role": "tool", "tool_call_id": "a", "content": "one"},
    {"role": "tool", "tool_call_id": "b", "content": "two"},
    {"role": "assistant", "content": [{"type": "text", "text": "because"}]},
    {"role": "user", "content": "no"},
    {"role": "assistant", "content": "\\boxed{4}"},
]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content) + "\n")
    return path


def test_openai_messages(tmp_path):
    for content in (CHAT, {"messages": CHAT}, {"messages": CHAT, "problem": {"answer": "5"}}):
        failed = read_failed(write(tmp_path / "chat.json", content))
        assert [m["role"] for m in failed.problem.messages] == ["system", "user"]
        assert (len(failed.steps), failed.stop) == (3, StopReason.ANSWER)
        first, second, last = failed.steps
        assert calls_of(first) == [ToolCall("f", {"x": 1})] * 2 and recorded_outputs(first) == ["one", "two"]
        assert first.tool_result.output == "one"
        assert second.text == "because" and messages_of(second)[1] == {"role": "user", "content": "no"}
        assert last.text == "\\boxed{4}"
        assert [m for step in failed.steps for m in messages_of(step)][1:3] == CHAT[3:5]
    assert failed.problem.answer == "5"
    cut = from_messages(CHAT[:5])
    assert cut.stop is StopReason.TURN_LIMIT
    lines = tmp_path / "chat.jsonl"
    lines.write_text("".join(json.dumps(chat) + "\n" for chat in (CHAT[:5], CHAT)))
    assert len(read_failed(lines, line=1).steps) == 3


def sampled(text, call=None, output=None):
    arrays = (np.array([5, 6]), np.array([True, False]), np.zeros(2), np.array([0.5, 0.0]))
    return Step(*arrays, text, call, None if output is None else ToolResult(ToolStatus.OK, output))


def small_tree():
    tree = RolloutTree(Problem("p1", ({"role": "user", "content": "q"},), "3", {"k": 1}), np.array([1]))
    made = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    tree.add(ROOT, [sampled("3")], Outcome(1.0, True))
    tree.add(ROOT, [sampled("5")], Outcome(-1.0, False, answer="5"))
    step = sampled(f"hm\n{made}", ToolCall("f", {"x": 1}), "out")
    tree.add(ROOT, [step, sampled("4")], Outcome(-1.0, False, answer="4"))
    return tree


def test_a_rollout_tree(tmp_path):
    file = write(tmp_path / "tree.jsonl", tree_to_json(small_tree()))
    failed = read_failed(file)
    assert [step.text.splitlines()[0] for step in failed.steps] == ["hm", "4"]  # the first that has steps
    assert failed.steps[0].entropies[0] == 0.5
    assert (failed.problem.id, failed.problem.metadata) == ("p1", {"k": 1})
    said, answered = messages_of(failed.steps[0])
    assert said["content"] == "hm" and json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"x": 1}
    assert answered["content"] == "out"
    assert [step.text for step in read_failed(file, leaf=1).steps] == ["5"]
    with pytest.raises(ValueError, match="node 0 is not a failed leaf of this tree; those are: 1, 3"):
        read_failed(file, leaf=0)


def test_a_record_of_an_evaluation(tmp_path):
    tree = small_tree()
    record = trajectory_records(tree, 3)[2]
    file = write(tmp_path / "000000.jsonl", record)
    failed = read_failed(file, problem=tree.problem)
    whole = Failed(tree.problem, tuple(tree.nodes[n].step for n in tree.path(3)), StopReason.ANSWER)
    assert [messages_of(step) for step in failed.steps] == [tuple(messages_of(step)) for step in whole.steps]
    assert isinstance(failed.steps[0], MessageStep) and failed.digest == whole.digest
    with pytest.raises(ValueError, match="it is about problem 'p1'; give its --task, or the --problem"):
        read_failed(file)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("nonsense", "cannot be read"),
        ("[]", "no assistant message"),
        ('[{"role": "assistant", "content": "x"}]', "no message stands before"),
        ('{"steps": 3}', "holds no trajectory"),
        ('{"nodes": []}', "not a rollout tree of format"),
        ('{"a": 1}', "holds no trajectory"),
        ('[{"role": "user"}, {"role": "assistant", "tool_calls": [{}]}]', "holds no trajectory"),
        ("7", "holds no trajectory"),
    ],
)
def test_what_is_no_trajectory(tmp_path, content, told):
    file = tmp_path / "t.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=told):
        read_failed(file)
    with pytest.raises(ValueError, match=r"use --line 0 to 0"):
        read_failed(write(tmp_path / "t.jsonl", CHAT), line=3)


def test_a_problem(tmp_path):
    problem = read_problem(write(tmp_path / "q.json", {"answer": 7, "metadata": {"python_setup": "x = 1"}}))
    assert (problem.id, problem.answer, problem.metadata) == ("q", "7", {"python_setup": "x = 1"})
    failed = from_messages(CHAT, problem)
    assert failed.problem.messages == tuple(CHAT[:2]) and failed.problem.answer == "7"
    with pytest.raises(ValueError, match="write an object with id"):
        read_problem(write(tmp_path / "q.json", {"anser": 7}))


def verdicts(kind, value, *texts, stop=StopReason.ANSWER, timeout=60.0):
    found = []
    with GraderChoice(kind, str(value), timeout).open() as judge:
        for text in texts:
            steps = [MessageStep.of([{"role": "assistant", "content": text}], text=text)]
            found.append(judge(Problem("p", (), "3"), steps, stop).correct)
    return found


def test_an_answer():
    texts = ["\\boxed{0.5}", "The answer is 1/2.", "1/2", "\\boxed{2}", "so 1/2, I think", ""]
    assert verdicts("answer", "1/2", *texts) == [True, True, True, False, False, False]
    assert verdicts("answer", "Paris", "paris", "Answer: Paris") == [True, True]
    assert verdicts("answer", "1/2", "1/2", stop=StopReason.TURN_LIMIT) == [False]
    with pytest.raises(ValueError, match="empty"):
        verdicts("answer", "")


def test_a_pattern_that_never_ends_is_cut_off():
    assert verdicts("regex", r"^total: \d+$", "x\ntotal: 12\ny", "total: x", "in total: 1") == [
        True,
        False,
        False,
    ]
    with pytest.raises(ValueError, match="is no regular expression"):
        verdicts("regex", "(")


@pytest.mark.slow
def test_a_pattern_that_explodes():
    assert verdicts("regex", r"(a+)+$", "a" * 40 + "b", "aaa") == [False, True]


def test_unit_tests_in_the_sandbox(tmp_path):
    asserts = tmp_path / "tests.py"
    asserts.write_text("assert double(2) == 4\nassert double(-1) == -2\n")
    right, wrong = (f"```python\ndef double(x): return {body}\n```" for body in ("2 * x", "x * x"))
    assert verdicts("tests", asserts, right, wrong, "no code") == [True, False, False]
    program = write(tmp_path / "io.json", {"inputs": ["3\n"], "outputs": ["6\n"]})
    assert verdicts("tests", program, "```python\nprint(2 * int(input()))\n```") == [True]
    calls = write(tmp_path / "calls.json", {"entry_point": "double", "inputs": [[3]], "outputs": [6]})
    assert verdicts("tests", calls, right, wrong) == [True, False]
    for content in ({}, {"inputs": [], "outputs": [1]}):
        with pytest.raises(ValueError, match="holds no tests"):
            verdicts("tests", write(tmp_path / "bad.json", content))
    with pytest.raises(ValueError, match="cannot be read"):
        verdicts("tests", tmp_path / "missing.py")


COMMAND = """
import json, os, signal, sys, time
said = json.load(sys.stdin)
assert said["problem"]["answer"] == "3" and said["messages"][-1]["content"] == said["final"]
match said["final"]:
    case "right": sys.exit(0)
    case "wrong": sys.exit(1)
    case "busy": sys.exit(75)
    case "killed": os.kill(os.getpid(), signal.SIGKILL)
    case "slow": time.sleep(60)
sys.exit(3)
"""


def test_a_command_judges_by_its_status_and_its_own_troubles_are_no_verdict(tmp_path):
    script = tmp_path / "judge.py"
    script.write_text(COMMAND)
    command = f"{sys.executable} {script}"
    hostile = "$(touch hacked); `touch hacked`"
    assert verdicts("command", command, "right", "wrong", hostile, "'; exit 0") == [True, False, False, False]
    for text in ("busy", "killed"):
        with pytest.raises(InfrastructureFault, match="the grader failed"):
            verdicts("command", command, text)
    with pytest.raises(InfrastructureFault, match=r"longer than 0\.2 s"):
        verdicts("command", command, "slow", timeout=0.2)
    for missing in ("no-such-program --x", ""):
        with pytest.raises(ValueError, match="there is no such program"):
            verdicts("command", missing)


class Colour(Enum):
    RED = "red"


def paint(colour: Colour, times: int = 1, *, note: str | None = None) -> str:
    """Paints it."""
    if times > 3:
        raise RuntimeError("out of paint")
    if times < 0:
        raise InfrastructureFault("the shop is closed")
    return f"{colour.value} {times} {note}" if times else "x" * 50_000


def test_a_function_is_a_tool():
    tool = FunctionTool(paint)
    described = tool.schema["function"]
    assert (described["name"], described["description"]) == ("paint", "Paints it.")
    assert set(described["parameters"]["properties"]) == {"colour", "times", "note"}
    assert described["parameters"]["required"] == ["colour"]
    session = tool.open(Problem("p", (), ""))

    def answered(**arguments):
        result, after = session.call(ToolCall("paint", arguments))
        assert after is session
        return result.status, result.output

    assert answered(colour="red", times=2) == (ToolStatus.OK, "red 2 None")
    assert answered(colour="blue")[0] is ToolStatus.MALFORMED_CALL
    assert answered() == (ToolStatus.MALFORMED_CALL, "Error: colour: Field required")
    assert answered(colour="red", size=3)[0] is ToolStatus.MALFORMED_CALL
    assert answered(colour="red", times=9) == (ToolStatus.PROGRAM_ERROR, "Error: RuntimeError: out of paint")
    assert answered(colour="red", times=-1) == (ToolStatus.INFRASTRUCTURE_FAULT, "the shop is closed")
    assert "[30000 more characters]" in answered(colour="red", times=0)[1]


def test_tools_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_paint_tools.py").write_text(
        "from tests.rollout.conftest import CounterTool as Counter\n"
        "def add(a: int, b: int) -> int:\n    return a + b\n"
        "def star(*a): return a\nnumber = 3\n"
    )
    with ExitStack() as stack:
        stack.callback(sys.modules.pop, "my_paint_tools", None)
        added, _ = load_function_tool("my_paint_tools:add").open(None).call(ToolCall("add", {"a": 1, "b": 2}))
        assert added.output == "3"
        assert load_function_tool("my_paint_tools:Counter").name == "counter"
        for name, told in [
            ("nope:f", "cannot be loaded"),
            ("my_paint_tools:nope", "cannot be loaded"),
            ("my_paint_tools:number", "neither a function nor a class"),
            ("my_paint_tools:star", "cannot be an argument"),
            ("bash", "is no tool"),
        ]:
            with pytest.raises(ValueError, match=told):
                load_function_tool(name)
