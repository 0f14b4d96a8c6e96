"""Of gpu.py: turns sampled by each engine, many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gpu_parts import Clock
from gpu_training import head_size

from elpo.interfaces import TurnRequest
from elpo.training.plan import Device


@contextmanager
def transformers_engine(model: Any, mode: str, slots: int, length: int) -> Iterator[Any]:
    """The engine on the model under training."""
    from elpo.engines.transformers import TransformersEngine

    autocast = torch.bfloat16 if mode == "all weights" and model.device.type == "cuda" else None
    yield TransformersEngine(model.eval(), (), slots, autocast=autocast)


@contextmanager
def vllm_engine(model: Any, mode: str, slots: int, length: int) -> Iterator[Any]:
    """vLLM beside it, in bfloat16, with its weights."""
    from copy import deepcopy
    from tempfile import TemporaryDirectory

    from elpo.engines.vllm import VllmEngine

    architecture = deepcopy(model.config)
    architecture.architectures = [type(model).__name__]
    with TemporaryDirectory() as folder:
        architecture.save_pretrained(folder)
        engine = VllmEngine.start(
            folder,
            (),
            slots,
            load_format="dummy",
            dtype="bfloat16",
            max_model_len=length,
            gpu_memory_utilization=0.4,
        )
    try:
        engine.load_weights(model)
        yield engine
    finally:
        engine.close()


ENGINES = {"transformers": transformers_engine, "vLLM": vllm_engine}


def sample_all(engine: Any, vocab: int, num: int, prompt: int, tokens: int) -> int:
    """`num` turns of `tokens` tokens at once, in groups of 16 with a random prompt each; returns tokens."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, vocab, prompt) for _ in range(-(-num // 16))]
    for i in range(num):
        engine.submit(TurnRequest(i, i // 16, prompts[i // 16], tokens, seed=i))
    total = done = 0
    while done < num:
        for turn in engine.step():
            total += len(turn.token_ids)
            done += 1
            engine.release(turn.rollout)
    for group in range(len(prompts)):
        engine.forget(group)
    return total


def measure_rollouts(
    name: str,
    model: Any,
    mode: str,
    clock: Clock,
    rates: Device | None,
    slots: int,
    prompt: int,
    tokens: int,
) -> dict[str, Any]:
    """One row of the table; as many turns at a time as there are slots."""
    clock.require_time()
    config = model.config
    with ENGINES[name](model, mode, slots, prompt + tokens) as engine:
        sample_all(engine, config.vocab_size, slots, prompt, 4)
        clock.start_peak()
        before = engine.counts.decode_steps
        seconds, total = clock.seconds(lambda: sample_all(engine, config.vocab_size, slots, prompt, tokens))
        steps = engine.counts.decode_steps - before
    weights = 2 * sum(p.numel() for name, p in model.named_parameters() if ".lora_" not in name)
    of_context = 4 * config.num_key_value_heads * head_size(config) * config.num_hidden_layers
    least = tokens * (weights + slots * (prompt + tokens / 2) * of_context)  # bytes, in bfloat16
    return {
        "seconds": seconds,
        "tokens_per_second": total / seconds,
        "decode_steps_per_second": steps / seconds,
        "bandwidth_share": least / rates.bandwidth / seconds if rates else None,
        "peak_gb": clock.peak_gb(),
    }
