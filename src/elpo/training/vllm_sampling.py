"""Sampling with vLLM in a training run: which engine, and its weights after every update."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from elpo.config import Config
from elpo.rollout.scheduler import Scheduler

if TYPE_CHECKING:
    import torch


def check_vllm(config: Config) -> None:
    """Whether the configured engine, if it is vLLM, can be had; before anything is loaded.

    Raises:
        ValueError: vLLM is missing or outside the range, or cannot be given such weights.
    """
    if config.rollout.engine != "vllm":
        return
    from elpo.engines.vllm_turns import require_vllm

    try:
        require_vllm(config.vllm.top_k)
    except ImportError as error:
        raise ValueError(f"rollout.engine is vllm, but {error}") from error
    if config.model.lora.quantized:
        raise ValueError(
            "rollout.engine is vllm, which cannot be sent 4-bit weights; set model.lora.quantized=false, or "
            "rollout.engine=transformers"
        )


def with_vllm(scheduler: Scheduler, config: Config, model: Any) -> Scheduler:
    """The scheduler on the configured vLLM engine, for a model of the architecture of `model`.

    The engine has no weights before `sync_weights`. It never waits for tools between decode steps: what vLLM
    samples does not repeat bit for bit anyway.

    Raises:
        ValueError: there is no server at `vllm.url`, or vLLM does not take the model or an argument.
    """
    rollout, vllm = config.rollout, config.vllm
    end_ids = (scheduler.dialogue.end_id,)
    if vllm.url is not None:
        from elpo.engines.vllm_server import VllmServerEngine

        server = VllmServerEngine(vllm.url, end_ids, rollout.num_slots, rollout.temperature, vllm.top_k)
        return replace(scheduler, engine=server, deterministic=False)
    from elpo.engines.vllm import VllmEngine

    architecture = deepcopy(model.config)
    architecture.architectures = [type(model).__name__]
    arguments = {
        "max_model_len": rollout.max_tokens,
        "dtype": config.model.dtype,
        "gpu_memory_utilization": vllm.gpu_memory_utilization,
        "load_format": "dummy",
        **vllm.arguments,
    }
    with TemporaryDirectory(prefix="elpo-vllm-") as folder:
        architecture.save_pretrained(folder)
        try:
            engine = VllmEngine.start(
                folder, end_ids, rollout.num_slots, rollout.temperature, vllm.top_k, **arguments
            )
        except (ImportError, TypeError, ValueError) as error:
            raise ValueError(f"vLLM does not start: {error}") from error
    return replace(scheduler, engine=engine, deterministic=False)


def sync_weights(scheduler: Scheduler, model: torch.nn.Module) -> None:
    """Give an engine that has weights of its own those of `model`; the others sample from `model` itself."""
    load = getattr(scheduler.engine, "load_weights", None)
    if load is not None:
        load(model)
