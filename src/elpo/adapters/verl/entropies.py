"""Better entropies than surprisal, where they are needed: on the failures, which alone are searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from elpo.engines.topk import grouped_entropy
from elpo.interfaces import Split, Task
from elpo.types import Outcome, Problem, Step, StopReason

TOP_K = 20
Score = Callable[[np.ndarray, int], list[list[float]]]
"""Token ids and k to the log-probabilities of the k most likely tokens at each place but the first."""


class FailureEntropies:
    """A task that grades as `task` does and, where a trajectory failed, puts in entropies from `score`.

    They are the lower bounds of `elpo.engines.topk.grouped_entropy`. One more prefill for each failure. A
    step that failures share is written by each of them, with the same numbers.
    """

    def __init__(self, task: Task, prompt_ids: np.ndarray, score: Score) -> None:
        self.name, self.tool_names = task.name, task.tool_names
        self._task = task
        self._prompt_ids = prompt_ids
        self._score = score

    def problems(self, split: Split, num: int) -> list[Problem]:
        """Those of the task."""
        return self._task.problems(split, num)

    def grade(self, problem: Problem, steps: Sequence[Step], stop: StopReason) -> Outcome:
        """The task's verdict; raises what it or the score raises."""
        outcome = self._task.grade(problem, steps, stop)
        if not outcome.correct:
            ids = np.concatenate([self._prompt_ids, *(step.token_ids for step in steps)])
            # without the last token, for which a full context leaves the server no room: it keeps its own
            found = map(grouped_entropy, self._score(ids[:-1], TOP_K))
            values = np.array([0.0, *found, steps[-1].entropies[-1]], np.float32)
            at = len(self._prompt_ids)
            for step in steps:
                step.entropies[:] = np.where(step.sampled, values[at : at + len(step.token_ids)], 0.0)
                at += len(step.token_ids)
        return outcome
