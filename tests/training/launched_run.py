"""A run that accelerate launches: `-m tests.training.launched_run FOLDER [die]`; a process may die in it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from elpo.training import trainer
from elpo.training.learner import Learner
from tests.coins import coins_config

SETTINGS = ("sft.num_steps=5", "rl.num_steps=3", "evaluation.every=0", "evaluation.num_problems=2")


def watch_updates(die: bool) -> None:
    """The weights are sharded where the launcher says so. To `die` in the second update is to leave the other
    process in the middle of it; the first one's checkpoint has been written by then."""
    update, steps = trainer.update_policy, []

    def watched(learner: Learner, *arguments: Any) -> Any:
        assert learner.is_sharded == ("ACCELERATE_USE_FSDP" in os.environ)
        steps.append(1)
        if die and len(steps) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(learner, *arguments)

    trainer.update_policy = watched  # type: ignore[assignment]


if __name__ == "__main__":
    watch_updates("die" in sys.argv and os.environ["RANK"] == "1")
    trainer.train(coins_config(Path(sys.argv[1]), *SETTINGS), resume=True)
