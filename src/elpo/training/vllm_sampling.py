"""Sampling with vLLM in a training run: which engine, and its weights after every update."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from elpo.config import Config
from elpo.rollout.scheduler import Scheduler

if TYPE_CHECKING:
    import torch


def with_vllm(scheduler: Scheduler, config: Config, path: str | None) -> Scheduler:
    """The scheduler on the configured vLLM engine; `path` is the model's folder or name.

    It never waits for tools between decode steps: what vLLM samples does not repeat bit for bit anyway.

    Raises:
        ImportError: vLLM is missing or outside the range.
        ValueError: there is no model folder for vLLM to load, or no server at `vllm.url`.
    """
    rollout, vllm = config.rollout, config.vllm
    end_ids = (scheduler.dialogue.end_id,)
    if vllm.url is not None:
        from elpo.engines.vllm_server import VllmServerEngine

        server = VllmServerEngine(vllm.url, end_ids, rollout.num_slots, rollout.temperature, vllm.top_k)
        return replace(scheduler, engine=server, deterministic=False)
    if path is None:
        raise ValueError("rollout.engine is vllm, which needs model.path; the tiny model has no folder")
    from elpo.engines.vllm import VllmEngine

    engine = VllmEngine.start(
        path,
        end_ids,
        rollout.num_slots,
        rollout.temperature,
        vllm.top_k,
        max_model_len=rollout.max_tokens,
        dtype=config.model.dtype,
        gpu_memory_utilization=vllm.gpu_memory_utilization,
    )
    return replace(scheduler, engine=engine, deterministic=False)


def sync_weights(scheduler: Scheduler, model: torch.nn.Module) -> None:
    """Give an engine that has weights of its own those of `model`; the others sample from `model` itself."""
    load = getattr(scheduler.engine, "load_weights", None)
    if load is not None:
        load(model)
