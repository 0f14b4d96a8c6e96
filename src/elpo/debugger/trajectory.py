"""Reading the failed trajectory: a rollout tree, a record of an evaluation, or OpenAI chat messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from elpo.chat import RawCall
from elpo.rollout.messages import messages_of, step_messages, turn_text
from elpo.tree_json import tree_from_json
from elpo.types import MessageStep, Problem, Step, StopReason, ToolCall, ToolResult, ToolStatus


@dataclass(frozen=True, eq=False)
class Failed:
    """The trajectory that is searched."""

    problem: Problem
    steps: tuple[Step, ...]
    stop: StopReason

    @property
    def digest(self) -> str:
        """Of all that continuations depend on."""
        messages = [*self.problem.messages, *(m for step in self.steps for m in messages_of(step))]
        content = json.dumps([messages, self.problem.metadata], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def read_failed(path: Path, line: int = 0, leaf: int | None = None, problem: Problem | None = None) -> Failed:
    """The trajectory in a file.

    A file with a line a record (.jsonl) is read at `line`, from 0. `problem` stands in for what the file does
    not say: a record has only the problem's id, messages have no answer.

    Args:
        leaf: of a tree, the leaf's node id; by default its first failed one with a search, else with steps.

    Raises:
        ValueError: the file cannot be read or holds none of these; the message says what is wrong.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            lines = text.splitlines()
            if not 0 <= line < len(lines):
                raise ValueError(f"it has {len(lines)} lines: use --line 0 to {len(lines) - 1}")
            text = lines[line]
        data = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        if isinstance(data, dict) and "nodes" in data:
            return _from_tree(data, leaf, problem)
        if isinstance(data, dict) and "steps" in data:
            return _from_record(data, problem)
        return from_messages(data, problem)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no trajectory: {type(error).__name__} {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_problem(path: Path) -> Problem:
    """A problem as JSON: any of `id`, `messages`, `answer` and `metadata`.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(path.expanduser().read_text(encoding="utf-8"))
        if not isinstance(found, dict) or set(found) - {"id", "messages", "answer", "metadata"}:
            raise ValueError("write an object with id, messages, answer and metadata")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no problem: {error}") from error
    return _problem(found, path.stem)


def _problem(found: Mapping[str, Any], default_id: str) -> Problem:
    return Problem(
        str(found.get("id", default_id)),
        tuple(found.get("messages", ())),
        str(found.get("answer", "")),
        dict(found.get("metadata", {})),
    )


def _from_tree(data: Mapping[str, Any], leaf: int | None, problem: Problem | None) -> Failed:
    tree, _ = tree_from_json(data)
    failed = [node for node, outcome in tree.outcomes.items() if not outcome.correct]
    searched = [found.leaf for found in tree.localizations]
    if leaf is None:
        leaf = next(iter([*searched, *(node for node in failed if len(tree.path(node)) > 1), *failed]), None)
    if leaf not in failed:
        known = ", ".join(map(str, failed)) or "none"
        raise ValueError(f"node {leaf} is not a failed leaf of this tree; those are: {known}")
    steps = tuple(tree.nodes[node].step for node in tree.path(leaf))
    return Failed(problem or tree.problem, steps, tree.outcomes[leaf].stop)


def _from_record(data: Mapping[str, Any], problem: Problem | None) -> Failed:
    if problem is None or problem.id != data["problem"]:
        raise ValueError(f"it is about problem {data['problem']!r}; give its --task, or the --problem")
    steps = []
    for step in data["steps"]:
        call, result = step["tool_call"], step["tool_result"]
        bare = MessageStep.of(
            (),
            step["sampled_tokens"],
            step["text"],
            None if call is None else ToolCall(call["name"], call["arguments"]),
            None if result is None else ToolResult(ToolStatus(result["status"]), result["output"]),
        )
        steps.append(replace(bare, messages=tuple(step_messages(bare))))
    return Failed(problem, tuple(steps), StopReason(data["stop"]))


def from_messages(data: Any, problem: Problem | None = None) -> Failed:
    """A trajectory from chat messages: a list of them, or an object with `messages` (and `problem`).

    What stands before the first assistant message is the prompt. A step is an assistant message and all that
    follows it up to the next one.

    Raises:
        ValueError: there is no assistant message, or one is malformed.
    """
    if isinstance(data, dict):
        problem = problem or (_problem(data["problem"], "problem") if "problem" in data else None)
        data = data["messages"]
    messages = [dict(message) for message in data]
    starts = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not starts:
        raise ValueError("there is no assistant message in it")
    ends = [*starts[1:], len(messages)]
    steps = tuple(_step(messages[i:j]) for i, j in zip(starts, ends, strict=True))
    prompt = tuple(messages[: starts[0]])
    if problem is None:
        problem = Problem("problem", prompt, "")
    elif not problem.messages:
        problem = Problem(problem.id, prompt, problem.answer, problem.metadata)
    if not problem.messages:
        raise ValueError("no message stands before the first of the assistant, and the problem has none")
    stop = StopReason.TURN_LIMIT if steps[-1].is_tool_step else StopReason.ANSWER
    return Failed(problem, steps, stop)


def _step(messages: Sequence[Mapping[str, Any]]) -> MessageStep:
    said, *feedback = messages
    calls = []
    for number, call in enumerate(said.get("tool_calls") or ()):
        function = call["function"]
        arguments = function.get("arguments") or "{}"
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
        calls.append(RawCall(str(call.get("id") or f"call_{number}"), str(function["name"]), arguments))
    content = said.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    kept: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        kept["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in calls
        ]
    answers = [message for message in feedback if message.get("role") == "tool"]
    result = ToolResult(ToolStatus.OK, str(answers[0].get("content") or "")) if answers else None
    text = turn_text(content, calls)
    return MessageStep.of([kept, *feedback], 0, text, _first_call(calls), result)


def _first_call(calls: Sequence[RawCall]) -> ToolCall | None:
    """The call of a turn, where its arguments are an object."""
    if not calls:
        return None
    try:
        arguments = json.loads(calls[0].arguments)
    except ValueError:
        return None
    return ToolCall(calls[0].name, arguments) if isinstance(arguments, dict) else None
