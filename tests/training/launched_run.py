"""A run under torchrun: `-m tests.training.launched_run FOLDER [die]`; one process may die in it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from elpo.training import trainer
from tests.coins import coins_config

SETTINGS = ("sft.num_steps=5", "rl.num_steps=3", "evaluation.every=0", "evaluation.num_problems=2")


def die_in_the_second_step() -> None:
    """The main process has saved the first one by then."""
    update, steps = trainer.update_policy, []

    def or_die(*arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*arguments)

    trainer.update_policy = or_die  # type: ignore[assignment]


if __name__ == "__main__":
    if "die" in sys.argv and os.environ["RANK"] == "1":
        die_in_the_second_step()
    trainer.train(coins_config(Path(sys.argv[1]), *SETTINGS), resume=True)
