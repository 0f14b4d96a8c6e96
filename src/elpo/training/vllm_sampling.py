"""Sampling with vLLM in a training run: which engine, and its weights after every update."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from elpo.config import Config
from elpo.rollout.scheduler import Scheduler

if TYPE_CHECKING:
    import torch


def check_vllm(config: Config, path: str | None) -> None:
    """Whether the configured engine, if it is vLLM, can be had; before anything is loaded.

    Raises:
        ValueError: vLLM is missing or outside the range, or there is no model folder for it to load.
    """
    if config.rollout.engine != "vllm":
        return
    from elpo.engines.vllm_turns import require_vllm

    try:
        require_vllm(config.vllm.top_k)
    except ImportError as error:
        raise ValueError(f"rollout.engine is vllm, but {error}") from error
    if path is None and config.vllm.url is None:
        raise ValueError("rollout.engine is vllm, which needs model.path; the tiny model has no folder")


def with_vllm(scheduler: Scheduler, config: Config, path: str | None) -> Scheduler:
    """The scheduler on the configured vLLM engine; `path` is the model's folder or name.

    It never waits for tools between decode steps: what vLLM samples does not repeat bit for bit anyway.

    Raises:
        ValueError: there is no server at `vllm.url`.
    """
    rollout, vllm = config.rollout, config.vllm
    end_ids = (scheduler.dialogue.end_id,)
    if vllm.url is not None:
        from elpo.engines.vllm_server import VllmServerEngine

        server = VllmServerEngine(vllm.url, end_ids, rollout.num_slots, rollout.temperature, vllm.top_k)
        return replace(scheduler, engine=server, deterministic=False)
    from elpo.engines.vllm import VllmEngine

    assert path is not None, "check_vllm first"
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
