"""The Python tool over thousands of calls: real ones give what was recorded, hostile ones leave nothing."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from elpo.tools.python import PythonTool
from elpo.types import ToolStatus
from tests.tools.python_calls import LINUX_ONLY
from tests.tools.recorded_calls import FOLDER, PRELOAD, recorded_calls, replay
from tests.tools.soak import SoakReport, soak

pytestmark = LINUX_ONLY


@pytest.mark.slow
def test_recorded_calls_give_what_was_recorded() -> None:
    if not FOLDER.exists():
        pytest.skip(f"no {FOLDER}; set ELPO_SHARED_DATA to a folder that has it")
    calls = recorded_calls()
    assert len(calls) == 2636
    with PythonTool(preload=PRELOAD) as tool:
        found = replay(tool, calls)
    assert found.different == []
    assert found.num_equal == 2636 - found.num_failures_recorded
    assert found.num_failures_repeated == found.num_failures_recorded <= 4
    assert found.statuses[ToolStatus.INFRASTRUCTURE_FAULT] == 0


def holds(report: SoakReport, num_calls: int) -> None:
    assert report.num_calls == num_calls
    assert report.wrong == []
    assert report.num_zygotes_killed >= num_calls // 1500
    assert report.statuses[ToolStatus.INFRASTRUCTURE_FAULT] == 0
    assert report.memory_growth_mb < 64
    assert report.descriptors_left <= 16  # spares
    assert (report.processes_left, report.zombies, report.files_left) == (0, 0, 0)


@pytest.mark.slow
def test_ten_thousand_good_bad_and_hostile_calls() -> None:
    """In a process of its own: in this one the growth of memory would be that of the tests before as well."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        holds(process.submit(soak, 10_000).result(), 10_000)


def test_some_good_bad_and_hostile_calls() -> None:
    holds(soak(300, num_threads=4, kill_every=150), 300)
