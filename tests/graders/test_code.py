from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import elpo
from elpo.graders.code import CodeGrader, last_code_block
from elpo.graders.code_tests import CodeTests
from elpo.graders.grade import Grade, Verdict

from .code_exploits import FUNCTION_EXPLOITS, PROGRAM_EXPLOITS

CALLS = CodeTests.from_asserts(
    ["assert total([1, 2]) == 3", "assert total([]) == 0", "assert total([7]) == 7"]
)
LOOP = CodeTests.from_asserts(["for n in range(2, 5):\n    assert total(list(range(n))) == sum(range(n))"])
CHECK = CodeTests.from_check(
    "def check(candidate):\n    assert abs(candidate([1, 2]) - 3) < 1e-6\n    assert candidate([7]) == 7",
    "total",
)
STDIO = CodeTests.from_stdio(["2\n1 2\n", "1\n7\n"], ["3\n", "7\n"])


@pytest.fixture(scope="module")
def grader() -> Iterator[CodeGrader]:
    with CodeGrader(timeout=2.0) as grader:
        yield grader


@pytest.fixture(scope="module")
def hasty() -> Iterator[CodeGrader]:
    with CodeGrader(timeout=1.0) as grader:
        yield grader


def reply(code: str) -> str:
    return f"I think so.\n```python\n{code}\n```\nDone."


# functions


@pytest.mark.parametrize("tests", [CALLS, LOOP, CHECK], ids=["calls", "loop", "check"])
@pytest.mark.parametrize(
    "code",
    [
        "def total(numbers):\n    return sum(numbers)",
        "total = sum",
        "print('noise')\ndef total(numbers):\n    print(numbers)\n    return sum(numbers)",
        "import sys\ndef total(numbers):\n    sys.stderr.write('x' * 100_000)\n    return sum(numbers)",
        "class Total(int): pass\ndef total(numbers): return Total(sum(numbers))",
        "class Solution:\n    def total(self, numbers): return sum(numbers)\ntotal = Solution().total",
        "def total(numbers): return sum(numbers)\nif __name__ == '__main__':\n    print(total([input()]))",
    ],
    ids=range(7),
)
def test_right_functions_are_correct(grader: CodeGrader, code: str, tests: CodeTests) -> None:
    grade = grader.grade(reply(code), tests)
    assert grade == Grade(Verdict.CORRECT, f"{code}\n", 1.0), grade.detail


@pytest.mark.parametrize("tests", [CALLS, LOOP, CHECK], ids=["calls", "loop", "check"])
@pytest.mark.parametrize("name", FUNCTION_EXPLOITS)
def test_function_exploits_score_nothing(grader: CodeGrader, name: str, tests: CodeTests) -> None:
    grade = grader.grade_code(FUNCTION_EXPLOITS[name].replace("NAME", "total"), tests)
    assert not grade.correct
    assert grade.score == 0


def test_yes_and_no_are_not_won_by_an_object(grader: CodeGrader) -> None:
    tests = CodeTests.from_asserts(
        ["assert odd(3)", "assert not odd(2)", "assert odd(1) == True", "assert odd(4) is False"]
    )
    for name, code in FUNCTION_EXPLOITS.items():
        assert not grader.grade_code(code.replace("NAME", "odd"), tests).correct, name
    assert grader.grade_code("def odd(n): return n % 2 == 1", tests).correct
    only_true = CodeTests.from_asserts(["assert odd(3)", "assert all([odd(n) for n in (1, 3)])"])
    equal = FUNCTION_EXPLOITS["an object that equals everything"].replace("NAME", "odd")
    assert not grader.grade_code(equal, only_true).correct
    assert grader.grade_code("def odd(n): return n % 2", only_true).correct


def test_no_expected_value_enters_the_process_of_the_solution(grader: CodeGrader) -> None:
    """The solution reports everything it can find; the secrets are in the tests alone."""
    spy = """
import gc, sys
def spied(*arguments):
    found, frame = [], sys._getframe()
    while frame:
        found += [repr(frame.f_locals), repr(frame.f_globals), repr(frame.f_code.co_consts)]
        frame = frame.f_back
    found += [repr(thing)[:100000] for thing in gc.get_objects() if type(thing) in (dict, list, tuple)]
    try:
        found.append(open("/proc/self/environ").read() + open("/proc/self/cmdline").read())
    except OSError:
        pass
    text = "".join(found)
    return "".join(reversed("73terces")) in text, "".join(reversed("14elbisiv")) in text
"""
    tests = [
        CodeTests.from_asserts(["assert spied('visible41') == 'secret37'"]),
        CodeTests.from_check(
            "secret = 'secret37'\ndef check(candidate):\n    for n in range(1):\n"
            "        assert candidate('visible41') == 'secret37', str(candidate('visible41'))",
            "spied",
        ),
    ]
    for form in tests:
        detail = grader.grade_code(spy, form).detail
        assert "(False, True)" in detail, detail


