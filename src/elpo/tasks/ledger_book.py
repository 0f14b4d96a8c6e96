"""The book of the ledger task: what runs in the policy's session, and what a transcript has written in it.

The two sides are kept apart. `book_setup` is code for the untrusted session. `written_entries` is the
trusted side: it reads the recorded calls only, never the session, and understands exactly the calls it
lists. Whatever else could have reached the book has spoilt it.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Literal

from elpo.tasks.ledger_story import OPERATIONS, Operation
from elpo.tasks.tool_turns import MAX_CODE_CHARS, executed_python
from elpo.types import Step

BOOK_SOURCE = '''\
class Book:
    """Takes one entry per call, and only the next line's amount. Entries are in ink."""

    def __init__(self, count, amounts):
        self._count, self._amounts, self._page = count, amounts, None

    def _enter(self, amount, update):
        import sys
        page = sys._getframe(2).f_code
        if page is self._page:
            return "refused: one entry per call"
        if not self._amounts:
            return "refused: no line is left"
        if type(amount) is not int or amount != self._amounts[0]:
            return "refused: not the next amount"
        self._page, self._amounts, self._count = page, self._amounts[1:], update(self._count)
        return self._count

    def add(self, amount, /):
        return self._enter(amount, lambda n: n + amount)

    def sub(self, amount, /):
        return self._enter(amount, lambda n: n - amount)

    def mul(self, amount, /):
        return self._enter(amount, lambda n: n * amount)

    def look(self):
        return self._count
'''

_OPERATION: dict[str, Operation] = {op: op for op in OPERATIONS}  # by method

_BUILTINS = frozenset(
    ("abs", "bool", "divmod", "float", "int", "len", "list", "max", "min", "print", "range", "repr", "round",
     "str", "sum")
)  # fmt: skip
_ASIDE = (
    ast.Module, ast.Expr, ast.Assign, ast.Constant, ast.Name, ast.Load, ast.Store, ast.Call, ast.keyword,
    ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop, ast.BoolOp, ast.boolop, ast.Compare, ast.cmpop,
    ast.IfExp, ast.List, ast.Tuple, ast.JoinedStr, ast.FormattedValue,
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One executed entry of the book."""

    op: Operation
    amount: int


Attempt = Entry | Literal["nothing", "error"]
"""An entry (written if its amount is due), a statement without effect, or one that is bound to raise."""


class SpoiltBook(ValueError):
    """The policy did something to the book that cannot be followed; the entries are worth nothing."""


def book_setup(start: int, amounts: Sequence[int]) -> str:
    """Code that gives a session its `book`. It knows the amounts to come, not the operations."""
    return f"{BOOK_SOURCE}\n\nbook = Book({start}, {tuple(amounts)})\n"


def written_entries(amounts: Sequence[int], steps: Sequence[Step]) -> tuple[Entry, ...] | None:
    """The entries that the recorded calls have written, or None where they have spoilt the book.

    A call is followed if it is

    * one or more statements `book.<method>(<literals>)`, each bare or inside `print(...)`: of its entries
      the first whose amount is due is written, the others are refused; or
    * an aside that does not mention `book`: arithmetic, assignments to fresh names, printing; or
    * not valid Python, or it was killed, or never ran: nothing is written.

    Everything else (attributes, aliases, loops, imports, functions) spoils the book, whether or not it
    did any harm: what cannot be followed is not trusted.

    Args:
        amounts: the amount of each line of the story, in order.
        steps: the trajectory so far. Only `tool_call` and the status of `tool_result` are read.
    """
    entries: list[Entry] = []
    for code, ran in executed_python(steps):
        try:
            attempts = _attempts(code, ran)
        except SpoiltBook:
            return None
        due = amounts[len(entries)] if len(entries) < len(amounts) else None
        possible = takewhile(lambda attempt: attempt != "error", attempts)
        entries += islice((a for a in possible if isinstance(a, Entry) and a.amount == due), 1)
    return tuple(entries)


def _attempts(code: str, ran: bool) -> list[Attempt]:
    """What a call tries, in order; empty for an aside and for what is not valid Python.

    Raises:
        SpoiltBook: the code is none of the forms that `written_entries` follows.
    """
    if len(code) > MAX_CODE_CHARS:
        raise SpoiltBook(f"a call of {len(code)} characters")
    try:
        tree = ast.parse(code)
        if _is_aside(tree):
            return []
        attempts = [_attempt(statement) for statement in tree.body]
        followed = [attempt for attempt in attempts if attempt is not None]
        if len(followed) == len(attempts):
            return followed
        compile(tree, "<call>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        if ran:  # it was Python to the tool, so it is not the code recorded here
            raise SpoiltBook("a call ran that does not parse") from None
        return []
    raise SpoiltBook("a call that cannot be followed")


def _attempt(statement: ast.stmt) -> Attempt | None:
    """What `book.<method>(<literals>)`, or that inside `print(...)`, tries; None for anything else."""
    if not isinstance(statement, ast.Expr):
        return None
    call = statement.value
    if isinstance(call, ast.Call) and _is_builtin(call.func, {"print"}) and len(call.args) == 1:
        if call.keywords:
            return None
        call = call.args[0]
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
        return None
    book, method = call.func.value, call.func.attr
    if not (isinstance(book, ast.Name) and book.id == "book") or method.startswith("_"):
        return None
    try:
        arguments = [ast.literal_eval(a) for a in (*call.args, *(k.value for k in call.keywords))]
    except (ValueError, TypeError):
        return None
    if any(keyword.arg is None for keyword in call.keywords):
        return None
    op = _OPERATION.get(method)
    if call.keywords or len(arguments) != (1 if op else 0) or not (op or method == "look"):
        return "error"
    return Entry(op, arguments[0]) if op and type(arguments[0]) is int else "nothing"


def _is_aside(tree: ast.Module) -> bool:
    """True for code that cannot reach the book: only `_ASIDE` nodes, calls of builtins, fresh names."""
    for node in ast.walk(tree):
        if not isinstance(node, _ASIDE):
            return False
        if isinstance(node, ast.Call) and not _is_builtin(node.func, _BUILTINS):
            return False
        if isinstance(node, ast.Name) and _is_reserved(node):
            return False
    return True


def _is_reserved(name: ast.Name) -> bool:
    return name.id in {"book", "Book"} or (isinstance(name.ctx, ast.Store) and name.id in _BUILTINS)


def _is_builtin(function: ast.expr, names: Collection[str]) -> bool:
    return isinstance(function, ast.Name) and function.id in names
