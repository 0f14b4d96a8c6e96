"""What packing saves: one training step on packed trees against the same step on unrolled rows.

    python benchmarks/packing.py

ELPO's own search grows the trees on the ledger task with the real Python tool. The policy is a clerk that
makes a given number of entries and then answers; it succeeds if none of them was wrong, so that there are
failures to search and lengths beyond those of the ledger's own stories. Then the model, with random weights,
makes forward and backward passes of Eq. 1 over these trees, alternately in the two ways and on one thread;
the fastest of each way counts, in processor time of this process. Every trajectory has the same number of
steps here, so that rows have next to no padding. Writes packing.json and packing.md to --out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from report import arguments, publish

from elpo.algorithm_config import AlgorithmConfig
from elpo.algorithms.credit import assign_credit
from elpo.algorithms.strategies import bel
from elpo.config import OptimizerConfig, RLConfig, TinyModelConfig
from elpo.engines.scripted import ScriptedEngine
from elpo.interfaces import Tool
from elpo.models.tiny import initial_model, train_tokenizer
from elpo.rollout.dialogue import Dialogue
from elpo.rollout.episode import Limits
from elpo.rollout.scheduler import Scheduler
from elpo.tasks.ledger import LedgerTask
from elpo.tools.python import PythonTool
from elpo.training.learner import Learner
from elpo.training.policy_update import update_policy
from elpo.tree import RolloutTree
from elpo.tree_packing import num_unique

MODELS = {
    "1M": TinyModelConfig(hidden_size=128, num_layers=4, intermediate_size=384),
    "10M": TinyModelConfig(hidden_size=320, num_layers=8, num_heads=5, num_kv_heads=5, intermediate_size=960),
}
NUM_ROLLOUTS = 16


def clerk(num_calls: int, success: float, thought: str = "") -> Callable[[str, float], str]:
    """A policy of `num_calls` entries and an answer; each entry is right with success^(1/num_calls).

    It says the `thought` before each entry.
    """

    def policy(context: str, uniform: float) -> str:
        done = context.count("<tool_response>")
        if done < num_calls:
            right = uniform < success ** (1 / num_calls)
            amount = 2 + int(uniform * 1e6) % 8
            code = f"book.add({amount})" if right else f"book.mul({amount})"
            call = f'{{"name": "python", "arguments": {{"code": "{code}"}}}}'
            return f"{thought}<tool_call>\n{call}\n</tool_call>"
        return "\\boxed{0}"

    return policy


class Entries(LedgerTask):
    """The ledger's problems and tool; correct where the clerk never multiplied."""

    def grade(self, problem: Any, steps: Any, stop: Any) -> Any:
        outcome = super().grade(problem, steps, stop)
        correct = all("book.mul" not in step.text for step in steps)
        return type(outcome)(1.0 if correct else -1.0, correct, stop)


def grow(
    num_steps: int, num_trees: int, tokenizer: Any, tool: Tool, seed: int, thought: str = ""
) -> list[RolloutTree]:
    """Trees of trajectories with `num_steps` steps, the answer included."""
    dialogue = Dialogue(tokenizer, [tool.schema])
    engine = ScriptedEngine(
        clerk(num_steps - 1, 0.2, thought),
        tokenizer,
        64,
        entropy=lambda context, turn: len(turn) % 7 / 7 + 0.1,
    )
    limits = Limits(num_steps + 1, 40_000, 1_000)
    task = Entries()
    scheduler = Scheduler(engine, task, {"python": tool}, dialogue, limits)
    problems = [
        replace(problem, metadata={**problem.metadata, "max_turns": num_steps})  # not the story's own limit
        for problem in task.problems("train", num_trees)
    ]
    trees, _ = scheduler.grow(problems, bel(), NUM_ROLLOUTS, seed)
    assert {len(tree.path(leaf)) for tree in trees for leaf in tree.leaves} == {num_steps}
    return trees


def measure(
    num_steps: int, size: str, trees: list[RolloutTree], tokenizer: Any, repeats: int
) -> dict[str, Any]:
    """One row of the table."""
    algorithm = AlgorithmConfig()
    rl = RLConfig(problems_per_step=len(trees), problems_per_minibatch=len(trees))
    credits = [assign_credit(tree) for tree in trees]
    seconds: dict[str, float] = {}
    forwarded: dict[str, float] = {}
    gradients: dict[str, torch.Tensor] = {}
    learners = {}
    for way in ("rows", "tree"):
        model = initial_model(MODELS[size], tokenizer, seed=0).train()
        config = OptimizerConfig(learning_rate=1e-30)  # every repetition sees the same weights
        learners[way] = Learner.prepare(
            Accelerator(cpu=True), model, config, 100, packing="tree" if way == "tree" else "rows"
        )
    for _ in range(repeats):
        for way, learner in learners.items():
            started = time.process_time()
            metrics = update_policy(learner, trees, credits, algorithm, rl)
            taken = time.process_time() - started
            seconds[way] = min(seconds.get(way, taken), taken)
            forwarded[way] = metrics["tokens/forwarded_per_unique"]
            parameters = [p.grad.flatten() for p in learner.scorer.parameters() if p.grad is not None]
            gradients[way] = torch.cat(parameters).clone()
    difference = (gradients["tree"] - gradients["rows"]).norm() / gradients["rows"].norm()
    lengths = [len(tree.context(leaf)) for tree in trees for leaf in tree.leaves]
    unique = sum(num_unique(tree, tree.leaves) for tree in trees)
    return {
        "steps": num_steps,
        "model": size,
        "parameters": sum(p.numel() for p in learners["rows"].scorer.parameters()),
        "trees": len(trees),
        "longest": max(lengths),
        "unique_tokens": unique,
        "unrolled_per_unique": sum(lengths) / unique,
        "padded_per_unique": forwarded["rows"],
        "packed_per_unique": forwarded["tree"],
        "times_faster": seconds["rows"] / seconds["tree"],
        "gradient_difference": float(difference),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| steps | model | parameters | longest trajectory | unique tokens | unrolled/unique | rows/unique "
        "| packed/unique | time of rows / packed | gradient difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            "| {steps} | {model} | {parameters:,} | {longest} | {unique_tokens} | {unrolled_per_unique:.2f} "
            "| {padded_per_unique:.2f} | {packed_per_unique:.2f} | {times_faster:.2f} "
            "| {gradient_difference:.0e} |".format(**row)
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--cells",
        nargs="+",
        default=["4x1M", "8x1M", "16x1M", "32x1M", "4x10M", "8x10M"],
        metavar="STEPSxMODEL",
    )
    parser.add_argument("--trees", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(LedgerTask().demonstrations(300, seed=0))
    rows = []
    with PythonTool(num_workers=1) as tool:
        for cell in args.cells:
            steps, size = cell.split("x")
            trees = grow(int(steps), args.trees, tokenizer, tool, args.seed)
            rows.append(measure(int(steps), size, trees, tokenizer, args.repeats))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    title = "Packed training against unrolled rows"
    publish(args.out, "packing", title, {"seed": args.seed, "rows": rows}, table(rows))


if __name__ == "__main__":
    main()
