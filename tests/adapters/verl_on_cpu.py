"""What verl 0.9 lacks on a machine without a GPU, for its real trainer to run there: tests only.

Importing this, as `VERL_USE_EXTERNAL_MODULES` has every process of verl do, gives it a CPU platform, its
FSDP engine on gloo, and a rollout server `on_cpu` that samples with transformers and is sent the weights
after each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import types
from collections.abc import Iterator
from typing import Any

import ray
import torch
import verl.utils.distributed
import verl.workers.engine_workers
from verl.plugin.platform import platform_manager
from verl.plugin.platform.platform_base import PlatformBase
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

device: Any = types.ModuleType("torch_cpu_as_a_device")
for zero in ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"):
    setattr(device, zero, lambda *_: 0)
for nothing in ("empty_cache", "synchronize", "set_device", "ipc_collect", "reset_peak_memory_stats"):
    setattr(device, nothing, lambda *_: None)
device.manual_seed = device.manual_seed_all = torch.manual_seed
device.get_rng_state, device.set_rng_state = torch.get_rng_state, torch.set_rng_state
device.mem_get_info = lambda *_: (1 << 30, 2 << 30)
device.current_device = lambda: 0
device.device_count = lambda: 1
device.is_available = lambda: False
device.get_device_name = lambda *_: "cpu"


class Cpu(PlatformBase):
    """verl's view of a CPU."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: device)

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def cudart(self) -> None: ...

    def get_collective_module(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def ray_resource_name(self) -> str:
        return "CPU"

    def ray_resource_options(self, num: float) -> dict[str, float]:
        return {"num_cpus": num}

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        return {}


platform_manager.PlatformRegistry.register("cpu")(Cpu)
platform_manager.set_platform(Cpu())
EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device=["cpu"])(
    FSDPEngineWithLMHead
)


def start_gloo(timeout_second: float | None = None, backend: str | None = None) -> None:
    """verl's own would name gloo twice, once for each kind of device."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "gloo",
            rank=int(os.environ.get("RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
            init_method=os.environ.get("DIST_INIT_METHOD"),
        )


verl.utils.distributed.initialize_global_process_group_ray = start_gloo
verl.workers.engine_workers.initialize_global_process_group_ray = start_gloo


class Server:
    """A rollout server: one request after the other."""

    def __init__(self, path: str) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.step = 0

    async def load(self, weights: dict[str, torch.Tensor], step: int) -> None:
        missing = self.model.load_state_dict(weights, strict=False)
        assert not missing.unexpected_keys
        self.step = step or 0

    @torch.no_grad()
    def sample(self, prompt_ids: list[int], sampling: dict[str, Any]) -> tuple[list[int], list[float]]:
        ids, logprobs = list(prompt_ids), []
        for _ in range(sampling["max_tokens"]):
            logits = self.model(torch.tensor([ids])).logits[0, -1].float() / sampling["temperature"]
            at = torch.log_softmax(logits, -1)
            token = int(torch.multinomial(at.exp(), 1))
            ids.append(token)
            logprobs.append(float(at[token]))
            if token in sampling["stop_token_ids"]:
                break
        return ids[len(prompt_ids) :], logprobs

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        ids, logprobs = self.sample(prompt_ids, sampling_params)
        await asyncio.sleep(0)
        return TokenOutput(
            token_ids=ids,
            log_probs=logprobs,
            stop_reason="completed",
            extra_fields={"global_steps": self.step},
        )

    async def nothing(self, *_: Any, **__: Any) -> None: ...

    wake_up = sleep = abort_all_requests = resume_generation = nothing
    clear_kv_cache = release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing


class Replica(RolloutReplica):
    async def launch_servers(self) -> None:
        options = {"name": f"on_cpu_{self.replica_rank}", "num_cpus": 0.1}
        server = ray.remote(Server).options(**options).remote(self.model_config.path)
        self.servers, self._server_handle, self._server_address = [server], server, "on_cpu"


class Adapter(base.BaseRollout):
    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(self, weights: Any, *_: Any, **rest: Any) -> None:
        whole = {
            name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu().clone()
            for name, value in weights
        }
        await ray.get_actor("on_cpu_0").load.remote(whole, rest.get("global_steps"))


RolloutReplicaRegistry.register("on_cpu", lambda: Replica)
base._ROLLOUT_REGISTRY["on_cpu", "async"] = f"{__name__}.Adapter"
