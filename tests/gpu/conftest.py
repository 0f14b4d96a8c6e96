"""Where the tests of this folder run: on CUDA, or where ELPO_GPU_TESTS_ON says, to try them without one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState


@pytest.fixture
def device() -> torch.device:
    chosen = torch.device(os.environ.get("ELPO_GPU_TESTS_ON", "cuda"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    return chosen


@pytest.fixture(autouse=True)
def _from_scratch() -> Iterator[None]:
    """What other tests have decided about devices is forgotten; what they have compiled is kept, and may be
    more than one run would need.
    """
    AcceleratorState._reset_state(True)
    with torch._dynamo.config.patch(recompile_limit=64):
        yield
