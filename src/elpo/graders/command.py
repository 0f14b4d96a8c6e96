"""Grading by a command of the user's: exit status 0 is success.

The command runs as the user, outside the sandbox. What the policy wrote reaches it as JSON on its standard
input, never as part of the command line.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from elpo.graders.grade import Grade, Verdict

TEMPORARY_FAILURE = 75
"""The exit status (EX_TEMPFAIL of sysexits.h) by which a command says that it could not judge."""


class CommandGrader:
    """Runs `command` (split as a shell would, but without one). Thread-safe.

    A command that cannot be started, is killed by a signal, takes longer than `timeout` seconds or exits
    with `TEMPORARY_FAILURE` has not judged: a fault. Every other status but 0 is a failure of the policy.

    Raises:
        ValueError: there is no such program.
    """

    def __init__(self, command: str, timeout: float = 60.0) -> None:
        self._arguments = shlex.split(command)
        if not self._arguments or shutil.which(self._arguments[0]) is None:
            raise ValueError(
                f"{command!r}: there is no such program; a shell is only used if named: sh -c '...'"
            )
        self._timeout = timeout

    def grade(self, trajectory: Mapping[str, Any]) -> Grade:
        """Judge a trajectory, given to the command as one JSON object."""
        try:
            done = subprocess.run(
                self._arguments,
                input=json.dumps(trajectory).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self._timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Grade(Verdict.FAULT, detail=f"the command took longer than {self._timeout:g} s")
        except OSError as error:
            return Grade(Verdict.FAULT, detail=f"the command did not run: {error}")
        said = done.stdout.decode("utf-8", "replace").strip()[-500:]
        if done.returncode < 0 or done.returncode == TEMPORARY_FAILURE:
            return Grade(Verdict.FAULT, detail=f"the command ended with status {done.returncode}: {said}")
        if done.returncode:
            return Grade(Verdict.WRONG, detail=said)
        return Grade(Verdict.CORRECT, score=1.0, detail=said)