def test_a_class_solution_is_used_where_there_is_no_function(grader: CodeGrader) -> None:
    tests = CodeTests.from_calls("twoSum", [([2, 7], 9), ([3, 3], 6)], [[0, 1], [0, 1]])
    body = "for i in range(len(a)):\n      for j in range(i):\n       if a[i] + a[j] == t: return {}"
    method = "class Solution:\n    def twoSum(self, a: List[int], t: int) -> List[int]:\n     "
    assert grader.grade_code(method + body.format("[j, i]"), tests).correct
    assert grader.grade_code(method + body.format("(j, i)"), tests).correct  # a tuple may stand for a list
    assert not grader.grade_code(method + body.format("{j, i}"), tests).correct
    strict = CodeTests.from_calls("f", [[1]], [[1]], tuple_is_list=False)
    assert not grader.grade_code("def f(x): return (x,)", strict).correct


def test_helpers_of_the_prompt_are_there_on_both_sides(grader: CodeGrader) -> None:
    prompt = "def helper(x):\n    return x + 1\n\ndef f(x):\n    '''to do'''\n"
    check = "def check(candidate):\n    for x in range(3):\n        assert candidate(x) == helper(helper(x))"
    tests = CodeTests.from_check(check, "f", prompt)
    assert grader.grade_code("def f(x): return helper(helper(x))", tests).correct
    assert not grader.grade_code("def helper(x): return 0\ndef f(x): return helper(helper(x))", tests).correct


def test_test_programs_may_go_through_items(grader: CodeGrader) -> None:
    tests = CodeTests.from_asserts(["assert list(f(3))[:3] == sorted([0, 1, 2])", "assert sum(f(3)) == 3"])
    for code in ("f = range", "def f(n): yield from range(n)", "def f(n): return {0: 1, 1: 1, 2: 1}.keys()"):
        assert grader.grade_code(code, tests).correct
    endless = "def f(n):\n    n = 0\n    while True:\n        yield n\n        n += 1"
    assert not grader.grade_code(endless, tests).correct


def test_random_test_programs_ask_the_same_questions_when_repeated(grader: CodeGrader) -> None:
    check = (
        "import random\ndef check(candidate):\n    for _ in range(30):\n"
        "        x = random.randint(0, 10**9)\n        assert candidate(x) == x + 1"
    )
    tests = CodeTests.from_check(check, "f")
    assert grader.grade_code("def f(x): return x + 1", tests).correct
    assert not grader.grade_code(
        "import random\ndef f(x):\n    random.seed(0)\n    return x + 2", tests
    ).correct


# programs

