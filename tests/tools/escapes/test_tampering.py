"""A program can lie about its own results only, and never about whose fault they are."""

from __future__ import annotations

import pytest

from elpo.types import ToolStatus
from tests.tools.escapes.conftest import Session, Trainer
from tests.tools.python_calls import eventually

INTERPRETER = """
import os, socket, struct, sys
frame = sys._getframe()
while "self" not in frame.f_locals:
    frame = frame.f_back
me = frame.f_locals["self"]
Interpreter = type(me)
assert me._control
"""
"""How a program finds the object that runs it, and with it the connection to the trusted side."""

DEAR = "import time; time.sleep(0.05)\n"
"""Calls that take long are not repeated for a branch, but forked."""

HOSTILE_ENDINGS = {
    "exit": "import os; os._exit(0)",
    "exit with code": "import os; os._exit(137)",
    "crash": "import ctypes; ctypes.string_at(0)",
    "abort": "import ctypes; ctypes.CDLL(None).abort()",
    "close everything": "import os; os.closerange(0, 1024)",
    "close the connection": INTERPRETER + "me._control.close()",
    "shut the connection down": INTERPRETER + "me._control.shutdown(2)",
    "garbage": INTERPRETER + "me._control.sendall(b'??' * 1000)",
    "a fault of its own": INTERPRETER + "me._control.sendall(b'h')",
    "half a reply": INTERPRETER + "me._control.send(b'k'); os._exit(0)",
    "refusal": INTERPRETER + "me._control.sendall(b'r0')",
    "stop": "import signal; signal.raise_signal(signal.SIGSTOP)",
    "kill": "import signal; signal.raise_signal(signal.SIGKILL)",
    "alarm": "import signal, time; signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(1)",
    "leave when spoken to": INTERPRETER
    + "import threading, select\n"
    + "threading.Thread(target=lambda: (select.select([3], [], []), os._exit(0)), daemon=True).start()",
    "no interpreter": INTERPRETER + "Interpreter._execute = None",
    "no builtins": "import builtins; builtins.__dict__.clear()",
    "no modules": "import sys; sys.modules.clear()",
    "an exception that cannot be shown": (
        "class E(BaseException):\n    def __str__(self): import os; os._exit(1)\nraise E"
    ),
    "a value that cannot be shown": "class V:\n    def __repr__(self): import os; os._exit(1)\nV()",
    "patched printing": "import traceback\ntraceback.TracebackException = None\n1/0",
}


@pytest.mark.parametrize("ending", HOSTILE_ENDINGS)
def test_no_ending_looks_like_a_fault_of_the_infrastructure(trainer: Trainer, ending: str) -> None:
    """A policy that could make its failing rollouts unusable would be spared the punishment."""
    session = trainer.open("strict").then("x = 'mine'")
    for code in (HOSTILE_ENDINGS[ending], "x"):
        result = session.call(code)
        assert result.status is not ToolStatus.INFRASTRUCTURE_FAULT, result
        session = result.after
    assert trainer.open("strict").shows("'x' in globals()") == "False"


def test_a_state_that_cannot_be_repeated_is_the_programs_doing(trainer: Trainer) -> None:
    """Its calls end differently the second time, so that no branch can be made from it."""
    turncoat = "import os, time\nif time.time() > {deadline}: os._exit(0)\nx = 1; ends = os.pipe()"
    now = float(trainer.open().shows("import time; time.time()"))
    session = trainer.open().then("y = 2", turncoat.format(deadline=now + 0.5))
    session.then("x += 1")  # takes the process along
    trainer.open().then("import time; time.sleep(0.6)")
    result = session.call("x")
    assert result.status is ToolStatus.PROGRAM_ERROR and "cannot be repeated" in result.output
    assert result.after.shows("y") == "2"
    assert result.after.call("x").status is ToolStatus.PROGRAM_ERROR


def test_snapshots_that_refuse_are_the_programs_doing(trainer: Trainer) -> None:
    """However many of them there are on the way back."""
    session = trainer.open()
    refuse = "import os, time\nstart = time.monotonic()\nfork = os.fork\n"
    refuse += "os.fork = lambda: fork() if time.monotonic() < start + 0.6 else 0\n"
    chain = [session.then(DEAR + refuse)]
    for number in range(4):
        chain.append(chain[-1].then(f"{DEAR}n = {number}"))
    trainer.open().then("import time; time.sleep(0.7)")
    for number, state in enumerate(chain[1:]):
        result = state.call("n")
        assert (result.status, result.output) == (ToolStatus.OK, str(number))


def test_a_forged_reply_is_seen(trainer: Trainer) -> None:
    """Answers to questions that were not asked yet: the program would choose the status of later calls."""
    session = trainer.open().then(INTERPRETER + "_ = me._control.sendall(b'k1' * 50)")
    result = session.call("print('is it me?')")
    assert result.status is ToolStatus.PROGRAM_ERROR
    trainer.is_unharmed()


def test_a_forged_status_is_one_a_program_could_have_had(trainer: Trainer) -> None:
    for status in (b"k1", b"e1", b"m1", b"x9", b"\x00\xff"):
        result = trainer.run(f"{INTERPRETER}me._control.sendall({status!r}); os._exit(0)")
        assert "Traceback" not in result.output
        assert result.status in (ToolStatus.OK, ToolStatus.PROGRAM_ERROR, ToolStatus.RESOURCE_LIMIT)
    trainer.is_unharmed()


