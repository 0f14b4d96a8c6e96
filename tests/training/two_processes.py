"""Two processes that train the smallest policy together, forked from this one and joined by gloo on a CPU."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM = 2

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What `accelerate launch --config_file examples/accelerate/fsdp2.yaml` tells the processes."""


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_two_processes(folder: Path, work: Callable[[], Any], sharded: bool = False) -> list[Any]:
    """What `work` returns in each of two processes; an error of one is an error here."""
    found = ends_of_two_processes(folder, work, sharded)
    for rank, (status, value) in enumerate(found):
        assert status == 0, f"process {rank}: {value}"
    return [value for _, value in found]


def ends_of_two_processes(
    folder: Path, work: Callable[[], Any], sharded: bool = False
) -> list[tuple[int, Any]]:
    """How each of two processes ended: the status that `os.waitpid` gives, and what `work` returned, or the
    traceback, or None where it was killed."""
    port = free_port()
    children = [_child(folder, work, rank, port, sharded) for rank in range(NUM)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    files = [folder / f"rank-{rank}.pickle" for rank in range(NUM)]
    values = [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]
    for file in files:
        file.unlink(missing_ok=True)
    return list(zip(statuses, values, strict=True))


def _child(folder: Path, work: Callable[[], Any], rank: int, port: int, sharded: bool) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    status, value = 1, None
    try:
        import torch
        from accelerate.state import AcceleratorState, GradientState, PartialState

        torch.set_num_threads(1)
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()
        about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": NUM, "LOCAL_WORLD_SIZE": NUM}
        os.environ.update({name: str(value) for name, value in about.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
        if sharded:
            os.environ.update(FSDP2)
        value = work()
        status = 0
    except BaseException:
        value = traceback.format_exc()
    finally:
        (folder / f"rank-{rank}.pickle").write_bytes(pickle.dumps(value))
        os._exit(status)
