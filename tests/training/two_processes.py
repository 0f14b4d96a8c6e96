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


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_two_processes(folder: Path, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns in each of two processes; an error of one is an error here."""
    port = free_port()
    children = [_child(folder, work, rank, port) for rank in range(NUM)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    found = [pickle.loads((folder / f"rank-{rank}.pickle").read_bytes()) for rank in range(NUM)]
    for rank, (status, value) in enumerate(zip(statuses, found, strict=True)):
        assert status == 0, f"process {rank}: {value}"
    return found


def accelerator(sharded: bool) -> Any:
    """Of a process: with DDP, or with FSDP2, which accelerate by itself uses on GPUs only."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    made: Any = Accelerator(cpu=True)
    if sharded:
        made.state.distributed_type = DistributedType.FSDP
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
    return made


def _child(folder: Path, work: Callable[[], Any], rank: int, port: int) -> int:
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
        value = work()
        status = 0
    except BaseException:
        value = traceback.format_exc()
    finally:
        (folder / f"rank-{rank}.pickle").write_bytes(pickle.dumps(value))
        os._exit(status)
