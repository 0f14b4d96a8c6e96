"""What a run will need: memory of each device, and time, estimated from the recipe and the model's sizes.

Sizes are exact, being counted on a model without memory. Memory is what tensors take, without the
allocator's slack and the libraries' own. Time is a rough guess from the device's published rates and the
shares of them below, which are assumptions and not measurements; it is meant to tell an hour from a day.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elpo.config import Config
from elpo.models.tiny import MAX_VOCAB_SIZE, tiny_architecture


@dataclass(frozen=True)
class Device:
    """Published rates: memory in bytes, operations and bytes a second (bfloat16, dense)."""

    memory: float
    flops: float
    bandwidth: float


DEVICES = {
    "rtx4090": Device(24e9, 165e12, 1.0e12),
    "a100": Device(80e9, 312e12, 2.0e12),
    "h100": Device(80e9, 989e12, 3.3e12),
    "h200": Device(141e9, 989e12, 4.8e12),
    "cpu": Device(16e9, 5e10, 2e10),  # two cores of a server, float32
}

TRAINING_SHARE = 0.35
"""Of a device's operations that training is assumed to reach."""

DECODING_SHARE = 0.5
"""Of a device's bandwidth that decoding is assumed to reach."""

SECONDS_PER_LAYER = 1e-3
"""What a decode step costs in launching kernels, which plain transformers does one by one (CPU: included)."""

CONTEXT_SHARE = 8
"""A rollout is assumed to sample one in so many of `rollout.max_tokens`; twice that is trained on."""


@dataclass(frozen=True)
class Plan:
    """The estimate; bytes for each device by what they are for, seconds by phase."""

    num_weights: int
    num_trained: int
    bytes_at_rest: dict[str, float] = field(default_factory=dict)
    bytes_in_training: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def peak_bytes(self) -> float:
        """At rest and in training; sampling needs little beside its cache."""
        return sum(self.bytes_at_rest.values()) + sum(self.bytes_in_training.values())

    @property
    def total_seconds(self) -> float:
        """Of the whole run."""
        return sum(self.seconds.values())


def plan(config: Config, device: Device, num_processes: int = 1, sharded: bool = False) -> Plan:
    """Estimate what `config` needs on `num_processes` devices; `sharded` spreads weights over them (FSDP).

    Raises:
        ValueError: the model's configuration cannot be had.
    """
    architecture, model = _shapes(config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    width = 2 if config.model.dtype == "bfloat16" else 4
    share = num_processes if sharded else 1
    autocast = width == 2 and not config.model.lora.rank
    frozen_width = 0.55 if config.model.lora.quantized else width  # with the scales of its blocks
    text = architecture.get_text_config()
    at_rest = {
        "frozen weights": frozen * frozen_width / share,
        "trained weights, float32": trained * 4 / share,
        "their gradients": trained * 4 / share,
        "optimizer (AdamW)": trained * 8 / share,
        "weights that RL began with": trained * 4 / share if config.algorithm.loss.kl_weight else 0.0,
        "whole copy for sampling": (trained + frozen) * width if sharded else 0.0,
        "keys and values of the slots": config.rollout.num_slots
        * _capacity(config.rollout.max_tokens)
        * _cache_bytes(text, width),
        "kept prefixes": config.rollout.prefix_cache_mb * 2.0**20,
    }
    in_training = {
        "activations": activation_bytes(text, config, width),
        "logits": 3 * 4.0 * _logits(text.vocab_size, max(config.rl.microbatch_tokens, 1)),
        "weights cast to bfloat16": trained * 2.0 / share if autocast else 0.0,
    }
    at_rest, in_training = ({k: v for k, v in part.items() if v} for part in (at_rest, in_training))
    seconds = _seconds(config, device, num_processes, trained, frozen, width, text)
    return Plan(trained + frozen, trained, at_rest, in_training, seconds)


def activation_bytes(text: Any, config: Config, width: int) -> float:
    """What the forward pass of a micro-batch keeps for the backward pass.

    Of every layer: what enters its norms (residual stream, float32 where weights are), its projections and
    its activation function. With checkpointing only what enters each layer, and one layer as a whole.
    """
    tokens = max(config.rl.microbatch_tokens, config.sft.microbatch_tokens * bool(config.sft.num_steps))
    hidden, inner = text.hidden_size, text.intermediate_size
    head = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    stream = 2 if config.model.dtype == "bfloat16" and config.model.lora.rank else 4
    layer = stream * 6 * hidden + width * (2 * hidden + 4 * queries + 6 * keys + 4 * inner)
    if config.model.gradient_checkpointing:
        return float(tokens * (text.num_hidden_layers * stream * hidden + layer))
    return float(tokens * text.num_hidden_layers * layer)


def _shapes(config: Config) -> tuple[Any, Any]:
    """The model's configuration, and the model itself without memory, adapters included."""
    import torch
    from transformers import AutoModelForCausalLM

    from elpo.models.lora import add_lora
    from elpo.training.model_check import read_architecture

    if config.model.path is not None:
        folder = Path(config.model.path).expanduser()  # one with a config.json and nothing else will do
        architecture = read_architecture(str(folder) if folder.exists() else config.model.path)
    else:
        architecture = tiny_architecture(
            config.model.tiny, MAX_VOCAB_SIZE
        )  # a bound: there is no tokenizer yet
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(architecture)
        if config.model.lora.rank:
            add_lora(model, config.model.lora, seed=0)
    return architecture, model


def _capacity(max_tokens: int) -> int:
    """Positions that the engine's cache has room for, once a context has been that long."""
    capacity = 256
    while capacity < max_tokens:
        capacity *= 2
    return capacity


def _cache_bytes(text: Any, width: float) -> float:
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return float(2 * text.num_key_value_heads * head * text.num_hidden_layers * width)


def _logits(vocab_size: int, tokens: int) -> float:
    from elpo.training.learner import MAX_LOGITS

    return float(min(MAX_LOGITS, vocab_size * tokens))


def _seconds(
    config: Config, device: Device, num_processes: int, trained: int, frozen: int, width: int, text: Any
) -> dict[str, float]:
    weights = trained + frozen
    rl, rollout = config.rl, config.rollout
    sampled = rollout.max_tokens / CONTEXT_SHARE
    rate = device.flops * TRAINING_SHARE
    # forward 2, gradient of inputs 2, of trained weights 2, forward again 2
    work = 4 * weights + 2 * trained + 2 * weights * config.model.gradient_checkpointing
    overhead = 0.0 if device is DEVICES["cpu"] else text.num_hidden_layers * SECONDS_PER_LAYER
    read = weights * width + rollout.num_slots * sampled * _cache_bytes(text, width)
    bandwidth = device.bandwidth * DECODING_SHARE
    decode_step = overhead + max(read / bandwidth, 2.0 * weights * rollout.num_slots / rate)

    def sampling(num_rollouts: float) -> float:
        mine = num_rollouts / num_processes
        return mine * sampled / min(rollout.num_slots, max(1.0, mine)) * decode_step

    rollouts = rl.problems_per_step * config.algorithm.num_rollouts
    evaluation = config.evaluation
    num_evaluations = 2 + (rl.num_steps // evaluation.every if evaluation.every else 0)
    sft_tokens = config.sft.num_steps * config.sft.batch_size * sampled * 2
    return {
        "cold start": sft_tokens / num_processes * work / rate,
        "rollouts": rl.num_steps * sampling(rollouts),
        "updates": rl.num_steps * rl.num_epochs * rollouts / num_processes * sampled * 2 * work / rate,
        "evaluations": num_evaluations * sampling(evaluation.num_problems * evaluation.samples_per_problem),
    }
