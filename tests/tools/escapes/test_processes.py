"""A program is alone: no other process, no signal, no trace, no privilege, no way back."""

from __future__ import annotations

import platform

import pytest

from elpo.types import ToolStatus
from tests.tools.escapes.conftest import PRELUDE, Trainer
from tests.tools.python_calls import eventually

x86_64_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code and numbers of x86_64")


def test_the_trainers_environment_is_not_there(trainer: Trainer) -> None:
    shown = trainer.open().shows("import os, sys\nprint(dict(os.environ), sys.argv, sys.orig_argv)")
    assert "7741" not in shown and "ELPO" not in shown


def test_the_answer_is_not_in_its_memory(trainer: Trainer) -> None:
    """The grader's answer never enters the process."""
    code = """
import gc, sys
word = "the-answer-is-" + str(7700 + 41)
objects = [o for o in gc.get_objects() if isinstance(o, (str, bytes, dict, list, tuple))]
texts = [t for o in objects for t in (o.items() if isinstance(o, dict) else [o])]
any(word in t for t in map(str, texts) if len(t) < 10_000 and "word" not in t)
"""
    assert trainer.open(setup="x = 1").shows(code) == "False"


def test_no_fork(trainer: Trainer) -> None:
    trainer.refuses(
        "os.fork()",
        "os.forkpty()",
        "checked(libc.fork())",
        "checked(libc.vfork())",
        "__import__('pty').fork()",
    )


@x86_64_only
def test_no_clone_by_any_flags(trainer: Trainer) -> None:
    """Sharing memory, descriptors or the parent; with and without namespaces; the newer call; by number."""
    flags = (
        0,
        17,
        0x100 | 17,
        0x400 | 17,
        0x8000 | 17,
        0x4000 | 0x100 | 17,
        0x10000000 | 17,
        0x20000000,
        0x2000 | 17,
    )
    trainer.refuses(
        *(f"syscall(56, {flag}, None, None, None, None)" for flag in flags),
        "syscall(57)",
        "syscall(58)",
        "syscall(435, ctypes.create_string_buffer(88), 88)",
        "syscall(57, 0x10000)",
    )


def test_no_program_is_started(trainer: Trainer) -> None:
    trainer.refuses(
        "os.execv('/bin/true', ['true'])",
        "os.execve(os.open('/lib/ld-linux.so.2' if 0 else os.__file__, 0), ['x'], {})",
        "__import__('subprocess').run(['/bin/true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "__import__('multiprocessing').Process(target=print).start()",
        "__import__('concurrent.futures', fromlist=['x']).ProcessPoolExecutor(1).submit(print, 1).result(1)",
        "checked(-(libc.system(b'exit 7') != 7 * 256))",
        "libc.popen(b'true', b'r') or checked(-1)",
    )


def test_no_signals(trainer: Trainer) -> None:
    trainer.refuses(
        "os.kill(trainer, 0)",
        "os.kill(trainer, 9)",
        "os.kill(os.getppid() or 1, 9)",
        "os.kill(1, 9)",
        "os.kill(-1, 9)",
        "os.killpg(0, 9)",
        "os.killpg(os.getpgrp(), 9)",
        "os.kill(os.getpid(), 19)",
        "checked(libc.sigqueue(trainer, 9, None))",
        "checked(libc.tgkill(trainer, trainer, 9))",
        "os.pidfd_open(os.getppid() or 1)",
        "os.pidfd_open(trainer)",
        "__import__('signal').pidfd_send_signal(0, 9)",
        "__import__('signal').pthread_kill(__import__('threading').get_ident(), 19)",
    )


def test_no_signals_by_way_of_descriptors(trainer: Trainer) -> None:
    trainer.refuses(
        "__import__('fcntl').fcntl(3, 8, trainer)",
        "__import__('fcntl').fcntl(0, 8, -os.getpgrp())",
        "__import__('fcntl').fcntl(0, 10, 9)",
        "__import__('fcntl').fcntl(0, 15, b'\\0' * 8)",
        "__import__('fcntl').ioctl(0, 0x8901, b'\\0' * 4)",
        "__import__('fcntl').ioctl(0, 0x8902, b'\\0' * 4)",
        "__import__('fcntl').ioctl(0, 0x5412, b'x')",
        "__import__('fcntl').ioctl(0, 0x541C, b'x')",
    )


