"""The program under construction: what runs in the policy's session, and what a transcript has committed.

The two sides are kept apart. `program_setup` is code for the untrusted session, which holds the visible tests
only. `committed` is the trusted side: it reads the recorded calls, never the session, and computes by itself
what the definitions it understands do. Whatever else could have reached the program has spoilt it.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from elpo.tasks.tool_turns import MAX_CODE_CHARS, executed_python
from elpo.types import Step

PROGRAM_SOURCE = '''\
class Program:
    """Takes one line per call, and only a line that passes its visible test. Lines are in ink."""

    def __init__(self, value, expected):
        self._value, self._expected, self._call = value, expected, None

    def then(self, line, /):
        import sys
        call = sys._getframe(1).f_code
        if call is self._call:
            return "refused: one line per call"
        if not self._expected:
            return "refused: no line is left"
        value = line(self._value)
        if type(value) is not int or value != self._expected[0]:
            return f"refused: {value}, not {self._expected[0]}"
        self._call, self._value, self._expected = call, value, self._expected[1:]
        return value

    def look(self):
        return self._value
'''

MAX_NODES = 64
MAX_CONSTANT = 10**6

Compute = Callable[[int], int]

_FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, "max": max, "min": min}
_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable[[int], int]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_COMPARE: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_BUILTINS = frozenset(("abs", "bool", "divmod", "int", "len", "max", "min", "print", "repr", "round", "str"))
_ASIDE = (
    ast.Module, ast.Expr, ast.Assign, ast.Constant, ast.Name, ast.Load, ast.Store, ast.Call, ast.BinOp,
    ast.operator, ast.UnaryOp, ast.unaryop, ast.Compare, ast.cmpop, ast.IfExp, ast.List, ast.Tuple,
)  # fmt: skip


class SpoiltProgram(Exception):
    """The policy did something to the program that cannot be followed; its lines are worth nothing."""


@dataclass(frozen=True)
class Definition:
    """One line that a call defines: its source, and what it computes."""

    source: str
    compute: Compute

    def passes(self, unit_tests: Sequence[tuple[int, int]]) -> bool:
        """True where every input gives its output, exactly as an integer."""
        return all(self._answer(x) == output for x, output in unit_tests)

    def _answer(self, x: int) -> int | None:
        try:
            answer = self.compute(x)
        except (ArithmeticError, TypeError):
            return None
        return answer if type(answer) is int else None


def program_setup(start: int, values: Sequence[int]) -> str:
    """Code that gives a session its program `f`. It knows the visible tests, not the lines."""
    return f"{PROGRAM_SOURCE}\n\nf = Program({start}, {tuple(values)})\n"


def committed(start: int, values: Sequence[int], steps: Sequence[Step]) -> tuple[Definition, ...] | None:
    """The definitions that the recorded calls have committed, or None where they have spoilt the program.

    A call is followed if it is

    * one or more statements `f.then(lambda x: <arithmetic>)` or `f.look()`, each bare or inside `print(...)`:
      the first line that passes its visible test is committed, the others are refused; or
    * an aside that does not mention `f`: arithmetic, assignments to fresh names, printing; or
    * not valid Python, or it was killed, or never ran: nothing is committed.

    Arithmetic is integers, + - * // %, one comparison, `a if b else c`, abs, max and min of the argument.
    Everything else (aliases, named functions, loops, imports) spoils the program, whether or not it did any
    harm: what cannot be followed is not trusted.

    Args:
        start: the value that the first visible test begins with.
        values: what the visible test of each line expects.
        steps: the trajectory so far. Only `tool_call` and the status of `tool_result` are read.
    """
    lines: list[Definition] = []
    value = start
    for code, ran in executed_python(steps):
        try:
            definitions = _definitions(code, ran)
        except SpoiltProgram:
            return None
        for line in definitions if len(lines) < len(values) else ():
            try:
                answer = line.compute(value)
            except (ArithmeticError, TypeError):
                break  # the call ends here
            if type(answer) is int and answer == values[len(lines)]:
                lines.append(line)
                value = answer
                break  # the rest of the call is refused
    return tuple(lines)


def _definitions(code: str, ran: bool) -> list[Definition]:
    """The lines that a call tries, in order; none in an aside and in what is not valid Python.

    Raises:
        SpoiltProgram: the code is none of the forms that `committed` follows.
    """
    if len(code) > MAX_CODE_CHARS:
        raise SpoiltProgram(f"a call of {len(code)} characters")
    try:
        tree = ast.parse(code)
        if _is_aside(tree):
            return []
        compile(tree, "<call>", "exec")
        tried = [_definition(statement) for statement in tree.body]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        if ran:  # it was Python to the tool, so it is not the code recorded here
            raise SpoiltProgram("a call ran that does not parse") from None
        return []
    return [line for line in tried if line is not None]


def _definition(statement: ast.stmt) -> Definition | None:
    """The line that a statement tries to commit; None for a look at the program."""
    match statement:
        case ast.Expr(ast.Call(ast.Name("print"), [ast.Call() as call], [])) | ast.Expr(ast.Call() as call):
            match call:
                case ast.Call(ast.Attribute(ast.Name("f"), "look"), [], []):
                    return None
                case ast.Call(ast.Attribute(ast.Name("f"), "then"), [ast.Lambda(arguments, body)], []):
                    if sum(1 for _ in ast.walk(body)) > MAX_NODES:
                        raise SpoiltProgram("a line that is too long")
                    return Definition(ast.unparse(call.args[0]), _compiled(body, _only_name(arguments)))
    raise SpoiltProgram("a statement that cannot be followed")


def _compiled(node: ast.expr, name: str) -> Compute:
    """What an expression of the argument `name` computes; raises at a call what Python raises."""
    match node:
        case ast.Constant(int(value)) if abs(value) <= MAX_CONSTANT:
            return lambda x: value
        case ast.Name(used) if used == name:
            return lambda x: x
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            binary, a, b = _BINARY[type(op)], _compiled(left, name), _compiled(right, name)
            return lambda x: binary(a(x), b(x))
        case ast.UnaryOp(op, operand) if type(op) in _UNARY:
            unary, a = _UNARY[type(op)], _compiled(operand, name)
            return lambda x: unary(a(x))
        case ast.Compare(left, [op], [right]) if type(op) in _COMPARE:
            compare, a, b = _COMPARE[type(op)], _compiled(left, name), _compiled(right, name)
            return lambda x: compare(a(x), b(x))
        case ast.IfExp(test, body, other):
            a, b, c = (_compiled(part, name) for part in (test, body, other))
            return lambda x: b(x) if a(x) else c(x)
        case ast.Call(ast.Name(used), arguments, []) if used in _FUNCTIONS and used != name:
            function, parts = _FUNCTIONS[used], [_compiled(part, name) for part in arguments]
            return lambda x: function(*(part(x) for part in parts))
    raise SpoiltProgram("a line that cannot be followed")


def _only_name(arguments: ast.arguments) -> str:
    match arguments:
        case ast.arguments(
            posonlyargs=[], args=[ast.arg(arg=name)], vararg=None, kwonlyargs=[], kwarg=None, defaults=[]
        ):
            return str(name)
    raise SpoiltProgram("a line takes one argument")


def _is_aside(tree: ast.Module) -> bool:
    """True for code that cannot reach the program: only `_ASIDE` nodes, calls of builtins, fresh names."""
    for node in ast.walk(tree):
        if not isinstance(node, _ASIDE):
            return False
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id in _BUILTINS and not node.keywords):
                return False
        elif isinstance(node, ast.Name):
            reserved = {"f", "Program"} | (_BUILTINS if isinstance(node.ctx, ast.Store) else set())
            if node.id in reserved:
                return False
    return True
