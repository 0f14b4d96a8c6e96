"""Our packed training step against that of TRL's GRPOTrainer, on the same trees and the same tiny model.

    python benchmarks/against_trl.py

ELPO's own search grows the trees on the ledger task with the real Python tool. The policy is a clerk whose
trajectories differ in their number of entries and in the length of an entry. Then both trainers take a step
on these trees, again and again in turns, on one thread; the fastest of each counts, in processor time of this
process. TRL's step is its own: it pads and scores the rows (`_prepare_inputs`; the rollouts are given to it),
then loss and backward of each micro-batch, the norm of the gradient and the optimizer. Ours is
`update_policy` with the credit. On-policy both forward every token once for learning; off-policy TRL forwards
all rows once more for their old log-probabilities, which we take from the sampler. Writes against_trl.json
and against_trl.md to --out.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRL_EXPERIMENTAL_SILENCE="1")

import torch
from accelerate import Accelerator
from packing import MODELS, NUM_ROLLOUTS, Entries
from report import arguments, publish

from elpo.adapters.trl import ElpoTrainer, grpo_arguments
from elpo.algorithms.credit_rules import assign_credits
from elpo.algorithms.strategies import bel
from elpo.config import Config, OptimizerConfig
from elpo.engines.scripted import ScriptedEngine
from elpo.models.tiny import initial_model, train_tokenizer
from elpo.rollout.counts import RolloutCounts
from elpo.rollout.dialogue import Dialogue
from elpo.rollout.episode import Limits
from elpo.rollout.scheduler import Scheduler
from elpo.tasks.ledger import LedgerTask
from elpo.tools.python import PythonTool
from elpo.training.learner import Learner
from elpo.training.policy_update import update_policy
from elpo.tree import RolloutTree
from elpo.tree_packing import num_unique


def clerk(mean_calls: int) -> Any:
    """A policy that makes entries, each with a word of comment or many, and stops after some of them."""

    def policy(context: str, uniform: float) -> str:
        done = context.count("<tool_response>")
        digits = int(uniform * 1e12)
        if done >= mean_calls + 2 or (done >= mean_calls - 1 and digits % 1000 < 350):
            return "\\boxed{0}"
        right = (digits // 1000) % 1000 < 1000 * 0.3 ** (1 / mean_calls)
        comment = " add" * int(2 ** ((digits // 10**6) % 1000 / 333))  # 1 to 7 words
        code = f"book.{'add' if right else 'mul'}({2 + digits % 8}) #{comment}"
        return f'<tool_call>\n{{"name": "python", "arguments": {{"code": "{code}"}}}}\n</tool_call>'

    return policy


def grow(mean_calls: int, num_trees: int, tokenizer: Any, tool: PythonTool, seed: int) -> list[RolloutTree]:
    """ELPO's trees of the clerk."""
    engine = ScriptedEngine(
        clerk(mean_calls), tokenizer, 64, entropy=lambda context, turn: len(turn) % 7 / 7 + 0.1
    )
    limits = Limits(4 * mean_calls, 20_000, 400)
    dialogue = Dialogue(tokenizer, [tool.schema])
    task = Entries()
    scheduler = Scheduler(engine, task, {"python": tool}, dialogue, limits)
    problems = [
        replace(problem, metadata={**problem.metadata, "max_turns": limits.max_turns})
        for problem in task.problems("train", num_trees)
    ]
    return scheduler.grow(problems, bel(), NUM_ROLLOUTS, seed)[0]


@torch.no_grad()
def rescore(trees: list[RolloutTree], model: Any) -> None:
    """Put the model's own log-probabilities into the trees, as if it had sampled them."""
    for tree in trees:
        for leaf in tree.leaves:
            ids = torch.from_numpy(tree.context(leaf))
            logprobs = torch.log_softmax(model(ids[None]).logits[0, :-1], -1)
            chosen = logprobs.gather(-1, ids[1:, None])[:, 0].numpy()
            at = len(tree.prompt_ids) - 1
            for node in tree.path(leaf):
                step = tree.nodes[node].step
                step.logprobs[:] = chosen[at : at + len(step.token_ids)] * step.sampled
                at += len(step.token_ids)


