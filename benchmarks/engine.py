"""Tokens per second of the engine against transformers' own ways to sample from the same model.

    python benchmarks/engine.py

Groups of 16 samples of each prompt are drawn by the engine, by `generate` (static batches that wait for
their longest row) and by transformers' continuous batching (`generate_batch`), in one process and one run,
so that ratios mean something. Every row stops at the end token or after --tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from report import arguments, publish

from elpo.config import TinyModelConfig
from elpo.engines.transformers import TransformersEngine
from elpo.interfaces import TurnRequest
from elpo.models.tiny import build_tiny
from elpo.tasks.ledger import LedgerTask


def engine_tokens(model: Any, end: int, prompts: list[np.ndarray], tokens: int, slots: int) -> int:
    engine = TransformersEngine(model, (end,), slots)
    for i, prompt in enumerate(prompts):
        engine.submit(TurnRequest(i, i // 16, prompt, tokens, seed=i))
    total = done = 0
    while done < len(prompts):
        for turn in engine.step():
            total += len(turn.token_ids)
            done += 1
            engine.release(turn.rollout)
    return total


def generate_tokens(model: Any, end: int, prompts: list[np.ndarray], tokens: int, slots: int) -> int:
    total = 0
    for start in range(0, len(prompts), slots):
        batch = prompts[start : start + slots]
        width = max(map(len, batch))
        ids = torch.full((len(batch), width), end)
        mask = torch.zeros(len(batch), width, dtype=torch.int64)
        for i, prompt in enumerate(batch):
            ids[i, width - len(prompt) :] = torch.from_numpy(prompt)
            mask[i, width - len(prompt) :] = 1
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=True,
            top_k=0,
            eos_token_id=end,
            pad_token_id=end,
        )[:, width:]
        ended = (out == end).int().cumsum(1)
        total += int(((ended == 0) | ((out == end) & (ended == 1))).sum())
    return total


def continuous_tokens(model: Any, end: int, prompts: list[np.ndarray], tokens: int, slots: int) -> int:
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=True, top_k=0, eos_token_id=end, pad_token_id=end
    )
    results = model.generate_batch(
        inputs=[prompt.tolist() for prompt in prompts], generation_config=config, progress_bar=False
    )
    return sum(len(result.generated_tokens) for result in results.values())


def table(rates: dict[str, float]) -> str:
    """Markdown."""
    lines = ["| way | tokens a second | times the engine |", "|---|---|---|"]
    lines += [f"| {name} | {rate:.0f} | {rate / rates['engine']:.2f} |" for name, rate in rates.items()]
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    task = LedgerTask()
    conversations = task.demonstrations(300, seed=0)
    sizes = TinyModelConfig(hidden_size=96, num_layers=3, num_heads=2, num_kv_heads=1, intermediate_size=288)
    model, tokenizer = build_tiny(conversations, sizes)
    model.eval()
    rendered = [
        tokenizer.apply_chat_template(
            c["messages"][:1], tools=c["tools"], add_generation_prompt=True, tokenize=False
        )
        for c in conversations[: args.prompts]
    ]
    prompts = [
        np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in rendered
        for _ in range(16)
    ]
    ways: dict[str, Callable[..., int]] = {
        "engine": engine_tokens,
        "generate": generate_tokens,
        "continuous batching": continuous_tokens,
    }
    rates = {}
    for name, sample in ways.items():
        try:
            sample(model, tokenizer.eos_token_id, prompts[:32], 8, args.slots)
            started = time.perf_counter()
            num_tokens = sample(model, tokenizer.eos_token_id, prompts, args.tokens, args.slots)
            rates[name] = num_tokens / (time.perf_counter() - started)
        except Exception as error:  # another version of transformers may not have it, or not on this device
            reason = str(error).splitlines()[0] if str(error) else ""
            print(f"{name}: not measured ({type(error).__name__}: {reason})")
    work = {"prompts": args.prompts, "tokens": args.tokens, "slots": args.slots, "threads": args.threads}
    title = "The engine against transformers' own ways to sample"
    publish(args.out, "engine", title, {"tokens_per_second": rates}, table(rates), **work)


if __name__ == "__main__":
    main()
