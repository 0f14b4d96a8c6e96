"""Training on packed trees and sampling at 0.1 to 1B parameters on a GPU: speed, utilisation, memory.

    python benchmarks/gpu.py                                     under eight minutes on one large GPU
    python benchmarks/gpu.py --device cpu --sizes tiny           tries the whole script without one

Models have the published shapes below and random weights. ELPO's own search grows the trees, on the policy
and the task of packing.py with longer turns. One update of the policy (forward, backward, clipping, AdamW
at a rate of nothing) is timed in four ways: unrolled rows through SDPA; packed trees through FlexAttention;
packed trees, each run of tokens against its context by an SDPA of its own; packed trees under a dense N x N
mask through SDPA. Each way warms up by one whole update, whose extra time is mostly compilation and is
reported; the fastest of --repeats counts. Loss and gradient are compared with those of the first way that
worked.

Modes: `all weights` are float32 under bfloat16 autocast, `adapters` is LoRA on frozen bfloat16 weights.

Utilisation is model FLOPs over what the device's published rate allows in the same time. Model FLOPs are
those of the unique tokens, whatever the way computes beside them:

    (4 F + 6 T) U + h V d S + 12 L H D C

F, T: frozen and trained weights of the layers; U: unique tokens; h: 6, or 4 with a frozen vocabulary of V
rows of size d; S: unique sampled tokens; C: keys seen, summed over tokens. `work` counts what the way
really does in matrix products: padding, masked scores of a dense mask, the vocabulary's second forward
pass.

Sampling: groups of 16 turns with one random prompt, as many as there are slots. The share of bandwidth
compares with reading all weights once a step and every slot's keys and values, in bfloat16, at the
published rate.

A part that fails is a row that says why, and results are written after every part: gpu.json and gpu.md in
--out.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_parts import MODES, SHAPES, Clock, build_model, noted, published_rates
from gpu_rollouts import ENGINES, measure_rollouts
from gpu_training import WAYS, Training
from packing import grow
from report import arguments, publish

from elpo.tree import RolloutTree

THOUGHT = "The count is what it was before this line. "


def grow_trees(num_trees: int, steps: int, words: int) -> list[RolloutTree]:
    """ELPO's search with turns of about `words` words more; the tool answers at once, at some length."""
    from elpo.models.tiny import train_tokenizer
    from elpo.tasks.ledger import LedgerTask
    from elpo.tools.functions import FunctionTool

    def python(code: str) -> str:
        """Enter a line in the book."""
        return f"entered: {code} " * (1 + words // 3)

    tokenizer = train_tokenizer(LedgerTask().demonstrations(300, seed=0))
    thought = THOUGHT * max(1, words // 9)
    return grow(steps, num_trees, tokenizer, FunctionTool(python), seed=0, thought=thought)


def score_as_uniform(trees: list[RolloutTree], vocab: int) -> None:
    """Log-probabilities near those of random weights, so that the update is nearly on-policy."""
    for tree in trees:
        for node in tree.nodes:
            node.step.logprobs[node.step.sampled] = -math.log(vocab)


def tree_tokens(tree: RolloutTree) -> int:
    return len(tree.prompt_ids) + sum(len(node.step.token_ids) for node in tree.nodes)


@dataclass
class Measured:
    """What is known so far; written to file after each part."""

    out: Path
    about: dict[str, Any]
    training: list[dict[str, Any]] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> None:
        rows = {"training": self.training, "rollouts": self.rollouts}
        text = f"{training_table(self.training)}\n\n{rollout_table(self.rollouts)}"
        publish(self.out, "gpu", "On a GPU", rows, text, **self.about)


def training_table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | mode | way | seconds | unique tokens/s | forwarded/unique | utilisation | work | peak GB "
        "| compiling, s | loss differs | gradient differs |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cell = f"| {row['size']} | {row['mode']} | {row['way']} |"
        if "failed" in row:
            lines.append(f"{cell} {row['failed'].replace('|', '/')} |" + " |" * 8)
        elif "seconds" in row:
            ratio = row["forwarded_tokens"] / row["unique_tokens"]
            lines.append(
                f"{cell} {row['seconds']:.3f} | {row['unique_tokens_per_second']:,.0f} | {ratio:.2f} "
                f"| {share(row['utilisation'])} | {share(row['work'])} | {gigabytes(row['peak_gb'])} "
                f"| {row['compile_seconds']:.1f} | {row['loss_difference']:.0e} "
                f"| {row['gradient_difference']:.0e} |"
            )
    return "\n".join(lines)


def rollout_table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | mode | engine | slots | tokens/s | decode steps/s | share of bandwidth | peak GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cell = f"| {row['size']} | {row['mode']} | {row['engine']} | {row['slots']} |"
        if "failed" in row:
            lines.append(f"{cell} {row['failed'].replace('|', '/')} |" + " |" * 3)
        elif "seconds" in row:
            lines.append(
                f"{cell} {row['tokens_per_second']:,.0f} | {row['decode_steps_per_second']:.1f} "
                f"| {share(row['bandwidth_share'])} | {gigabytes(row['peak_gb'])} |"
            )
    return "\n".join(lines)


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def gigabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="cuda, where there is one")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["1B", "0.5B", "0.1B"], metavar="SIZE")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no further part is begun")
    parser.add_argument("--trees", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="of every trajectory, the answer included")
    parser.add_argument("--words", type=int, default=48, help="of thought in a turn")
    parser.add_argument("--microbatch-tokens", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slots", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--tokens", type=int, default=128, help="sampled in every turn")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and args.device != "cpu":
        sys.exit("torch finds no CUDA device here; --device cpu --sizes tiny tries this script without one")
    device = torch.device(args.device or "cuda")
    clock, rates = Clock(device, args.minutes), published_rates(device)
    trees = grow_trees(args.trees, args.steps, args.words)
    lengths = [len(tree.context(leaf)) for tree in trees for leaf in tree.leaves]
    about = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "peak": f"{rates.flops / 1e12:.0f} TFLOP/s, {rates.bandwidth / 1e12:.1f} TB/s"
        if rates
        else "unknown",
        "trees": f"{len(trees)} of {len(lengths) // len(trees)} trajectories of up to {max(lengths)} tokens, "
        f"{sum(tree_tokens(tree) for tree in trees)} unique tokens",
    }
    found = Measured(args.out, about)
    for size, mode in itertools.product(args.sizes, args.modes):
        cell = {"size": size, "mode": mode}
        with noted(found.training, **cell, way="model") as row:
            clock.require_time()
            model = build_model(size, mode, device)
            row["parameters"] = sum(p.numel() for p in model.parameters())
            score_as_uniform(trees, model.config.vocab_size)
            training = Training(model, mode, trees, args.microbatch_tokens)
        found.write()
        if "failed" in row:
            continue
        for way in WAYS:
            with noted(found.training, **cell, way=way) as row:
                row |= training.measure(way, clock, device, rates, args.repeats)
            found.write()
        del training
        model.zero_grad(set_to_none=True)
        for name, slots in itertools.product(ENGINES, args.slots):
            with noted(found.rollouts, **cell, engine=name, slots=slots) as row:
                row |= measure_rollouts(name, model, mode, clock, rates, slots, args.prompt, args.tokens)
            found.write()
        del model


if __name__ == "__main__":
    main()
