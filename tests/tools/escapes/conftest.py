"""One trainer for each configuration, and the words the escape tests are written in."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import elpo
from elpo.types import ToolStatus
from tests.tools.escapes import configurations
from tests.tools.python_calls import eventually

HERE = Path(__file__).parent

PRELUDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def syscall(number, *arguments):
    return checked(libc.syscall(ctypes.c_long(number), *arguments))
def attempt(*functions):
    for function in functions:
        try:
            print("DONE", repr(function())[:200])
        except (NameError, TypeError, SyntaxError, AttributeError):
            raise  # a mistake in the attempt itself proves nothing
        except Exception:
            print("refused")
"""
"""What hostile programs begin with. An attempt prints `DONE` where it got through."""


@dataclass(frozen=True)
class Result:
    status: ToolStatus
    output: str
    seconds: float
    after: Session


@dataclass(frozen=True)
class Session:
    """A state of the tool inside the trainer; calling twice branches."""

    trainer: Trainer
    number: int

    def call(self, code: str) -> Result:
        answer = self.trainer.ask("call", session=self.number, code=code)
        after = Session(self.trainer, answer["session"])
        return Result(ToolStatus(answer["status"]), answer["output"], answer["seconds"], after)

    def shows(self, code: str) -> str:
        """The output of a call that must succeed."""
        result = self.call(code)
        assert result.status is ToolStatus.OK, result
        return result.output

    def then(self, *codes: str) -> Session:
        session = self
        for code in codes:
            result = session.call(code)
            assert result.status is ToolStatus.OK, result
            session = result.after
        return session


class Trainer:
    """The far end of `trainer.py`, which may run as another user."""

    def __init__(self, configuration: str, folder: Path) -> None:
        self.configuration = configuration
        python = configurations.interpreter(configuration)
        command = [sys.executable, str(HERE / "configurations.py"), configuration]
        command += [python, str(HERE / "trainer.py"), str(folder)]
        paths = [str(Path(elpo.__file__).parents[1]), sysconfig.get_path("purelib")]
        environment = {"PYTHONPATH": os.pathsep.join(paths), "PATH": os.defpath, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts: dict[str, Any] = self.ask("facts")
        self.canary: str = self.facts["canary"]

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the trainer died"
        return json.loads(line)

    def open(self, tool: str = "roomy", setup: str = "") -> Session:
        return Session(self, self.ask("open", tool=tool, setup=setup)["session"])

    def run(self, code: str, tool: str = "roomy") -> Result:
        return self.open(tool).call(code)

    def refuses(self, *attempts: str, setup: str = "") -> None:
        """Every expression must fail with an ordinary error, and the outside must not have noticed."""
        tries = "".join(f"attempt(lambda: {expression})\n" for expression in attempts)
        names = f"canary = {self.canary!r}; trainer = {self.facts['pid']}\n"
        result = self.run(f"{PRELUDE}{names}{setup}\n{tries}")
        assert result.output.splitlines() == ["refused"] * len(attempts), result
        self.is_unharmed()

    def is_unharmed(self) -> None:
        assert self.ask("harm") == []
        assert self.open().shows("6 * 7") == "42"

    def processes(self) -> dict[int, float]:
        """CPU seconds of the living processes below the zygotes, by process id."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) in self.facts["groups"] and fields[0] != "Z":
                    found[int(pid)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return found

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(10) == 0
        assert eventually(lambda: not self.processes())


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(name, marks=() if name in configurations.DEFAULT else pytest.mark.slow)
        for name in configurations.ALL
    ],
)
def trainer(request: pytest.FixtureRequest) -> Iterator[Trainer]:
    if not sys.platform.startswith("linux"):
        pytest.skip("the sandbox needs Linux")
    if reason := configurations.missing(request.param):
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="elpo-escape-"))
    folder.chmod(0o777)
    trainer = Trainer(request.param, folder)
    yield trainer
    trainer.close()
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _fresh(trainer: Trainer) -> Iterator[None]:
    yield
    trainer.ask("forget")