def test_it_cannot_leave_its_group(trainer: Trainer) -> None:
    trainer.refuses("os.setsid()", "os.setpgid(0, 0)", "os.setpgrp()")


def test_no_other_process_is_traced_or_read(trainer: Trainer) -> None:
    trainer.refuses(
        "checked(libc.ptrace(16, trainer, 0, 0))",
        "checked(libc.ptrace(0x4206, os.getppid() or 1, 0, 0))",
        "checked(libc.ptrace(0, 0, 0, 0))",
        "checked(libc.process_vm_readv(trainer, vector, 1, vector, 1, 0))",
        "checked(libc.process_vm_writev(os.getpid(), vector, 1, vector, 1, 0))",
        "syscall(438, 3, 0, 0)",
        "syscall(440, 3, None, 0, 0, 0)",
        "checked(libc.prlimit(trainer, 7, (ctypes.c_long * 2)(1, 1), None))",
        setup="vector = ctypes.create_string_buffer(16)",
    )


@x86_64_only
def test_no_other_process_is_compared_or_moved(trainer: Trainer) -> None:
    trainer.refuses(
        "syscall(312, trainer, trainer, 0, 0, 0)",
        "syscall(256, trainer, 1, None, None)",
        "syscall(279, trainer, 0, None, None, None, 0)",
    )


def test_no_namespaces_no_mounts(trainer: Trainer) -> None:
    flags = (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000, 0x80)
    trainer.refuses(
        *(f"checked(libc.unshare({flag}))" for flag in flags),
        "checked(libc.setns(0, 0))",
        "checked(libc.mount(b'x', b'/tmp', b'tmpfs', 0, 0))",
        "checked(libc.umount2(b'/', 2))",
        "os.chroot('/')",
        "syscall(428, -100, b'/', 1)",
        "syscall(430, b'tmpfs', 0)",
        "syscall(442, -100, b'/', 0, None, 0)",
    )


def test_no_privileges_and_none_to_be_had(trainer: Trainer) -> None:
    code = f"""{PRELUDE}
data = (ctypes.c_uint32 * 6)()
checked(libc.capget(ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)), data))
print(list(data))
data = (ctypes.c_uint32 * 6)(*[0xffffffff] * 6)
attempt(lambda: checked(libc.capset(ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)), data)),
        lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0))
"""
    assert trainer.open().shows(code).splitlines() == ["[0, 0, 0, 0, 0, 0]", *["refused"] * 5]


def test_no_limit_is_raised(trainer: Trainer) -> None:
    limits = ("AS", "CPU", "FSIZE", "NOFILE", "CORE", "MEMLOCK", "NPROC", "STACK")
    trainer.refuses(
        *(f"r.setrlimit(r.RLIMIT_{name}, (r.RLIM_INFINITY,) * 2)" for name in limits),
        *(f"r.setrlimit(r.RLIMIT_{name}, r.getrlimit(r.RLIMIT_{name}))" for name in limits),
        setup="import resource as r",
    )


def test_no_priority_is_changed(trainer: Trainer) -> None:
    trainer.refuses(
        "os.nice(-5)",
        "os.nice(5)",
        "os.setpriority(0, 0, -5)",
        "os.sched_setscheduler(0, 1, os.sched_param(1))",
        "os.sched_setaffinity(0, {0})",
        "open('/proc/self/oom_score_adj', 'w')",
    )


