"""A run folder as a trainer leaves it, made in a moment: real files, a scripted policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.credit import assign_credit
from elpo.algorithms.strategies import RolloutRequest, bel, grow, independent
from elpo.config import Config
from elpo.models.tiny import train_tokenizer
from elpo.recipes import load_config
from elpo.training.run_folder import RunFolder
from elpo.tree import RolloutTree
from elpo.types import Outcome, Problem, Step, StopReason, ToolCall, ToolResult, ToolStatus
from tests.trees import Figure4

HOSTILE = (
    "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>\n"
    "<!-- @@DATA@@ ]]> &lt; \u202eevil\u202c \x00 \ud800 {{7*7}} 'quotes\" `${window.broken=3}`\n"
    "日本語 🙂 " + "long " * 400
)
TURNS = [
    {
        "messages": [
            {"role": "user", "content": "Fill bag 1. bag.append(gold) bag.append(tin) full next [1, 0]"}
        ]
    }
]


def config(folder: RunFolder, *overrides: str) -> Config:
    return load_config(
        None, ["task.name=tests.coins:Coins", "rl.num_steps=4", f"run.dir={str(folder.path)!r}", *overrides]
    )


def step(
    tokenizer: PreTrainedTokenizerBase,
    rng: np.random.Generator,
    text: str,
    code: str | None,
    output: str | None,
    status: ToolStatus = ToolStatus.OK,
) -> Step:
    turn = text if code is None else f'{text}\n<tool_call>\n{{"name": "python"}}\n</tool_call>'
    ours = tokenizer.encode(turn.encode("utf-8", "replace").decode())
    fed = [] if output is None else tokenizer.encode(output.encode("utf-8", "replace").decode())
    sampled = np.array([True] * len(ours) + [False] * len(fed))
    entropies = np.where(sampled, rng.exponential(0.3, len(sampled)), 0).astype(np.float32)
    return Step(
        token_ids=np.array([*ours, *fed]),
        sampled=sampled,
        logprobs=np.where(sampled, -rng.exponential(0.2, len(sampled)), 0).astype(np.float32),
        entropies=entropies,
        text=turn,
        tool_call=None if code is None else ToolCall("python", {"code": code}),
        tool_result=None if output is None else ToolResult(status, output, float(rng.exponential(0.01))),
    )


def coins_tree(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, seed: int, skill: float, search: bool = True
) -> RolloutTree:
    """Rollouts that put coins into a bag; a tin one is never taken out. Grown by the search itself."""
    rng = np.random.default_rng(seed)

    def draw(tree: RolloutTree, request: RolloutRequest) -> list[tuple[list[Step], Outcome]]:
        known = [tree.nodes[node].step for node in tree.path(request.prefix)]
        before = [int("gold" in str(known_step.tool_call)) for known_step in known]
        rollouts = []
        for _ in range(request.num_rollouts):
            bag, steps = list(before), []
            while len(bag) < 4:
                bag.append(int(rng.random() < skill))
                code = f"bag.append({'gold' if bag[-1] else 'tin'}); bag"
                steps.append(step(tokenizer, rng, "next", code, str(bag)))
            correct = all(bag)
            stop = StopReason.ANSWER if rng.random() < 0.8 else StopReason.TURN_LIMIT
            steps.append(step(tokenizer, rng, f"full {sum(bag)}", None, None))
            rollouts.append((steps, Outcome(1.0 if correct else -1.0, correct, stop, f"{sum(bag)}")))
        return rollouts

    tree = RolloutTree(problem, np.arange(5))
    grow(tree, bel() if search else independent(), BudgetLedger(12 if search else 8), rng, draw)
    return tree


def hostile_tree(tokenizer: PreTrainedTokenizerBase) -> RolloutTree:
    """A problem, thought, code, output and answer that try to be markup."""
    rng = np.random.default_rng(0)
    problem = Problem("<b onclick=alert(1)>p</b>", ({"role": "user", "content": HOSTILE},), HOSTILE)
    tree = RolloutTree(problem, np.arange(3))
    steps = [
        step(tokenizer, rng, HOSTILE, HOSTILE, HOSTILE, ToolStatus.PROGRAM_ERROR),
        step(tokenizer, rng, HOSTILE, None, None),
    ]
    tree.add(-1, steps, Outcome(-1.0, False, StopReason.ANSWER, HOSTILE))
    return tree


def scripted_run(path: Path, *overrides: str, steps: int = 4, trees: int = 3) -> RunFolder:
    """Metrics of all phases, trees of training and of the same held-out problems, and a tokenizer."""
    folder = RunFolder(path)
    folder.prepare(config(folder, *overrides))
    tokenizer = train_tokenizer(TURNS)
    tokenizer.save_pretrained(folder.checkpoints / "rl-000004" / "model")
    rng = np.random.default_rng(1)
    for update in range(1, 31):
        loss = 3 / update + rng.normal(0, 0.05)
        folder.append_metrics("sft", update, {"loss": loss, "tokens/sampled": 900.0, "time/total": 0.2})
    heldout = [
        Problem(f"bag-{400 + i}", ({"role": "user", "content": f"Fill bag {400 + i}."},), "4")
        for i in range(2)
    ]
    for number in range(steps + 1):
        skill = 0.6 + 0.35 * number / steps
        if number:
            grown = []
            for i in range(trees):
                problem = Problem(
                    f"bag-{100 * number + i}", ({"role": "user", "content": "Fill the bag."},), "4"
                )
                tree = coins_tree(problem, tokenizer, 100 * number + i, skill)
                grown.append((tree, assign_credit(tree)))
            folder.write_trees(number, grown)
            record_step(folder, number, skill, rng)
        if number % 2 == 0:
            standard_error = 0.05
            folder.append_metrics(
                "evaluation",
                number,
                {"success/heldout": skill**4, "success/heldout_standard_error": standard_error},
            )
            kept = [coins_tree(p, tokenizer, 7 * number + i, skill, False) for i, p in enumerate(heldout)]
            folder.write_trees(number, [(tree, None) for tree in kept], "evaluation")
    return folder


def record_step(folder: RunFolder, number: int, skill: float, rng: np.random.Generator) -> None:
    folder.append_metrics(
        "rl",
        number,
        {
            "rollouts/total": 48.0,
            "faults/count": 0.0,
            "tokens/sampled": 5200.0 + 10 * number,
            "tokens/feedback": 1900.0,
            "tool/calls": 190.0,
            "tool/seconds": 0.4,
            "tool/failed_share": 0.02,
            "localization/searches": 6.0,
            "localization/finished_share": 0.75,
            "localization/step_mean": 2 + rng.normal(0, 0.2),
            "success/train": skill**4 + rng.normal(0, 0.02),
            "reward/mean": 2 * skill**4 - 1,
            "entropy/mean": 0.6 - 0.08 * number,
            "turns/mean": 5.0,
            "kl/approx": float("nan"),
            "time/rollout": 2.0,
            "time/train": 1.0,
            "time/total": 3.1,
        },
    )


def figure4_tree() -> RolloutTree:
    return Figure4().fill_and_search()
