"""What log-probabilities over a large vocabulary cost with and without chunks: peak memory, time, equality.

    python benchmarks/logprobs.py [--tokens 1200] [--vocab 151936]

Each way runs in a process of its own, since a peak is never given back.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1200)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--way", choices=["whole", "chunks"])
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.tokens, args.vocab)))
        return
    print(f"{args.tokens} sampled tokens, a vocabulary of {args.vocab}, forward and backward:")
    for way in ("whole", "chunks"):
        command = [sys.executable, __file__, "--way", way]
        command += ["--tokens", str(args.tokens), "--vocab", str(args.vocab)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"  {way:7} {found['megabytes']:7.0f} MB more  {found['seconds']:5.1f} s of CPU  "
            f"loss {found['loss']:.6f}  gradient norm {found['gradient']:.6f}"
        )


if __name__ == "__main__":
    main()
