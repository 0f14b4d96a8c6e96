"""A user's own Python function as a tool: `module:function`, its schema made from its signature.

The function runs in this process, outside the sandbox, with arguments the policy chose. It must not keep
state: a branch calls it with nothing but its arguments. A tool with state is a class, see
`elpo.interfaces.Tool`.
"""

from __future__ import annotations

import inspect
import time
import typing
from collections.abc import Callable, Mapping
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError, create_model

from elpo.by_name import object_by_name
from elpo.interfaces import InfrastructureFault, Tool, ToolSession
from elpo.types import Problem, ToolCall, ToolResult, ToolStatus

OUTPUT_CHARS = 20_000


class FunctionTool:
    """A function as an `elpo.interfaces.Tool`. Arguments are checked against its annotations.

    What it returns is shown as text. An exception is a program error, shown to the policy by its type and
    message; `InfrastructureFault` says that the function's own service failed, which is never the policy's.

    Raises:
        ValueError: a parameter that cannot be named in a call.
    """

    stateless = True

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self._function = function
        hints = typing.get_type_hints(function)
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise ValueError(f"{self.name}: *{parameter.name} cannot be an argument of a tool")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
        self._model = create_model(self.name, __config__={"extra": "forbid"}, **fields)
        parameters = TypeAdapter(self._model).json_schema()
        self.schema: Mapping[str, Any] = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": inspect.getdoc(function) or "",
                "parameters": {key: value for key, value in parameters.items() if key != "title"},
            },
        }

    def open(self, problem: Problem) -> ToolSession:
        """See `Tool.open`."""
        return _FunctionSession(self)

    def close(self) -> None:
        """Nothing serves it."""

    def run(self, arguments: Mapping[str, Any]) -> ToolResult:
        """One call."""
        begun = time.perf_counter()
        try:
            checked = self._model.model_validate(dict(arguments))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "arguments"
            return ToolResult(ToolStatus.MALFORMED_CALL, f"Error: {place}: {first['msg']}")
        try:
            found = self._function(**{name: getattr(checked, name) for name in self._model.model_fields})
            status, output = ToolStatus.OK, str(found)
        except InfrastructureFault as error:
            status, output = ToolStatus.INFRASTRUCTURE_FAULT, str(error)
        except Exception as error:
            status, output = ToolStatus.PROGRAM_ERROR, f"Error: {type(error).__name__}: {error}"
        if len(output) > OUTPUT_CHARS:
            output = f"{output[:OUTPUT_CHARS]}\n[{len(output) - OUTPUT_CHARS} more characters]"
        return ToolResult(status, output, time.perf_counter() - begun)


class _FunctionSession:
    def __init__(self, tool: FunctionTool) -> None:
        self._tool = tool

    def call(self, call: ToolCall) -> tuple[ToolResult, ToolSession]:
        return self._tool.run(call.arguments), self

    def close(self) -> None:
        """It holds nothing."""


def tool_fault(tool: Any) -> str | None:
    """Why something cannot be an `elpo.interfaces.Tool`; None where nothing speaks against it."""
    if lacking := [name for name in ("name", "schema", "open", "close") if not hasattr(tool, name)]:
        return f"it has no {', '.join(lacking)}; see elpo.interfaces.Tool, or wrap a function in FunctionTool"
    schema = tool.schema
    function = schema.get("function") if isinstance(schema, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        return 'its schema is not {"type": "function", "function": {"name": ..., ...}}'
    if function["name"] != tool.name:
        return f"its name is {tool.name!r}, but its schema tells the policy to call {function['name']!r}"
    return None


def load_function_tool(name: str) -> Tool:
    """The tool that `module:name` means: a function, or a class of tools that takes no argument.

    Modules in the current folder are found too, after all that are installed.

    Raises:
        ValueError: there is no such thing, or it cannot be a tool.
    """
    if ":" not in name:
        raise ValueError(f"{name!r} is no tool; use python, search or module:function")
    found = object_by_name(name, "the tool ")
    if inspect.isclass(found):
        return cast(Tool, found())
    if not callable(found):
        raise ValueError(f"{name} is neither a function nor a class")
    return FunctionTool(found)
