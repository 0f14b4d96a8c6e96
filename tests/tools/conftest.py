"""The Python tool that most of its tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from elpo.tools.python import PythonTool


@pytest.fixture(scope="module")
def tool() -> Iterator[PythonTool]:
    with PythonTool(state="session", num_workers=1) as tool:
        yield tool
