"""Grading by a regular expression, in a worker that can be killed: some patterns never end on some texts."""

from __future__ import annotations

import re
from typing import Any

from elpo.graders.grade import Grade, Verdict
from elpo.graders.workers import WorkerDied, Workers, WorkersUnavailable


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Search `text` for `pattern`; `found` is what matched, or null. Runs in a worker."""
    match = re.search(request["pattern"], request["text"], re.MULTILINE)
    return {"found": match and match[0]}


class RegexGrader:
    """A text is right where `pattern` is found in it; `^` and `$` match at every line. Thread-safe.

    Raises:
        ValueError: `pattern` is no regular expression.
    """

    def __init__(self, pattern: str, timeout: float = 5.0, num_workers: int = 1) -> None:
        try:
            re.compile(pattern, re.MULTILINE)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        self._pattern = pattern
        self._workers = Workers(__name__, num_workers=num_workers, timeout=timeout, memory_mb=512)

    def grade(self, text: str) -> Grade:
        """Judge a text."""
        try:
            found = self._workers.ask({"pattern": self._pattern, "text": text}).get("found")
        except TimeoutError as error:
            return Grade(Verdict.TIMEOUT, detail=str(error))
        except WorkerDied as error:
            return Grade(Verdict.RESOURCE_LIMIT, detail=str(error))
        except WorkersUnavailable as error:
            return Grade(Verdict.FAULT, detail=str(error))
        if found is None:
            return Grade(Verdict.WRONG, detail="the pattern is not found")
        return Grade(Verdict.CORRECT, str(found), 1.0)

    def close(self) -> None:
        """End the workers."""
        self._workers.close()
