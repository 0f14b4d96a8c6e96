"""The circumstances under which the sandbox has to hold, and a launcher that creates them.

    python configurations.py docker python trainer.py

as_is      whoever runs the tests, with all the host permits (root: namespaces without a user namespace)
ordinary   an ordinary user: nothing but what every process may do
docker     Docker's default policy: its 14 capabilities, a filter against namespaces, mounts and the like
container  both of the last two: an ordinary user in a container
bare       a kernel without Landlock, in such a container: no file can be hidden but by refusing to open any
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
import sysconfig

DEFAULT = ("as_is", "bare")  # what the host permits, and the least there may be; the others are slow tests
ALL = (*DEFAULT, "ordinary", "docker", "container")
_NOBODY = 65534

_LOAD, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x50000
_CLONE_NEW_ANY = 0x7E020000
_CLONE, _SECCOMP = {"x86_64": (56, 317), "aarch64": (220, 277)}.get(platform.machine(), (0, 0))
_LANDLOCK = (444, 445, 446)
_NEW = (425, 426, 427, 428, 429, 430, 438)
_DOCKER_REFUSES = {  # unshare, mount, umount2, setns, pivot_root, bpf, perf_event_open, userfaultfd, kcmp...
    "x86_64": (272, 165, 166, 308, 155, 321, 298, 323, 312, 304, 250, 248, 249, *_NEW),
    "aarch64": (97, 40, 39, 268, 41, 280, 241, 282, 272, 265, 219, 217, 218, *_NEW),
}
_DOCKER_CAPABILITIES = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}
_libc = ctypes.CDLL(None, use_errno=True)


def missing(name: str) -> str:
    """Why this host cannot offer a configuration; empty if it can."""
    if platform.machine() not in _DOCKER_REFUSES:
        return f"no system call table for {platform.machine()}"
    if name in ("ordinary", "container") and os.getuid() == 0:
        import elpo

        for path in (
            interpreter(name),
            os.path.dirname(elpo.__file__),
            sysconfig.get_path("purelib"),
            __file__,
        ):
            if not _reachable(path):
                return f"an ordinary user cannot read {path} here"
    return ""


def interpreter(name: str) -> str:
    """The Python to run the trainer with: this one, or where its user cannot read that, another like it."""
    if name in ("ordinary", "container") and os.getuid() == 0 and not _reachable(sys.executable):
        version = f"python3.{sys.version_info.minor}"
        others = (f"{folder}/{version}" for folder in ("/usr/bin", "/usr/local/bin"))
        return next((path for path in others if os.path.exists(path) and _reachable(path)), sys.executable)
    return sys.executable


def enter(name: str) -> None:
    """Put this process, and what it starts, into a configuration for good."""
    if name in ("docker", "container", "bare"):
        if os.getuid() == 0:
            for capability in set(range(41)) - _DOCKER_CAPABILITIES:
                _libc.prctl(24, capability, 0, 0, 0)
        _install(_docker_policy(without_landlock=name == "bare"))
    if name in ("ordinary", "container") and os.getuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)


def _docker_policy(*, without_landlock: bool) -> bytes:
    def refuse(number: int, error: int) -> bytes:
        return _op(_JEQ, number, 0, 1) + _op(_RET, _ERRNO | error)

    program = _op(_LOAD, 0)
    program += b"".join(refuse(number, errno.EPERM) for number in _DOCKER_REFUSES[platform.machine()])
    program += refuse(435, errno.ENOSYS)  # clone3
    if without_landlock:
        program += b"".join(refuse(number, errno.ENOSYS) for number in _LANDLOCK)
    program += _op(_JEQ, _CLONE, 0, 4) + _op(_LOAD, 16) + _op(_JSET, _CLONE_NEW_ANY, 0, 1)
    return program + _op(_RET, _ERRNO | errno.EPERM) + _op(_RET, _ALLOW) + _op(_RET, _ALLOW)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _install(program: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    buffer = ctypes.create_string_buffer(program, len(program))
    description = Program(len(program) // 8, ctypes.addressof(buffer))
    if os.getuid():
        _libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS; root may do without, and Docker does
    if _libc.syscall(_SECCOMP, 1, 0, ctypes.byref(description)) < 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _reachable(path: str) -> bool:
    path = os.path.realpath(path)
    while True:
        mode = os.stat(path).st_mode
        if not mode & 0o004 or (os.path.isdir(path) and not mode & 0o001):
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


if __name__ == "__main__":
    enter(sys.argv[1])
    os.execv(sys.argv[2], sys.argv[2:])
