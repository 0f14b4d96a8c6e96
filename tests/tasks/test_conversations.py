"""Conversations in the format of Open-AgentRL-SFT-3K, good and broken, and GSM8K's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from elpo.models.tiny import train_tokenizer
from elpo.rollout.dialogue import Dialogue
from elpo.tasks.conversations import read_conversations
from elpo.tasks.gsm8k_demonstrations import demonstrate
from elpo.tasks.tool_turns import PYTHON_SCHEMA
from elpo.tools.python import PythonTool
from elpo.training import assembly
from elpo.training.run_folder import RunFolder
from elpo.training.sft import conversation_tokens
from elpo.training.trainer import train
from elpo.types import Problem, ToolCall
from tests.coins import coins_config
from tests.tasks.datasets import fixture_task


def call(code: str, name: str = "code_interpreter") -> list[dict[str, Any]]:
    return [{"id": "c", "type": "function", "function": {"name": name, "arguments": {"code": code}}}]


def conversation(number: int, **changes: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "Be brief.", "tool_calls": None},
        {"role": "user", "content": f"What is {number} + 1?", "tool_calls": None},
        {"role": "assistant", "content": "I add.", "tool_calls": call(f"{number} + 1")},
        {"role": "tool", "content": str(number + 1), "tool_calls": None},
        {"role": "assistant", "content": f"\\boxed{{{number + 1}}}", "tool_calls": None},
    ]
    return {"messages": messages, "tools": json.dumps([PYTHON_SCHEMA]), **changes}


def broken(change: Any) -> dict[str, Any]:
    found = conversation(0)
    change(found["messages"])
    return found


BAD = (
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"text": "no messages"}, "messages"),
    (broken(lambda m: m.pop()), "the last one is not the assistant's"),
    (broken(lambda m: m.insert(3, m[3])), "tool after tool"),
    (broken(lambda m: m.pop(3)), "assistant after assistant"),
    (broken(lambda m: m[2].update(tool_calls=[*call("1"), *call("2")])), "2 calls in one turn"),
    (broken(lambda m: m[2].update(tool_calls=call("1", "browser"))), "calls 'browser', this run has python"),
    (broken(lambda m: m[2]["tool_calls"][0]["function"].update(arguments="{")), "arguments"),
    (broken(lambda m: m[0].update(role="wizard")), "messages.0.role"),
)

RENAMED = {"code_interpreter": "python"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_are_read_and_become_tokens(tmp_path: Path, suffix: str) -> None:
    rows = [conversation(i) for i in range(12)]
    path = tmp_path / f"train.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        rows[1]["messages"][2]["tool_calls"][0]["function"]["arguments"] = '{"code": "1 + 1"}'
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found, bad = read_conversations(str(path), ["python"], RENAMED, 10)
    assert len(found) == 10 and not bad
    function = found[1]["messages"][2]["tool_calls"][0]["function"]
    assert function == {"name": "python", "arguments": {"code": "1 + 1"}}
    dialogue = Dialogue(train_tokenizer(found), [PYTHON_SCHEMA])
    tokens = conversation_tokens(dialogue, found[1]["messages"])
    learnt = dialogue.text(tokens.token_ids[tokens.sampled])
    assert dialogue.tool_call(learnt) == ToolCall("python", {"code": "1 + 1"})
    assert "\\boxed{2}" in learnt and "What is" not in learnt and "tool_response" not in learnt


def test_broken_rows_are_listed(tmp_path: Path) -> None:
    rows = [conversation(i) for i in range(90)]
    for i, (bad, _) in enumerate(BAD):
        rows.insert(10 * i, bad)
    lines = [json.dumps(r) for r in rows]
    lines.insert(3, "{not json")
    (tmp_path / "sft.jsonl").write_text("\n".join(lines))
    found, left_out = read_conversations(str(tmp_path / "sft.jsonl"), ["python"], RENAMED, 1000)
    assert len(found) == 90
    reasons = [row.reason for row in left_out]
    assert "not JSON" in reasons.pop(1)
    assert len(reasons) == len(BAD)
    for reason, (_, expected) in zip(reasons, BAD, strict=True):
        assert expected in reason
    assert [row.place for row in left_out[:3]] == ["sft.jsonl:1", "sft.jsonl:4", "sft.jsonl:12"]


def test_a_file_of_nothing_but_broken_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "sft.jsonl").write_text(json.dumps(conversation(0)))
    with pytest.raises(ValueError, match=r"none of 1 rows can be used; sft.jsonl:1: .*see sft.rename_tools"):
        read_conversations(str(tmp_path / "sft.jsonl"), ["python"], {}, 10)


def test_a_cold_start_from_a_file(tmp_path: Path) -> None:
    rows = [*(conversation(i) for i in range(30)), *(bad for bad, _ in BAD)]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = (
        f"sft.path={tmp_path / 'sft.jsonl'}", "sft.rename_tools={code_interpreter: python}",
        "sft.num_steps=3", "rl.num_steps=0", "evaluation.num_problems=1", "rollout.max_tokens=400",
    )  # fmt: skip
    run = RunFolder(tmp_path / "run")
    train(coins_config(run.path, *settings))
    losses = [line["loss"] for line in run.read_metrics("sft")]
    assert len(losses) == 3 and losses[-1] < losses[0]


def test_a_file_that_cannot_be_used_is_found_before_a_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_model(*_: Any) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(assembly, "load_model", load_model)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    for path, message in (("nowhere.jsonl", "there is no file"), ("cut.parquet", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            train(coins_config(tmp_path / "run", f"sft.path={tmp_path / path}"))
    assert not (tmp_path / "run").exists()


def test_a_run_continues_without_the_model_it_began_with(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "first")
    short = ("sft.num_steps=1", "rl.num_steps=0", "evaluation.num_problems=1")
    train(coins_config(first.path, *short))
    base = tmp_path / "base"
    shutil.copytree(first.checkpoints / "rl-000000/model", base)
    settings = (
        f"model.path={base}",
        "sft.num_steps=0",
        "rl.problems_per_step=2",
        "evaluation.num_problems=1",
    )
    train(coins_config(tmp_path / "run", *settings, "rl.num_steps=1"))
    shutil.rmtree(base)
    train(coins_config(tmp_path / "run", *settings, "rl.num_steps=2"), resume=True)
    assert [line["step"] for line in RunFolder(tmp_path / "run").read_metrics("rl")] == [1, 2]


# GSM8K


def test_worked_solutions_calculate_with_python() -> None:
    worked = "He has 48/2 = <<48/2=24>>24 left.\nThat is 24*1.5=<<24*1.5=36>>36 in all.\n#### 36"
    problem = Problem("p", ({"role": "user", "content": "How many?"},), "36")
    found = demonstrate(problem, worked)
    assert found is not None
    turns = [m for m in found["messages"] if m["role"] == "assistant"]
    assert [t["content"] for t in turns] == [
        "He has 48/2 =",
        "24 left.\nThat is 24*1.5=",
        "36 in all.\n\\boxed{36}",
    ]
    assert [m["content"] for m in found["messages"] if m["role"] == "tool"] == ["24.0", "36.0"]
    for text in ("<<__import__('os')=1>>", "<<2**9**9=1>>", "<<1/0=1>>", "<<(1=1>>"):
        assert demonstrate(problem, f"So {text}1.\n#### 1") is None


def test_feedback_of_demonstrations_is_what_the_tool_says() -> None:
    task = fixture_task("gsm8k")
    try:
        conversations = task.demonstrations(3, seed=0)
        assert conversations == task.demonstrations(3, seed=0)
        train_prompts = {p.messages[0]["content"] for p in task.problems("train", 1000)}
        with PythonTool() as tool:
            for found in conversations:
                assert found["messages"][0]["content"] in train_prompts
                for turn, feedback in zip(found["messages"], found["messages"][1:], strict=False):
                    if feedback["role"] == "tool":
                        code = turn["tool_calls"][0]["function"]["arguments"]
                        session = tool.open(Problem("p", (), ""))
                        assert session.call(ToolCall("python", code))[0].output == feedback["content"]
    finally:
        task.close()