SUM = "sum(map(int, __import__('sys').stdin.read().split()[1:]))"
IDIOMS = {
    "input": "input()\nprint(sum(map(int, input().split())))",
    "sys.stdin.read": f"print({SUM})",
    "readline": "import sys\nsys.stdin.readline()\nprint(sum(map(int, sys.stdin.readline().split())))",
    "readline bound": "import sys\nread = sys.stdin.readline\nread()\nprint(sum(map(int, read().split())))",
    "readlines": "import sys\nprint(sum(map(int, sys.stdin.readlines()[1].split())))",
    "for line in sys.stdin": "import sys\na = [l for l in sys.stdin]\nprint(sum(map(int, a[1].split())))",
    "next": "import sys\nnext(sys.stdin)\nprint(sum(map(int, next(sys.stdin).split())))",
    "mixed": "import sys\ninput()\nprint(sum(map(int, sys.stdin.read().split())))",
    "buffer.read": "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split()[1:])))",
    "buffer.readline": "import sys\nr = sys.stdin.buffer.readline\nr()\nprint(sum(map(int, r().split())))",
    "buffer loop": "import sys\nlines = list(sys.stdin.buffer)\nprint(sum(map(int, lines[1].split())))",
    "open(0)": "print(sum(map(int, open(0).read().split()[1:])))",
    "open(0) lines": "lines = open(0)\nnext(lines)\nprint(sum(map(int, next(lines).split())))",
    "open(0, 'rb')": "print(sum(map(int, open(0, 'rb').read().split()[1:])))",
    "os.read": "import os\nprint(sum(map(int, os.read(0, 10**6).split()[1:])))",
    "fileinput": "import fileinput\na = list(fileinput.input('-'))\nprint(sum(map(int, a[1].split())))",
    "until EOFError": "data = []\ntry:\n    while True:\n        data += input().split()\n"
    "except EOFError:\n    print(sum(map(int, data[1:])))",
    "BytesIO": "import io, os, sys\nsys.stdin = io.BytesIO(os.read(0, os.fstat(0).st_size or 10**6))\n"
    "sys.stdin.readline()\nprint(sum(map(int, sys.stdin.readline().split())))",
    "main guard": "def main():\n    input()\n    print(sum(map(int, input().split())))\n"
    "if __name__ == '__main__':\n    main()",
    "thread": "import sys, threading\ndef main():\n    input()\n    print(sum(map(int, input().split())))\n"
    "sys.setrecursionlimit(10**6)\nthreading.stack_size(2**26)\nthreading.Thread(target=main).start()",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**6)\ninput()\n"
    "a = list(map(int, input().split()))\ndef f(n): return n and f(n - 1)\nprint(f(50_000) + sum(a))",
    "sys.stdout.write": f"import sys\nsys.stdout.write(str({SUM}))",
    "sys.stdout.buffer": f"import sys\nsys.stdout.buffer.write(b'%d' % {SUM})",
    "os.write": f"import os\nos.write(1, b'%d' % {SUM})",
    "open(1, 'w')": f"print({SUM}, file=open(1, 'w'))",
    "printed at exit": f"import atexit\nresult = {SUM}\natexit.register(lambda: print(result))",
    "StringIO": f"import io\nout = io.StringIO()\nprint({SUM}, file=out)\nprint(out.getvalue())",
    "redirected": f"import io, sys, atexit\nsys.stdout = io.StringIO()\n"
    f"atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))\nprint({SUM})",
    "exit()": f"print({SUM})\nexit()",
    "sys.exit(0)": f"import sys\nprint({SUM})\nsys.exit(0)",
    "os._exit(0)": f"import os\nprint({SUM}, flush=True)\nos._exit(0)",
    "debugging on stderr": f"import sys\nprint('debug', file=sys.stderr)\nprint({SUM})",
    "white space": f"print({SUM}, '  \\n\\n')",
}


@pytest.mark.parametrize("idiom", IDIOMS)
def test_every_idiom_of_reading_and_writing_is_correct(grader: CodeGrader, idiom: str) -> None:
    grade = grader.grade(reply(IDIOMS[idiom]), STDIO)
    assert grade.correct, grade.detail


@pytest.mark.parametrize("name", PROGRAM_EXPLOITS)
def test_program_exploits_score_nothing(grader: CodeGrader, name: str) -> None:
    grade = grader.grade_code(PROGRAM_EXPLOITS[name].replace("SUM", SUM), STDIO)
    assert not grade.correct
    assert grade.score == 0


def test_long_input_and_output(grader: CodeGrader) -> None:
    """Beyond what a pipe holds, in both directions, by every way of reading."""
    numbers = list(range(400_000))
    text = f"{len(numbers)}\n{' '.join(map(str, numbers))}\n"
    assert len(text) > 2_000_000
    tests = CodeTests.from_stdio([text], [str(sum(numbers))])
    for idiom in ("input", "for line in sys.stdin", "buffer.read", "open(0)"):
        grade = grader.grade_code(IDIOMS[idiom], tests)
        assert grade.correct, (idiom, grade.detail)
    echo = CodeTests.from_stdio([text], [text])
    assert grader.grade_code("print(open(0).read())", echo).correct
    assert not grader.grade_code("print(open(0).read()[:-3])", echo).correct


def test_programs_do_not_see_each_other(grader: CodeGrader) -> None:
    code = "import builtins\ncount = getattr(builtins, 'count', 0)\nbuiltins.count = count + 1\nprint(count)"
    assert grader.grade_code(code, CodeTests.from_stdio(["", "a", "b"], ["0", "0", "0"])).correct


# verdicts


@pytest.mark.parametrize("tests", [CALLS, LOOP, STDIO], ids=["calls", "loop", "stdio"])
@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("while True: pass", Verdict.TIMEOUT),
        ("import time\ntime.sleep(100)", Verdict.TIMEOUT),
        ("x = [0] * 10**10", Verdict.RESOURCE_LIMIT),
        ("def total(n", Verdict.WRONG),
        ("1 / 0", Verdict.WRONG),
        ("import os\nos.abort()", Verdict.WRONG),
        ("import ctypes\nctypes.string_at(0)", Verdict.WRONG),
        ("\0", Verdict.WRONG),
        ("x = '\ud800'", Verdict.WRONG),
        ("(" * 10_000, Verdict.WRONG),
        ("#" * (1 << 21), Verdict.WRONG),
        ("import socket\nsocket.socket()", Verdict.WRONG),
        ("import os\nos.fork()", Verdict.WRONG),
        ("", Verdict.WRONG),
    ],
    ids=range(14),
)
def test_every_failure_has_its_verdict(
    hasty: CodeGrader, code: str, verdict: Verdict, tests: CodeTests
) -> None:
    grade = hasty.grade_code(code, tests)
    assert (grade.verdict, grade.score) == (verdict, 0.0), grade.detail
    assert hasty.grade_code("total = sum", CALLS).correct


