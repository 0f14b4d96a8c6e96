"""Where the time of an RL step goes.

    python benchmarks/step_profile.py runs/tiny

Continues to train the policy of a finished run for a few steps, in a temporary folder and by the ordinary
training loop, with a stopwatch around what matters. A stopwatch inside another one stops it, so the shares
add up to one. Tools and grader work in other processes and threads: what counts is the time the loop waited
for them, and what it did with what they said ("tools: feedback", "grading: verdicts"). The first step, which
warms everything up, does not count. Writes step_profile.json and step_profile.md to --out.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from report import arguments, publish

from elpo.recipes import load_config

FEEDBACK, VERDICTS = "tools: feedback", "grading: verdicts"


class Stopwatch:
    """Seconds spent in each part, the parts inside of it not included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.running: list[str] = []
        self._since = time.perf_counter()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] = self.seconds.get(self.running[-1], 0.0) + now - self._since
        self._since = now

    def around(
        self, part: str | Callable[[], str | None], function: Callable[..., Any]
    ) -> Callable[..., Any]:
        """`function`, timed as `part`."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            name = part if isinstance(part, str) else part()
            if name is None:
                return function(*args, **kwargs)
            self._switch()
            self.running.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self.running.pop()

        return timed


def watch(stopwatch: Stopwatch) -> None:
    """Put the stopwatch around the parts of a step."""
    import torch
    from accelerate import Accelerator

    from elpo.engines.transformers import TransformersEngine
    from elpo.rollout import scheduler
    from elpo.rollout.episode import Environment
    from elpo.training import policy_update, trainer
    from elpo.training.learner import SampledLogProbs

    def waiting() -> str | None:
        return {FEEDBACK: "tools: waiting", VERDICTS: "grading: waiting"}.get((stopwatch.running or [""])[-1])

    places: list[tuple[Any, str, str | Callable[[], str | None]]] = [
        (scheduler.Scheduler, "grow", "scheduling"),
        (TransformersEngine, "step", "decode"),
        (TransformersEngine, "release", "decode"),
        (scheduler._Collection, "_take_result", FEEDBACK),
        (scheduler._Collection, "_take_grade", VERDICTS),
        (Environment, "close", "tools: closing"),
        (Future, "result", waiting),
        (trainer, "assign_credits", "credit"),
        (policy_update, "pack_trees", "packing"),
        (SampledLogProbs, "forward", "forward"),
        (Accelerator, "backward", "backward"),
        (Accelerator, "clip_grad_norm_", "optimizer"),
        (torch.optim.AdamW, "step", "optimizer"),
    ]
    for owner, name, part in places:
        setattr(owner, name, stopwatch.around(part, getattr(owner, name)))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("run", type=Path, help="a finished run: its last policy is trained on")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()

    from elpo.training.checkpoint import Checkpoints
    from elpo.training.run_folder import RunFolder
    from elpo.training.trainer import train

    checkpoint = Checkpoints(RunFolder(args.run).checkpoints).path("last")
    assert checkpoint is not None, f"{args.run} has no checkpoint"
    stopwatch = Stopwatch()
    watch(stopwatch)
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"run.dir={folder}",
            f"model.path={str(checkpoint / 'model')!r}",
            "sft.num_steps=0",
            f"rl.num_steps={args.steps}",
            "evaluation.num_problems=1",
            "evaluation.every=0",
            "run.trees_every=1000",
        ]
        config = load_config(args.run / "config.yaml", [*settings, *args.overrides])
        at_step: list[dict[str, float]] = []

        class Steps:
            """Notes what the stopwatch shows after each step."""

            def update(self, step: int, metrics: Any) -> None:
                at_step.append({**stopwatch.seconds, "step": metrics["time/total"]})

            def __getattr__(self, name: str) -> Any:
                return lambda *_: None

        train(config, progress=Steps())  # type: ignore[arg-type]
    parts = sorted(set().union(*at_step) - {"step"})
    spent = {part: at_step[-1].get(part, 0.0) - at_step[0].get(part, 0.0) for part in parts}
    total = sum(step["step"] for step in at_step[1:])
    spent["everything else"] = total - sum(spent.values())
    shares = {part: seconds / total for part, seconds in sorted(spent.items(), key=lambda item: -item[1])}
    steps = len(at_step) - 1
    numbers = {"steps": steps, "seconds_a_step": total / steps, "shares": shares}
    rows = "\n".join(f"| {part} | {100 * share:.1f} % |" for part, share in shares.items())
    text = f"| part | share |\n|---|---|\n{rows}"
    publish(args.out, "step_profile", "Where the time of an RL step goes", numbers, text)


if __name__ == "__main__":
    main()
