"""How a run was launched: one process, several with a whole model each (DDP), or with a part each (FSDP2)."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from elpo.config import Config
from elpo.training.assembly import choose_device
from elpo.training.model_loading import autocast_dtype

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others' rollouts; of one that has died it hears at once."""


def make_accelerator(config: Config) -> Accelerator:
    """Join the processes that a launcher has started, as its environment says.

    Deviation from accelerate: FSDP2 works on CPUs too, where accelerate would quietly take DDP for it; and
    every process reads the weights (no `fsdp_cpu_ram_efficient_loading`), for a whole copy to sample from.

    Raises:
        ValueError: `run.device` asks for CUDA where there is none, or the launcher for something that this
            trainer does not do (FSDP1, DeepSpeed, Megatron).
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    choose_device(config.run.device)
    _check_launch()
    sharded = _asked("ACCELERATE_USE_FSDP")
    if sharded:
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    accelerator = Accelerator(
        # without an accelerator they would otherwise each believe to be alone
        cpu=config.run.device == "cpu" or not torch.accelerator.is_available(),
        mixed_precision="no" if autocast_dtype(config.model) is None else "bf16",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if sharded and accelerator.num_processes > 1 and accelerator.distributed_type == "MULTI_CPU":
        _shard_on_cpu(accelerator)
    return accelerator


def _asked(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


def _check_launch() -> None:
    version = os.environ.get("FSDP_VERSION", "1")
    if _asked("ACCELERATE_USE_FSDP") and version != "2":
        raise ValueError(f"FSDP version {version} is not supported; launch with --fsdp_version 2")
    for name in ("DeepSpeed", "Megatron_LM"):
        if _asked(f"ACCELERATE_USE_{name.upper()}"):
            raise ValueError(f"{name} is not supported; launch with --use_fsdp --fsdp_version 2 instead")


def _shard_on_cpu(accelerator: Accelerator) -> None:
    """What `AcceleratorState` does on GPUs only."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()  # as the launcher's environment says
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
