r"""Grading code by unit tests that the code never sees.

    grader = CodeGrader()
    tests = CodeTests.from_asserts(["assert double(2) == 4", "assert double(-1) == -2"])
    grader.grade("```python\ndef double(x): return 2 * x\n```", tests).correct   # True

A solution runs in sandboxed processes (`elpo.tools.sandbox`) that are told what to evaluate, not what is
right. The values come back as text and are compared here. Test programs that are more than calls and values
run in a process of their own and get the solution's values handed over, so no check shares an interpreter
with the code it judges.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

from elpo.graders.code_process import Child
from elpo.graders.code_tests import CallTest, CheckTest, CodeTests, StdioTest, Truth
from elpo.graders.code_values import matches, same_output, shown, truth
from elpo.graders.grade import Grade, Verdict
from elpo.tools.python import DEFAULT_PRELOAD
from elpo.tools.sandbox.connection import InterpreterLost
from elpo.tools.sandbox.process import Limits
from elpo.tools.sandbox.zygotes import ZygotePool, zygote_configuration
from elpo.types import ToolStatus

PRELOAD = (
    *DEFAULT_PRELOAD, "array", "atexit", "bisect", "cmath", "copy", "dataclasses", "enum", "fcntl", "heapq",
    "io", "numbers", "operator", "queue", "string", "threading", "traceback", "typing", "unicodedata",
)  # fmt: skip
MAX_CODE_CHARS = 1 << 20
MAX_REQUESTS = 10_000
"""Values that one test program may ask for."""

_CACHE_SIZE = 4096
_ATTEMPTS = 3
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^`\n]*?)[ \t]*\r?")
_PYTHON = frozenset({"", "py", "python", "python3"})


class _Result(NamedTuple):
    """How one test ended."""

    verdict: Verdict
    detail: str = ""


class CodeGrader:
    """Grades solutions by `CodeTests`. Thread-safe; never raises for what a solution does.

    A solution is correct if it passes every test. Functions: all calls of a problem are evaluated in one
    process, in order, within `timeout`. Programs: every test is a run of its own, within `timeout` each.
    What a solution prints while functions are called is ignored.

    Args:
        timeout: Seconds of wall clock; twice as many CPU seconds.
        memory_mb: Address space a solution may add.
        num_workers: Zygotes that processes are forked from.
        partial_credit: Score the share of tests passed. Otherwise grading ends with the first failure.
        preload: Modules imported in advance, beyond the standard library's usual ones.

    Raises:
        ValueError: for an option out of range, or a module that is not installed.
        RuntimeError: the host offers no isolation, or the sandbox does not start.
    """

    def __init__(
        self,
        timeout: float = 10.0,
        memory_mb: int = 1024,
        num_workers: int = 1,
        partial_credit: bool = False,
        *,
        preload: Sequence[str] = (),
    ) -> None:
        bounds = {"timeout": (timeout, 0.01), "memory_mb": (memory_mb, 16), "num_workers": (num_workers, 1)}
        for option, (value, least) in bounds.items():
            if not value >= least:
                raise ValueError(f"{option}={value!r}: must be at least {least}")
        self._partial_credit = partial_credit
        self._limits = Limits(timeout, 2 * timeout, memory_mb, output_chars=1 << 30)
        self._pool = ZygotePool(
            zygote_configuration(
                isolation="auto",
                preload=(*PRELOAD, *preload),
                memory_mb=memory_mb,
                timeout=timeout,
                cpu_seconds=2 * timeout,
            ),
            num_workers,
        )
        self._cache: OrderedDict[bytes, Grade] = OrderedDict()
        self._lock = threading.Lock()

    def grade(self, text: str, tests: CodeTests) -> Grade:
        """Judge the last code block of a reply."""
        code = last_code_block(text)
        if code is None:
            return Grade(Verdict.NO_ANSWER, detail="there is no finished code block")
        return self.grade_code(code, tests)

    def grade_code(self, code: str, tests: CodeTests) -> Grade:
        """Judge a solution. Grades are remembered, except those that depend on how busy the host was."""
        key = hashlib.sha256(ascii((code, tests)).encode()).digest()
        with self._lock:
            grade = self._cache.get(key)
        if grade is None:
            grade = self._judge(code, tests)
            if grade.verdict not in (Verdict.FAULT, Verdict.TIMEOUT):
                with self._lock:
                    self._cache[key] = grade
                    if len(self._cache) > _CACHE_SIZE:
                        self._cache.popitem(last=False)
        return grade

    def close(self) -> None:
        """End every process; what is graded later is a fault. Safe to call twice."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _judge(self, code: str, tests: CodeTests) -> Grade:
        if len(code) > MAX_CODE_CHARS:
            return Grade(Verdict.WRONG, code[:100], detail=f"a solution of {len(code)} characters")
        problem = ""
        for _ in range(_ATTEMPTS):
            try:
                return self._summary(code, tests)
            except InterpreterLost as error:
                problem = str(error)
        return Grade(Verdict.FAULT, code, detail=problem)

    def _summary(self, code: str, tests: CodeTests) -> Grade:
        num_passed, failure = 0, None
        for number, result in enumerate(self._results(code, tests), 1):
            if result.verdict is Verdict.CORRECT:
                num_passed += 1
                continue
            failure = failure or result._replace(detail=f"test {number}: {result.detail}"[:500])
            if not self._partial_credit:
                return Grade(failure.verdict, code, 0.0, failure.detail)
        score = num_passed / len(tests.tests)
        return (
            Grade(failure.verdict, code, score, failure.detail)
            if failure
            else Grade(Verdict.CORRECT, code, score)
        )

    def _results(self, code: str, tests: CodeTests) -> Iterator[_Result]:
        """A result for every test, in order, each when it is needed."""
        calls = [test for test in tests.tests if isinstance(test, CallTest)]
        results: Iterator[_Result] | None = None
        for test in tests.tests:
            if isinstance(test, StdioTest):
                yield self._run_program(code, test)
            elif isinstance(test, CheckTest):
                yield self._run_check(code, tests, test)
            else:
                results = results or self._run_calls(code, tests, calls)
                yield next(results)

    def _run_calls(self, code: str, tests: CodeTests, calls: Sequence[CallTest]) -> Iterator[_Result]:
        expressions = [call.expression for call in calls]
        with Child(self._pool, self._limits) as solution:
            statement = f"{_begin(solution, code, tests)}; session.evaluate({expressions!a})"
            status, messages = solution.ask(statement)
        for index, call in enumerate(calls):
            match messages.get(index):
                case ["value", tree] if _passes(call.expected, tree, tests.tuple_is_list):
                    yield _Result(Verdict.CORRECT)
                case ["value", tree]:
                    detail = f"{call.expression[:200]} gave {shown(tree)}, expected {call.expected!r}"
                    yield _Result(Verdict.WRONG, detail)
                case message:
                    yield _failure(status, message or messages.get(-1), call.expression[:200])

    def _run_check(self, code: str, tests: CodeTests, check: CheckTest) -> _Result:
        """Let the test program and the solution talk, each in its process, until the program has ended."""
        deadline = time.perf_counter() + self._limits.timeout
        with Child(self._pool, self._limits) as checker, Child(self._pool, self._limits) as solution:
            arguments = (checker.tag, tests.prelude, check.program, check.proxies, check.modules)
            status, messages = checker.ask(f"session = Checker(*{arguments!a})", deadline)
            statement = f"{_begin(solution, code, tests)}; "
            for number in range(MAX_REQUESTS):
                match messages.get(number):
                    case ["passed"]:
                        return _Result(Verdict.CORRECT)
                    case ["ask", str(request)]:
                        statement += f"session.answer({number}, {request!a})"
                        status, told = solution.ask(statement, deadline)
                        statement = ""
                        reply = told.get(number)
                        if reply is None or status is not ToolStatus.OK:
                            return _failure(status, told.get(-1), f"request {number + 1} of the test program")
                        status, messages = checker.ask(f"session.resume({json.dumps(reply)!a})", deadline)
                    case message:
                        return _failure(status, message, "the test program")
        return _Result(Verdict.WRONG, f"the test program asked for more than {MAX_REQUESTS} values")

    def _run_program(self, code: str, test: StdioTest) -> _Result:
        with Child(self._pool, self._limits) as program:
            stdin = test.stdin.encode(errors="surrogatepass")
            status, output = program.run(f"run_program({program.tag!r}, {code!a}, {stdin!r})")
            if status is ToolStatus.OK:
                if same_output(test.stdout, output):
                    return _Result(Verdict.CORRECT)
                return _Result(Verdict.WRONG, f"printed {output[:200]!r}, expected {test.stdout[:200]!r}")
            problem = output.rpartition(program.tag)[2][-200:]
            return _failure(status, ["error", "", problem], "the program")