def test_writing_to_every_descriptor_reaches_nobody_else(trainer: Trainer) -> None:
    other = trainer.open().then("x = 'theirs'")
    trainer.run(
        "import os\nfor fd in range(1024):\n"
        "    try: os.write(fd, b'k1forged' * 1000)\n    except OSError: pass"
    )
    assert other.shows("x") == "'theirs'"
    trainer.is_unharmed()


def test_descriptors_sent_to_the_trainer_do_not_pile_up(trainer: Trainer) -> None:
    def send(session: Session) -> None:
        code = INTERPRETER + "socket.send_fds(me._control, [b'k1'], [0] * 50)\nos._exit(0)"
        session.call(code)

    send(trainer.open())
    before = trainer.ask("descriptors")
    for _ in range(10):
        send(trainer.open())
    trainer.ask("forget")
    assert trainer.ask("descriptors") <= before + 8
    trainer.is_unharmed()


def test_descriptors_sent_by_a_branch_are_no_listener(trainer: Trainer) -> None:
    """A new session hands over the listener that decides on forks; a branch must not replace it."""
    code = (
        DEAR
        + INTERPRETER
        + """
def greet(self, descriptors):
    ends = os.pipe()
    os.write(ends[1], b"x" * 100)
    far = socket.socket(fileno=descriptors[0])
    if os.fork() == 0:
        far.sendmsg([b"h"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("2i", *ends))])
        import time; time.sleep(60)
Interpreter._fork = greet
"""
    )
    session = trainer.open().then(code)
    for _ in range(3):
        assert session.shows("1 + 1") == "2"
    trainer.is_unharmed()


def test_nobody_stays_behind_after_a_pretended_fork(trainer: Trainer) -> None:
    """Asked for a branch, a program makes a process that the trusted side does not know."""
    pretences = (
        "os.fork() or time.sleep(60); os._exit(0)",
        "os.fork() or time.sleep(60); time.sleep(60)",
        "p = os.fork() or time.sleep(60); socket.socket(fileno=d[0]).sendall(b'h'); time.sleep(60)",
    )
    before = set(trainer.processes())
    for pretence in pretences:
        code = f"{DEAR}{INTERPRETER}def pretend(self, d):\n    {pretence}\nInterpreter._fork = pretend"
        session = trainer.open().then(code)
        assert session.shows("3 * 3") == "9"
        del session
        trainer.ask("forget")
    assert eventually(lambda: len(set(trainer.processes()) - before) <= 6), trainer.processes()
    trainer.is_unharmed()


def test_a_branch_that_keeps_the_connection_of_its_origin_is_refused(trainer: Trainer) -> None:
    """With it, one branch could answer for the others."""
    code = (
        DEAR
        + INTERPRETER
        + """
x = 5
def keep(self, descriptors):
    if os.fork() == 0:
        kept = self._control
        self._control = sys.modules["elpo_sandbox.interpreter"].attach(*descriptors)
        globals()["kept"] = kept
        self._control.sendall(b"h")
    else:
        [os.close(d) for d in descriptors]
Interpreter._fork = keep
"""
    )
    session = trainer.open().then(code)
    for _ in range(3):
        assert session.shows("x, 'kept' in globals()") == "(5, False)"


def test_patched_modules_stay_in_their_session(trainer: Trainer) -> None:
    vandal = """
import builtins, json, math, os, random, sys
math.sqrt = json.dumps = builtins.len = builtins.print = lambda *a, **k: 41
sys.modules["statistics"] = sys.modules["fractions"] = None
random.seed(3); os.environ["X"] = "1"; sys.path.insert(0, "/tmp"); sys.setrecursionlimit(99)
"""
    trainer.open().then(vandal)
    check = "import fractions, math, os, random, sys, statistics\nmath.sqrt(4), len([1]), 'X' in os.environ, "
    check += "sys.path[0] == '/tmp', sys.getrecursionlimit(), round(random.random(), 3)"
    assert trainer.open().shows(check) == "(2.0, 1, False, False, 1000, 0.844)"


def test_what_is_shown_is_never_executed(trainer: Trainer) -> None:
    """Values come back as text: nothing is unpickled, evaluated or formatted on the trusted side."""
    code = "class P:\n    def __reduce__(self): return (eval, ('print(1)',))\n"
    code += "    def __repr__(self): return '{0.__class__} %s \\\\x1b[31m'\n"
    assert trainer.open().shows(code + "P()") == "{0.__class__} %s \\x1b[31m"
    assert trainer.open().shows("import os\n_ = os.write(1, bytes(range(256)))").count("\ufffd") > 100
    trainer.is_unharmed()


def test_no_program_of_a_session_reaches_another(trainer: Trainer) -> None:
    """Process ids are visible, and all sessions belong to one user."""
    other = trainer.open().then("import os\nx = 'theirs'")
    pid = other.shows("os.getpid()")
    trainer.refuses(
        f"os.kill({pid}, 0)",
        f"os.kill({pid}, 9)",
        f"checked(libc.ptrace(16, {pid}, 0, 0))",
        f"open('/proc/{pid}/mem', 'r+b')",
        f"open('/proc/{pid}/fd/3')",
        f"os.pidfd_open({pid})",
        f"checked(libc.process_vm_readv({pid}, vector, 1, vector, 1, 0))",
        setup="vector = ctypes.create_string_buffer(16)",
    )
    assert other.shows("x") == "'theirs'"