def test_no_code_block_is_no_answer(grader: CodeGrader) -> None:
    for text in ("", "def total(n): return sum(n)", "```python\ndef total(n): return sum(n)"):
        assert grader.grade(text, CALLS).verdict is Verdict.NO_ANSWER


def test_partial_credit_is_the_share_of_tests_passed() -> None:
    code = "def total(numbers): return 0 if numbers == [] else 3"
    last = "def total(numbers):\n    if numbers == [7]: import os; os._exit(0)\n    return sum(numbers)"
    with CodeGrader(partial_credit=True) as grader:
        assert grader.grade_code(code, CALLS).score == pytest.approx(2 / 3)
        assert not grader.grade_code(code, CALLS).correct
        assert grader.grade_code(last, CALLS).score == pytest.approx(2 / 3)
        assert grader.grade_code("print(3)", STDIO).score == 0.5
        assert grader.grade_code(IDIOMS["input"], STDIO).score == 1
    with CodeGrader() as grader:
        assert grader.grade_code(code, CALLS).score == 0


# the machinery


def test_a_hung_solution_does_not_hold_up_or_poison_the_others(grader: CodeGrader) -> None:
    verdicts: dict[int, Verdict] = {}

    def judge(number: int) -> None:
        code = f"while True: pass  # {number}" if number % 4 == 0 else f"total = sum  # {number}"
        verdicts[number] = grader.grade_code(code, CALLS).verdict

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {n: Verdict.TIMEOUT if n % 4 == 0 else Verdict.CORRECT for n in range(12)}


def zygotes() -> list[int]:
    command = ["ps", "-o", "pid=", "--ppid", str(os.getpid())]
    return [int(pid) for pid in subprocess.run(command, capture_output=True, text=True).stdout.split()]


def test_killed_zygotes_are_replaced() -> None:
    before = set(zygotes())
    with CodeGrader() as grader:
        for attempt in range(3):
            for pid in set(zygotes()) - before:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
            assert grader.grade_code(f"total = sum  # {attempt}", CALLS).correct


def test_a_closed_grader_is_at_fault_and_the_fault_is_not_remembered() -> None:
    grader = CodeGrader()
    assert grader.grade_code("total = sum", CALLS).correct
    grader.close()
    grader.close()
    assert grader.grade_code("total = sum", CALLS).correct  # remembered
    assert grader.grade_code("total = max", CALLS).verdict is Verdict.FAULT


def test_grades_are_remembered(grader: CodeGrader) -> None:
    code = f"total = sum  # {time.time()}"
    first, second = grader.grade_code(code, CALLS), grader.grade_code(code, CALLS)
    assert first is second
    assert grader.grade_code(code, LOOP) is not first


@pytest.mark.parametrize(
    "options", [{"timeout": 0.0}, {"memory_mb": 1}, {"num_workers": 0}, {"preload": ("nope_",)}]
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be at least|nope_"):
        CodeGrader(**options)  # type: ignore[arg-type]


def test_importing_it_is_light() -> None:
    code = "import sys, elpo.graders.code; print(*{'torch', 'transformers', 'sympy'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(elpo.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert done.stdout.strip() == b""


# code blocks


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```Python3\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nor\n```py\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nprints\n```\n1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nprints\n```text\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```\n```\nx = 2\n```", "x = 2\n"),
        ("~~~python\nx = '''\n```\n'''\n~~~", "x = '''\n```\n'''\n"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''\n"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
        ("```python\r\nx = 1\r\n```\r\n", "x = 1\n"),
        ("```python\n```", ""),
        ("```python\nx = 1", None),
        ("```python\nx = 1\n```\nbetter:\n```python\nx = 2", "x = 1\n"),
        ("```java\nx\n```", None),
        ("x = 1", None),
        ("", None),
        ("```", None),
        ("text ```python\nx = 1\n```", None),
    ],
    ids=range(19),
)
def test_last_code_block(text: str, code: str | None) -> None:
    assert last_code_block(text) == code
