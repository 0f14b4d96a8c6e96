"""The rollout phase: ELPO's search against plain group sampling.

    python benchmarks/rollouts.py                about forty minutes on a core

Both draw the same number of rollouts of the same ledger problems with the same model, engine, sandbox and
seeds, in turns. The model has random weights and does all its work at every token; which token comes next is
then read from a script, a clerk who makes a given number of entries and then answers, so that length of
trajectories and success are the benchmark's to set. A trajectory succeeds if none of its entries was wrong.
The model is a tiny one, where attention to what is cached takes over a quarter of the time, and one layer of
Qwen2.5-0.5B, where it takes a tenth, as in the whole of that model. Times are those of one run, the fastest
of --repeats in turns. Writes rollouts.json and rollouts.md to --out.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from packing import Entries, clerk
from report import arguments, publish

from elpo.algorithms.strategies import Strategy, bel, independent
from elpo.config import TinyModelConfig
from elpo.engines.sampling import uniforms
from elpo.engines.transformers import TransformersEngine
from elpo.models.tiny import initial_model, train_tokenizer
from elpo.rollout.dialogue import Dialogue
from elpo.rollout.episode import Limits
from elpo.rollout.scheduler import Scheduler
from elpo.tools.python import PythonTool
from elpo.tree import RolloutTree

SIZES = {
    "0.02M": TinyModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=64),
    "0.2M": TinyModelConfig(hidden_size=96, num_layers=3, num_heads=2, num_kv_heads=1, intermediate_size=288),
    "1M": TinyModelConfig(hidden_size=128, num_layers=4, intermediate_size=384),
    "10M": TinyModelConfig(hidden_size=320, num_layers=8, num_heads=5, num_kv_heads=5, intermediate_size=960),
    "50M": TinyModelConfig(
        hidden_size=640, num_layers=10, num_heads=10, num_kv_heads=5, intermediate_size=1920
    ),
    "a layer of Qwen2.5-0.5B": TinyModelConfig(
        hidden_size=896, num_layers=1, num_heads=14, num_kv_heads=2, intermediate_size=4864
    ),
}
STRATEGIES: dict[str, Strategy] = {"GRPO": independent(), "ELPO": bel()}
SUCCESS = 0.2


class ClerkEngine(TransformersEngine):
    """The engine with all its work, whose tokens are then those of `policy`."""

    policy: Any
    tokenizer: Any
    peak_prefix_bytes = 0

    def _keep(self, prefix: Any) -> None:
        super()._keep(prefix)
        self.peak_prefix_bytes = max(self.peak_prefix_bytes, self.prefix_bytes)

    def _sample(self, lives: Sequence[Any], logits: torch.Tensor) -> None:
        super()._sample(lives, logits)
        for live in lives:
            if len(live.sampled) == 1:
                context = self.tokenizer.decode(live.tokens.tolist(), skip_special_tokens=False)
                uniform = uniforms(np.array([live.request.seed], np.uint64), np.array([len(live.tokens)]))
                text = self.policy(context, float(uniform[0]))
                live.turn = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], *self._end_ids]
                live.entropies[-1] = len(text) % 7 / 7  # of the step, on average: what the search looks at
            live.sampled[-1] = live.turn[len(live.sampled) - 1]


class Bench:
    """Model, tokenizer and tool, made once for each size of model."""

    def __init__(self, size: str) -> None:
        self.tool = PythonTool(state="session")
        task = Entries()
        self.tokenizer = train_tokenizer(task.demonstrations(300, seed=0))
        self.model = initial_model(SIZES[size], self.tokenizer, seed=0)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def grow(
        self,
        strategy: Strategy,
        problems: int,
        rollouts: int,
        steps: int,
        slots: int,
        deterministic: bool = False,
        success: float = SUCCESS,
    ) -> tuple[dict[str, float], list[RolloutTree]]:
        """One rollout phase: what it took, and its trees."""
        dialogue = Dialogue(self.tokenizer, [self.tool.schema])
        engine = ClerkEngine(self.model, (dialogue.end_id,), slots)
        engine.policy, engine.tokenizer = clerk(steps - 1, success), self.tokenizer
        limits = Limits(steps + 1, 4000, 200)
        task = Entries()
        chosen = [
            replace(problem, metadata={**problem.metadata, "max_turns": steps})
            for problem in task.problems("train", problems)
        ]
        tools = {"python": self.tool}
        scheduler = Scheduler(engine, task, tools, dialogue, limits, deterministic=deterministic)
        wall, cpu = time.perf_counter(), time.process_time()
        trees, counts = scheduler.grow(chosen, strategy, rollouts, seed=0)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert all(len(tree.outcomes) == rollouts for tree in trees)
        correct = [outcome.correct for tree in trees for outcome in tree.outcomes.values()]
        done = engine.counts
        found = {
            "seconds": wall,
            "cpu_seconds": cpu,
            "tokens": counts.sampled_tokens,
            "steps": done.decode_steps,
            "chunk_steps": done.chunk_steps,
            "occupancy": done.decoded_tokens / (done.decode_steps * slots),
            "fed": done.fed_tokens,
            "reused": done.reused_tokens,
            "reusable": sum(map(reusable_tokens, trees)),
            "tool_calls": counts.tool_calls,
            "success": sum(correct) / len(correct),
            "prefix_mb": engine.peak_prefix_bytes / 2**20,
            "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        return found, trees


def reusable_tokens(tree: RolloutTree) -> int:
    """Context tokens that a rollout began with and another one had fed before it, but for the last of them,
    which is always fed for its logits."""
    seen: set[int] = set()
    starts = []
    for leaf in tree.outcomes:
        path = tree.path(leaf)
        starts.append(next(tree.nodes[node].parent for node in path if node not in seen))
        seen.update(path)
    return sum(len(tree.context(start)) - 1 for start in starts[1:])


def against_each_other(size: str, steps: int, slots: int, success: float, repeats: int) -> dict[str, Any]:
    """ELPO over GRPO at 64 problems of 16 rollouts."""
    bench = Bench(size)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in STRATEGIES}
    try:
        for _ in range(repeats):
            for name, strategy in STRATEGIES.items():
                runs[name].append(bench.grow(strategy, 64, 16, steps, slots, success=success)[0])
                print(name, runs[name][-1], flush=True)
    finally:
        bench.tool.close()
    best = {name: min(found, key=lambda run: run["seconds"]) for name, found in runs.items()}
    compared = ("seconds", "cpu_seconds", "tokens", "steps", "tool_calls")
    ratios = {key: best["ELPO"][key] / best["GRPO"][key] for key in compared}
    in_turn = [
        elpo["seconds"] / grpo["seconds"] for grpo, elpo in zip(runs["GRPO"], runs["ELPO"], strict=True)
    ]
    setting = {"model": size, "steps": steps, "slots": slots, "success": success}
    return {**setting, "ratio": ratios, "in_turn": in_turn, **best}


def table(pairs: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "ELPO over GRPO, 64 problems of 16 rollouts; in brackets the seconds of each pair of runs in turn:",
        "",
        "| model | steps | slots | success | seconds | processor seconds | tokens | engine steps "
        "| tool calls | occupancy ELPO | occupancy GRPO | prefix tokens reused ELPO | GRPO |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for pair in pairs:
        elpo, grpo = pair["ELPO"], pair["GRPO"]
        seconds, *counts = (f"{value:.2f}" for value in pair["ratio"].values())
        each = ", ".join(f"{ratio:.2f}" for ratio in sorted(pair["in_turn"]))
        ratios = " | ".join([f"{seconds} ({each})", *counts])
        reuse = " | ".join(f"{100 * one['reused'] / one['reusable']:.1f} %" for one in (elpo, grpo))
        lines.append(
            f"| {pair['model']} | {pair['steps']} | {pair['slots']} | {pair['success']} | {ratios} | "
            f"{elpo['occupancy']:.3f} | {grpo['occupancy']:.3f} | {reuse} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*", choices=SIZES, default=["0.2M", "a layer of Qwen2.5-0.5B"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slots", type=int, nargs="*", default=[32])
    parser.add_argument("--steps", type=int, nargs="*", default=[5, 10])
    parser.add_argument(
        "--success", type=float, nargs="*", default=[SUCCESS], help="of a rollout from the prompt"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs: list[dict[str, Any]] = []
    for setting in product(args.models, args.steps, args.slots, args.success):
        pairs.append(against_each_other(*setting, args.repeats))
        publish(args.out, "rollouts", "The rollout phase", {"pairs": pairs}, table(pairs))


if __name__ == "__main__":
    main()