def last_code_block(text: str) -> str | None:
    r"""The content of the last finished fenced block of Python in a reply; None where there is none.

    A block marked as Python goes before one without a mark; blocks of other languages do not count.

    >>> last_code_block("```python\nx = 1\n```\nprints\n```\n1\n```")
    'x = 1\n'
    """
    blocks: dict[bool, str] = {}  # by whether the block is marked
    opened: tuple[str, str] | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line)
        if opened is None:
            if fence:
                opened, lines = (fence[1], fence[2].strip().lower()), []
        elif fence and not fence[2] and fence[1].startswith(opened[0]):
            if opened[1] in _PYTHON:
                blocks[opened[1] != ""] = "".join(f"{line}\n" for line in lines)
            opened = None
        else:
            lines.append(line.removesuffix("\r"))
    return blocks.get(True, blocks.get(False))


def _begin(solution: Child, code: str, tests: CodeTests) -> str:
    """The statement that loads a solution."""
    sources = (("<prelude>", tests.prelude), ("solution.py", code), ("<setup>", tests.setup))
    return f"session = Solution({solution.tag!r}, {sources!a}, {tests.entry_point!a})"


def _passes(expected: Any, tree: Any, tuple_is_list: bool) -> bool:
    if isinstance(expected, Truth):
        return truth(tree) is expected.value
    return matches(expected, tree, tuple_is_list)


def _failure(status: ToolStatus, message: list[Any] | None, what: str) -> _Result:
    """The result where no value came."""
    if status is ToolStatus.TIMEOUT:
        return _Result(Verdict.TIMEOUT, f"{what} ran out of time")
    kind, text = map(str, message[1:3]) if message and len(message) > 2 else ("", "")
    if status is ToolStatus.RESOURCE_LIMIT or kind == "MemoryError":
        return _Result(Verdict.RESOURCE_LIMIT, f"{what} used too much memory, CPU or output")
    reason = f"{kind}: {text}".strip(": ") or "it ended without a value"
    return _Result(Verdict.WRONG, f"{what}: {reason}")