class Theirs:
    """TRL's trainer, with the rollouts given."""

    def __init__(
        self, trees: list[RolloutTree], tokenizer: Any, config: Config, folder: str, iterations: int
    ) -> None:
        by_id = {tree.problem.id: tree for tree in trees}

        def given(problems: list[Any], *_: Any, **__: Any) -> tuple[list[RolloutTree], RolloutCounts]:
            return [by_id[problem.id] for problem in problems], RolloutCounts()

        self.model = initial_model(MODELS["1M"], tokenizer, seed=0)
        assembly: Any = SimpleNamespace(
            config=config,
            model=self.model,
            tokenizer=tokenizer,
            task=SimpleNamespace(problems=lambda split, num: [tree.problem for tree in trees]),
            scheduler=SimpleNamespace(grow=given),
            dialogue=SimpleNamespace(end_id=tokenizer.eos_token_id),
        )
        arguments = grpo_arguments(config, folder, num_iterations=iterations, disable_tqdm=True)
        self.trainer = ElpoTrainer(assembly, arguments)
        self.trainer.create_optimizer_and_scheduler(100)
        self.batch = next(iter(self.trainer.get_train_dataloader()))
        self.forwarded = 0
        self.gradient = torch.empty(0)
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.forwarded += kwargs["input_ids"].numel()

    def step(self) -> None:
        trainer = self.trainer
        num_parts = trainer.args.gradient_accumulation_steps
        trainer._step, trainer.current_gradient_accumulation_steps = 0, num_parts
        self.model.train()
        self.forwarded = 0
        for _ in range(num_parts):
            inputs = trainer._prepare_inputs(self.batch)
            trainer._compute_loss(self.model, inputs).backward()
            trainer._step += 1
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1e9)
        trainer.optimizer.step()
        self.gradient = flat(self.model)
        trainer.optimizer.zero_grad()


class Ours:
    """The learner of `elpo train`."""

    def __init__(self, trees: list[RolloutTree], tokenizer: Any, config: Config) -> None:
        self.trees, self.config = trees, config
        self.model = initial_model(MODELS["1M"], tokenizer, seed=0).train()
        optimizer = config.rl.optimizer
        self.learner = Learner.prepare(Accelerator(cpu=True), self.model, optimizer, 100, packing="tree")
        self.gradient = torch.empty(0)
        self.metrics: dict[str, float] = {}

    def step(self) -> None:
        credits = assign_credits(self.trees, self.config.algorithm)
        self.metrics = update_policy(self.learner, self.trees, credits, self.config.algorithm, self.config.rl)
        self.gradient = flat(self.model)


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def measure(
    mean_calls: int, policy: str, num_trees: int, tokenizer: Any, tool: PythonTool, seed: int, repeats: int
) -> dict[str, Any]:
    """One row of the table."""
    trees = grow(mean_calls, num_trees, tokenizer, tool, seed)
    rescore(trees, initial_model(MODELS["1M"], tokenizer, seed=0))
    config = Config.model_validate(
        {
            "run": {"device": "cpu"},
            "rl": {
                "problems_per_step": num_trees,
                "problems_per_minibatch": num_trees,
                "microbatch_tokens": 16_384,
                # every repetition sees the same weights
                "optimizer": OptimizerConfig(learning_rate=1e-30, max_grad_norm=1e9).model_dump(),
            },
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        theirs = Theirs(trees, tokenizer, config, folder, 2 if policy == "off-policy" else 1)
        ours = Ours(trees, tokenizer, config)
        seconds = {"theirs": float("inf"), "ours": float("inf")}
        for _ in range(repeats):
            for name, trainer in (("theirs", theirs), ("ours", ours)):
                started = time.process_time()
                trainer.step()
                seconds[name] = min(seconds[name], time.process_time() - started)
    difference = (theirs.gradient - ours.gradient).norm() / ours.gradient.norm()
    lengths = [len(tree.context(leaf)) for tree in trees for leaf in tree.leaves]
    unique = sum(num_unique(tree, tree.leaves) for tree in trees)
    return {
        "mean_calls": mean_calls,
        "policy": policy,
        "trees": num_trees,
        "mean_length": sum(lengths) / len(lengths),
        "longest": max(lengths),
        "unique_tokens": unique,
        "unrolled_per_unique": sum(lengths) / unique,
        "trl_per_unique": theirs.forwarded / unique,
        "ours_per_unique": ours.metrics["tokens/forwarded_per_unique"],
        "times_faster": seconds["theirs"] / seconds["ours"],
        "gradient_difference": float(difference),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| calls, mean | updates | trajectory, mean | longest | unique tokens | unrolled/unique | TRL/unique "
        "| ours/unique | time of TRL / ours | gradient difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            "| {mean_calls} | {policy} | {mean_length:.0f} | {longest} | {unique_tokens} "
            "| {unrolled_per_unique:.2f} | {trl_per_unique:.2f} | {ours_per_unique:.2f} "
            "| {times_faster:.2f} | {gradient_difference:.0e} |".format(**row)
        )
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--calls", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--trees", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(LedgerTask().demonstrations(300, seed=0))
    rows = []
    with PythonTool(num_workers=1) as tool:
        for calls in args.calls:
            for policy in ("on-policy", "off-policy"):
                rows.append(measure(calls, policy, args.trees, tokenizer, tool, args.seed, args.repeats))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    title = "Our training step against TRL's GRPOTrainer"
    publish(args.out, "against_trl", title, {"seed": args.seed, "rows": rows}, table(rows))


if __name__ == "__main__":
    main()
