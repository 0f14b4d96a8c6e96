"""What log-probabilities over a large vocabulary cost with and without chunks: peak memory, time, equality.

    python benchmarks/logprobs.py [--tokens 1200] [--vocab 151936]

Each way runs in a process of its own, since a peak is never given back.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

from report import arguments, publish

WAYS = ("whole", "chunks")


def measure(way: str, tokens: int, vocab: int) -> dict[str, float]:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from elpo.training import learner

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=vocab, hidden_size=64, intermediate_size=128, **sizes))
    if way == "whole":
        learner.MAX_LOGITS = 1 << 60
    ids = torch.randint(0, vocab, (1, tokens))
    sampled = torch.arange(tokens)[None] > 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    loss = learner.SampledLogProbs(model)(ids, sampled)[0].mean()
    loss.backward()
    return {
        "seconds": time.process_time() - started,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "loss": float(loss.detach()),
        "gradient": float(sum(p.grad.double().square().sum() for p in model.parameters()) ** 0.5),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "Forward and backward.",
        "",
        "| logits | more memory, MB | seconds of CPU | loss | gradient norm |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            "| {way} | {megabytes:.0f} | {seconds:.1f} | {loss:.6f} | {gradient:.6f} |".format(**row)
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=1200)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--way", choices=WAYS, help="measure this one here, and print its numbers as JSON")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.tokens, args.vocab)))
        return
    rows = []
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way]
        command += ["--tokens", str(args.tokens), "--vocab", str(args.vocab)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append({"way": way, **found})
    work = {"tokens": args.tokens, "vocabulary": args.vocab}
    title = "Log-probabilities over a large vocabulary, with and without chunks"
    publish(args.out, "logprobs", title, {"rows": rows}, table(rows), **work)


if __name__ == "__main__":
    main()