def test_the_filters_cannot_be_undone(trainer: Trainer) -> None:
    allow_all = "ctypes.create_string_buffer(bytes.fromhex('06000000 0000ff7f'), 8)"
    setup = (
        "class Program(ctypes.Structure): _fields_ = [('n', ctypes.c_ushort), ('p', ctypes.c_void_p)]\n"
        f"code = {allow_all}\nprogram = Program(1, ctypes.addressof(code))\n"
    )
    number = {"x86_64": 317, "aarch64": 277}.get(platform.machine(), 317)
    trainer.refuses(
        f"syscall({number}, 1, 0, ctypes.byref(program))",
        f"syscall({number}, 1, 8, ctypes.byref(program))",
        "checked(libc.prctl(22, 2, ctypes.byref(program), 0, 0))",
        "checked(libc.prctl(22, 0, 0, 0, 0))",
        "checked(libc.prctl(38, 0, 0, 0, 0))",
        "checked(libc.prctl(4, 0, 0, 0, 0))",
        "checked(libc.prctl(1, 9, 0, 0, 0))",
        "checked(libc.prctl(36, 1, 0, 0, 0))",
        "syscall(444, None, 0, 0)",
        "open(canary)",
        setup=setup,
    )


@x86_64_only
def test_no_back_door_to_the_kernel(trainer: Trainer) -> None:
    """The 32-bit entry and the x32 numbers have tables of their own."""
    assert trainer.run(f"{PRELUDE}attempt(lambda: syscall(0x40000000 | 41, 2, 1, 0))").output == "refused"
    machine_code = """
import ctypes, mmap
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
page = libc.mmap(None, 4096, 7, 0x22, -1, 0)
ctypes.memmove(page, bytes.fromhex("b814000000cd80c3"), 8)  # mov eax, 20 (getpid); int 0x80; ret
print("DONE", ctypes.CFUNCTYPE(ctypes.c_int)(page)())
"""
    result = trainer.run(machine_code)
    assert result.status is ToolStatus.PROGRAM_ERROR and "DONE" not in result.output
    trainer.is_unharmed()


@x86_64_only
def test_no_call_that_a_computation_does_not_need(trainer: Trainer) -> None:
    """Tracing, keys, modules, clocks, quotas, host names, hardware, swap, accounting; and what will come."""
    numbers = (
        321, 298, 323, 250, 248, 249, 175, 313, 176, 246, 320, 169, 103, 167, 168, 163, 179, 443, 170, 171,
        164, 227, 305, 159, 172, 173, 154, 153, 135, 139, 212, 216, 236, 134, 180, 206, 278, 275, 276, 40,
        326, 447, 459, 461, 470, 600,
    )  # fmt: skip
    trainer.refuses(*(f"syscall({number}, 0, 0, 0, 0, 0)" for number in numbers))


def test_no_queue_of_others(trainer: Trainer) -> None:
    """System V and POSIX queues, semaphores and segments, also by a number that somebody else has made."""
    queue = trainer.facts["queue"]
    trainer.refuses(
        f"checked(libc.msgctl({queue}, 0, None))",
        f"checked(libc.msgsnd({queue}, ctypes.create_string_buffer(16), 8, 0o4000))",
        f"checked(libc.msgrcv({queue}, ctypes.create_string_buffer(16), 8, 0, 0o4000))",
        "checked(libc.msgget(0, 0o1666))",
        "checked(libc.semget(0, 1, 0o1666))",
        "checked(libc.semctl(0, 0, 0))",
        "checked(libc.semop(0, ctypes.create_string_buffer(8), 1))",
        "checked(libc.shmget(0, 4096, 0o1666))",
        "checked(-(libc.shmat(0, None, 0) == -1))",
        "checked(libc.shmctl(0, 0, None))",
        "checked(ctypes.CDLL('librt.so.1', use_errno=True).mq_unlink(b'/elpo'))",
    )


@x86_64_only
def test_no_thread_with_descriptors_of_its_own(trainer: Trainer) -> None:
    """Where descriptors could be kept that the process does not show."""
    flags = (0x10000, 0x10900, 0x10B00, 0x10D00, 0x3D0900)
    trainer.refuses(*(f"syscall(56, {flag}, None, None, None, None)" for flag in flags))


def test_nothing_is_left_of_a_session_that_was_dropped(trainer: Trainer) -> None:
    trainer.ask("forget")
    assert eventually(lambda: len(trainer.processes()) <= 15)
    for code in (
        "x = 1",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()",
        "import os; os._exit(3)",
    ):
        trainer.run(code)
    trainer.ask("forget")
    assert eventually(lambda: len(trainer.processes()) <= 15), trainer.processes()
