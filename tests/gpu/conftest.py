"""Where the tests of this folder run: on CUDA, or where ELPO_GPU_TESTS_ON says, to try them without one."""

from __future__ import annotations

import os

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
def _from_scratch() -> None:
    """What other tests have decided about devices and compiled is forgotten."""
    AcceleratorState._reset_state(True)
    torch._dynamo.reset()
