"""`elpo localize` and `elpo eval --endpoint` as commands, against a real server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from elpo.cli import main
from tests.rollout.conftest import dialogue, tokenizer
from tests.serving.scripted import OVERSHOOT, counting, serving

__all__ = ["dialogue", "tokenizer"]


def chat(*amounts: int, answer: str) -> list[dict]:
    """A failed trajectory that reaches for 5 by these amounts."""
    messages: list[dict] = [{"role": "user", "content": "reach 5"}]
    total = 0
    for i, amount in enumerate(amounts):
        total += amount
        function = {"name": "counter", "arguments": json.dumps({"add": amount})}
        made = {"id": f"c{i}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": "", "tool_calls": [made]})
        messages.append({"role": "tool", "tool_call_id": f"c{i}", "content": str(total)})
    return [*messages, {"role": "assistant", "content": answer}]


@pytest.fixture
def server(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_counter.py").write_text("from tests.rollout.conftest import CounterTool\n")
    Path("t.json").write_text(json.dumps(chat(1, 1, OVERSHOOT, 1, 1, answer="\\boxed{13}")))
    with serving(counting(error=0.1), tokenizer) as running:
        yield running
    sys.modules.pop("my_counter", None)


def test_a_trajectory_of_another_agent(server, capsys):
    argv = ["localize", "t.json", "--answer", "5", "--endpoint", server.url, "--model", "counter"]
    argv += ["--tools", "my_counter:CounterTool", "--out", "found"]
    assert main(argv) == 0
    shown = capsys.readouterr()
    assert "first irrecoverable step: 3 of 6" in shown.out
    assert "recovered from after step 2" in shown.out
    assert "outside the sandbox" in shown.err and "probing after step" in shown.err
    assert {file.name for file in Path("found").iterdir()} == {
        "settings.json", "completions.jsonl", "result.json", "tree.json", "report.html"
    }  # fmt: skip
    result = json.loads(Path("found/result.json").read_text())
    assert result["critical"] == 3 and result["cost"]["replayed"] == 0
    assert main([*argv, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["critical"] == 3 and again["cost"]["replayed"] == result["cost"]["requests"]
    more = [*argv, "--suffixes", "6"]  # more draws use those that are there
    assert main(more) == 0
    assert main([*argv[:3], "6", *argv[4:]]) == 2
    assert "was made with other settings (grader)" in capsys.readouterr().err
    assert main([*argv, "--budget", "1", "--suffixes", "1"]) == 1
    assert "not found yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--answer", "5"], "give either --endpoint and --model, or --local"),
        (["--answer", "5", "--endpoint", "URL"], "needs --model"),
        (["--answer", "5", "--endpoint", "nowhere", "--model", "m"], "is no address of a server"),
        (
            ["--answer", "5", "--endpoint", "URL", "--model", "m", "--suffixes", "x"],
            "write a number, or MIN:MAX",
        ),
        (["--answer", "5", "--endpoint", "URL", "--model", "m", "--suffixes", "3:1"], "the smaller first"),
        (["--answer", "5", "--endpoint", "URL", "--model", "m", "--budget", "0"], "use 1 or more"),
        (["--answer", "5", "--endpoint", "URL", "--model", "m", "--price", "3"], "IN:OUT"),
        (["--answer", "5", "--endpoint", "URL", "--model", "m", "--max-cost", "3"], "needs the prices"),
        (["--answer", "5", "--endpoint", "URL", "--model", "m", "--api-key-env", "NOPE_KEY"], "is not set"),
        (["--answer", "5", "--endpoint", "URL", "--model", "m", "--tools", "bash"], "the tools are: python"),
        (
            ["--answer", "5", "--endpoint", "URL", "--model", "m", "rollout.max_turns=2"],
            "6 turns and rollout.max",
        ),
        (["--answer", "13", "--endpoint", "URL", "--model", "m"], "this trajectory succeeded"),
        (["--answer", "5", "--endpoint", "URL", "--model", "m"], "there is no model 'm' here"),
        (["--answer", "5", "--local", "nowhere"], "there is no folder nowhere"),
        (["--task", "nope", "--endpoint", "URL", "--model", "m"], "there is no task 'nope'"),
    ],
)
def test_mistakes_are_one_message(server, capsys, argv, told):
    argv = [server.url if item == "URL" else item for item in argv]
    assert main(["localize", "t.json", "--out", "o", *argv]) == 2
    shown = capsys.readouterr().err
    assert told in shown and "Traceback" not in shown


def test_evaluating_an_endpoint(server, capsys):
    Path("my_sums.py").write_text(
        "from pydantic import BaseModel\n"
        "from tests.rollout.conftest import SumTask\n"
        "class Options(BaseModel):\n    pass\n"
        "class Sums(SumTask):\n"
        "    Options = Options\n    tool_names = ()\n"
        "    def __init__(self, options):\n        pass\n"
    )
    argv = ["eval", "--endpoint", server.url, "--model", "counter", "task.name=my_sums:Sums", "--out", "e"]
    argv += ["evaluation.num_problems=6", "evaluation.samples_per_problem=4", "rollout.num_slots=2"]
    argv += ["rollout.max_turns=3", "rollout.max_turn_tokens=40"]
    assert main([*argv, "--max-total-tokens", "500"]) == 2
    assert "might pass the limit" in capsys.readouterr().err
    paid = Path("e/completions.jsonl").read_bytes()
    assert paid
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "6 problems x 4 samples" in out and "pass@4" in out and "entropy" not in out
    drawn = Path("e/completions.jsonl").read_bytes()
    assert drawn.startswith(paid) and len(drawn) > len(paid)
    blocks = sorted(Path("e/trajectories").iterdir())
    records = [json.loads(line) for block in blocks for line in block.read_text().splitlines()]
    assert len(records) == 24 and all(record["sampled_tokens"] for record in records)
    # a lost sample is drawn again by the next call, the others are replayed
    lost = {"problem": records[1]["problem"], "sample": 1, "stop": "fault", "correct": None}
    lines = blocks[0].read_text().splitlines()
    blocks[0].write_text("\n".join([lines[0], json.dumps(lost), *lines[2:]]) + "\n")
    assert main(argv) == 0
    assert blocks[0].read_text().splitlines() == lines
    assert Path("e/completions.jsonl").read_bytes() == drawn
    assert main(["eval"]) == 2
    assert "give a run, a model, or --endpoint" in capsys.readouterr().err
