"""A task with tools of its own, from a recipe: what it brings is used, and what cannot be used is named."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from elpo.commands.localize_inputs import open_tools
from elpo.config import Config
from elpo.evaluation.runner import evaluate_run
from elpo.interfaces import Split
from elpo.tools.functions import FunctionTool
from elpo.training.run_folder import RunFolder
from elpo.training.tools import make_tools
from elpo.training.trainer import train
from elpo.types import Problem, ToolCall, ToolResult, ToolStatus
from tests.coins import Coins, coins_config


def purse(put: str) -> str:
    """Says what was put."""
    return f"{put} coin"


@dataclass(frozen=True)
class Bag:
    coins: tuple[str, ...] = ()

    def call(self, call: ToolCall) -> tuple[ToolResult, Bag]:
        after = Bag((*self.coins, str(call.arguments.get("put"))))
        return ToolResult(ToolStatus.OK, " ".join(after.coins)), after

    def close(self) -> None: ...


class BagTool:
    name = "bag"
    schema = FunctionTool(purse).schema | {"function": {"name": "bag", "parameters": {}}}

    def __init__(self) -> None:
        self.closed = False

    def open(self, problem: Problem) -> Bag:
        return Bag()

    def close(self) -> None:
        self.closed = True


class BagTask(Coins):
    """The coins go into the task's own tool."""

    name, tool_names = "bags", ("bag", "purse")

    def tools(self) -> list[Any]:
        return [FunctionTool(purse), BagTool()]

    def demonstrations(self, num: int, seed: int) -> list[dict[str, Any]]:
        found = []
        for problem in self.problems("train", num):
            call = {"type": "function", "function": {"name": "bag", "arguments": {"put": "gold"}}}
            turn = {"role": "assistant", "content": "", "tool_calls": [call]}
            feedback = {"role": "tool", "name": "bag", "content": "gold"}
            found.append(
                {"messages": [*problem.messages, turn, feedback, {"role": "assistant", "content": "full"}]}
            )
        return found


def test_a_run_and_its_evaluation_use_the_tasks_own_tool(tmp_path: Path) -> None:
    config = coins_config(
        tmp_path / "run",
        "task.name=tests.training.test_own_tools:BagTask",
        "rollout.max_turn_tokens=40",
        "rl.num_steps=1",
        "evaluation.every=0",
    )
    train(config)
    (line,) = RunFolder(tmp_path / "run").read_metrics("rl")
    assert line["tool/calls"] > 0 and line["faults/count"] == 0
    trees = [tree for tree, _ in RunFolder(tmp_path / "run").read_trees(1)]
    calls = [node.step for tree in trees for node in tree.nodes if node.step.tool_call]
    assert any(s.tool_result and s.tool_result.output.startswith("gold") for s in calls)
    assert evaluate_run(config, tmp_path / "run").summary.num_faults == 0


def test_localize_takes_the_tools_of_the_task() -> None:
    task: Any = BagTask(BagTask.Options())
    with ExitStack() as stack:
        assert list(open_tools(None, task, Config(), stack)) == ["bag", "purse"]
        assert list(open_tools("purse", task, Config(), stack)) == ["purse"]


class Unnamed(BagTask):
    tool_names = ("bag",)


class Missing(BagTask):
    tool_names = ("bag", "purse", "wallet")


class Misnamed(BagTask):
    def tools(self) -> list[Any]:
        tool = FunctionTool(purse)
        tool.name = "bag"
        return [tool]


class Plain(BagTask):
    def tools(self) -> list[Any]:
        return [purse]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Unnamed, r"brings the tools \['purse'\]; add them to its tool_names"),
        (
            Missing,
            r"wants the tools \['wallet'\]; the tools are: purse, bag, python, search; a tool of your own",
        ),
        (Misnamed, "its name is 'bag', but its schema tells the policy to call 'purse'"),
        (Plain, "it has no name, schema, open, close; see elpo.interfaces.Tool, or wrap"),
    ],
)
def test_what_is_wrong_with_a_tool_is_said(task: type[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_tools(task(task.Options()), Config())


def test_tools_are_closed_where_another_is_wrong() -> None:
    bag = BagTool()

    class Late(BagTask):
        def tools(self) -> list[Any]:
            return [bag, purse]

    with pytest.raises(ValueError, match="it has no name"):
        make_tools(Late(Late.Options()), Config())
    assert bag.closed


class Alike(Coins):
    def problems(self, split: Split, num: int) -> list[Problem]:
        return [Problem("the same", p.messages, p.answer, p.metadata) for p in super().problems(split, num)]


class Numbered(Coins):
    def problems(self, split: Split, num: int) -> list[Problem]:
        found = super().problems(split, num)
        return [Problem(i, p.messages, p.answer, p.metadata) for i, p in enumerate(found)]  # type: ignore[arg-type]


class Unmeasured(Coins):
    def problems(self, split: Split, num: int) -> list[Problem]:
        return [] if split == "validation" else super().problems(split, num)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Alike", "300 training problems have the id 'the same'"),
        ("Numbered", "the training id 0 is not text; use str"),
        ("Unmeasured", "has no validation problems"),
    ],
)
def test_problems_that_cannot_be_told_apart_are_refused_before_anything_is_written(
    name: str, said: str, tmp_path: Path
) -> None:
    config = coins_config(tmp_path / "run", f"task.name=tests.training.test_own_tools:{name}")
    with pytest.raises(ValueError, match=said):
        train(config)
    assert not (tmp_path / "run").exists()
