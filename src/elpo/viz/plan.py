"""An estimate of memory and time as text."""

from __future__ import annotations

from collections.abc import Mapping

from elpo.training.plan import Plan


def render_plan(plan: Plan, device: str, memory: float, num_processes: int) -> str:
    """What each device needs, whether that fits into its `memory` (bytes), and how long it may take."""
    need = plan.peak_bytes
    room = "fits" if need < 0.9 * memory else "is tight" if need < memory else "does NOT fit"
    lines = [
        f"weights: {plan.num_weights / 1e9:.3g} billion, trained: {plan.num_trained / 1e9:.3g} billion",
        "",
        f"memory of each {device}: {need / 1e9:.1f} GB {room} into {memory / 1e9:.0f} GB",
        *_table(plan.bytes_at_rest | plan.bytes_in_training, 1e9, "GB"),
        "",
        f"time on {num_processes} x {device}, a guess: {plan.total_seconds / 60:.0f} minutes",
        *_table(plan.seconds, 60, "min"),
    ]
    if room != "fits":
        lines += ["", f"to need less: {'; '.join(_remedies(plan))}"]
    return "\n".join(lines)


def _table(parts: Mapping[str, float], unit: float, name: str) -> list[str]:
    return [f"  {part:30} {value / unit:10.2f} {name}" for part, value in parts.items() if value]


def _remedies(plan: Plan) -> list[str]:
    """What helps against the largest part first."""
    helps = {
        "activations": "model.gradient_checkpointing=true, or smaller rl.microbatch_tokens",
        "keys and values of the slots": "fewer rollout.num_slots, or shorter rollout.max_tokens",
        "kept prefixes": "smaller rollout.prefix_cache_mb",
        "optimizer (AdamW)": "model.lora.rank=16, or more devices with --sharded",
        "frozen weights": "model.dtype=bfloat16, or model.lora.quantized=true",
    }
    parts = plan.bytes_at_rest | plan.bytes_in_training
    return [helps[part] for part in sorted(parts, key=lambda part: -parts[part]) if part in helps][:3]
