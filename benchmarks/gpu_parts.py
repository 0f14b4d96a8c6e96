"""What both parts of gpu.py share: models with the shapes of published ones, time, memory, failures."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from elpo.config import LoraConfig
from elpo.training.plan import DEVICES, Device

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 64, "inner": 128, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 3000},
    # SmolLM2-135M, Qwen2.5-0.5B and Llama-3.2-1B as published
    "0.1B": {"hidden": 576, "inner": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "vocab": 49_152},
    "0.5B": {"hidden": 896, "inner": 4864, "layers": 24, "heads": 14, "kv_heads": 2, "vocab": 151_936},
    "1B": {"hidden": 2048, "inner": 8192, "layers": 16, "heads": 32, "kv_heads": 8, "vocab": 128_256},
}
MODES = ("all weights", "adapters")


def build_model(size: str, mode: str, device: torch.device) -> Any:
    """A model of the shape with random weights, as the project trains it in the mode."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from elpo.models.lora import add_lora
    from elpo.training.model_loading import cast_weights

    shape = SHAPES[size]
    configuration, architecture = (
        (Qwen2Config, Qwen2ForCausalLM) if size == "0.5B" else (LlamaConfig, LlamaForCausalLM)
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = architecture(
            configuration(
                vocab_size=shape["vocab"],
                hidden_size=shape["hidden"],
                intermediate_size=shape["inner"],
                num_hidden_layers=shape["layers"],
                num_attention_heads=shape["heads"],
                num_key_value_heads=shape["kv_heads"],
                max_position_embeddings=32_768,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    if mode == "adapters":
        cast_weights(model, torch.bfloat16)
        add_lora(model, LoraConfig(rank=16), seed=0)
        model.to(device)
    return model


class Clock:
    """Seconds of device work, its peak of memory, and the time left."""

    def __init__(self, device: torch.device, minutes: float) -> None:
        self.cuda = device.type == "cuda"
        self._ends = time.perf_counter() + 60 * minutes

    def require_time(self) -> None:
        if time.perf_counter() > self._ends:
            raise TimeoutError("no time was left (--minutes)")

    def seconds(self, work: Callable[[], Any]) -> tuple[float, Any]:
        self._wait()
        started = time.perf_counter()
        found = work()
        self._wait()
        return time.perf_counter() - started, found

    def start_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 1e9 if self.cuda else None

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


@contextmanager
def noted(rows: list[dict[str, Any]], **cell: Any) -> Iterator[dict[str, Any]]:
    """A row of the table; what goes wrong stands in it."""
    row: dict[str, Any] = dict(cell)
    rows.append(row)
    gc.collect()  # of the part before
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        yield row
    except Exception as error:  # out of memory, no kernel, no package: each raises its own
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        row["failed"] = f"{type(error).__name__}: {reason}"[:300]
        print(cell, row["failed"], flush=True)


def published_rates(device: torch.device) -> Device | None:
    """Those of `elpo plan`, by the device's name."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower().replace(" ", "")
    return next((rates for key, rates in DEVICES.items() if key in name), None)
