"""A task that the tiniest model learns in seconds, and a configuration of a run of it.

The policy puts coins into a bag that lives in its Python session, one a call. Nothing is ever taken out,
so the first tin coin cannot be repaired; the demonstrations take one half of the time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from elpo.config import Config
from elpo.interfaces import Split
from elpo.recipes import load_config
from elpo.tasks.tool_turns import PYTHON_SCHEMA, tool_turn
from elpo.types import Outcome, Problem, Step, StopReason

FIRST: dict[Split, int] = {"train": 100, "validation": 400, "test": 700}


class CoinsOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    num_coins: int = 2
    gold_share: float = 0.5  # of the coins in the demonstrations


class Coins:
    """Correct where the bag holds nothing but gold and enough of it."""

    Options = CoinsOptions
    name = "coins"
    tool_names: Sequence[str] = ("python",)
    python_state = "session"

    def __init__(self, options: CoinsOptions) -> None:
        self.options = options

    def problems(self, split: Split, num: int) -> list[Problem]:
        return [self.problem(FIRST[split] + i) for i in range(min(num, 300))]

    def problem(self, number: int) -> Problem:
        question = ({"role": "user", "content": f"Fill bag {number}."},)
        return Problem(f"bag-{number}", question, "full", {"python_setup": "gold, tin, bag = 1, 0, []"})

    def grade(self, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
        shown = [step.tool_result.output for step in steps if step.tool_result is not None]
        correct = stop is StopReason.ANSWER and shown[-1:] == [repr([1] * self.options.num_coins)]
        return Outcome(1.0 if correct else -1.0, correct, stop)

    def demonstrations(self, num: int, seed: int) -> list[dict[str, Any]]:
        rng = random.Random(seed)
        return [self._demonstration(rng) for _ in range(num)]

    def _demonstration(self, rng: random.Random) -> dict[str, Any]:
        messages: list[Any] = [*self.problem(rng.randrange(100, 1000)).messages]
        bag: list[int] = []
        for _ in range(self.options.num_coins):
            bag.append(int(rng.random() < self.options.gold_share))
            code = f"bag.append({'gold' if bag[-1] else 'tin'}); bag"
            messages.append(tool_turn("next", "python", code=code))
            messages.append({"role": "tool", "name": "python", "content": repr(bag)})
        messages.append({"role": "assistant", "content": "full"})
        return {"messages": messages, "tools": [PYTHON_SCHEMA]}


SETTINGS = """
run.device=cpu
run.tensorboard=false
run.checkpoint_every=1
run.trees_every=2
model.tiny={hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, intermediate_size: 64}
task.name=tests.coins:Coins
rollout.num_slots=12
rollout.max_turns=5
rollout.max_tokens=300
rollout.max_turn_tokens=16
algorithm.num_rollouts=6
algorithm.strategy.max_failures=2
sft.num_steps=60
sft.num_demonstrations=200
sft.batch_size=8
sft.checkpoint_every=25
sft.optimizer.learning_rate=1e-2
rl.num_steps=4
rl.problems_per_step=4
rl.problems_per_minibatch=2
rl.num_epochs=2
rl.optimizer.learning_rate=2e-3
evaluation.every=2
evaluation.num_problems=4
""".strip().splitlines()


def coins_config(run: Path, *overrides: str) -> Config:
    """A run that takes a second or two."""
    return load_config(None, [*SETTINGS, f"run.dir={str(run)!r}", *overrides])
