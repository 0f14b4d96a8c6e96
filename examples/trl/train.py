"""The tiny agent of recipes/tiny.yaml, its cold start by us and its RL by TRL's trainer, on a CPU.

    pip install -e '.[trl]'
    python examples/trl/train.py runs/trl --problems 4 --steps 4

Nothing here is special to the tiny model: any recipe of ours will do, and `GRPOConfig` arguments of TRL's can
be added to `grpo_arguments` below.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports its use otherwise

from elpo.adapters.trl import ElpoTrainer, grpo_arguments
from elpo.recipes import load_config
from elpo.training.assembly import assemble, choose_device
from elpo.training.trainer import train

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--problems", type=int, default=24, help="trees of one step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sft-steps", type=int, default=700)
    args = parser.parse_args()
    settings = [
        f"run.dir={str(args.folder / 'cold-start')!r}",
        f"sft.num_steps={args.sft_steps}",
        f"rl.problems_per_step={args.problems}",
        f"rl.problems_per_minibatch={args.problems}",
        "evaluation.num_problems=16",
    ]
    train(load_config(args.recipe, [*settings, "rl.num_steps=0"]), resume=True)
    model = max((args.folder / "cold-start" / "checkpoints").glob("*/model"), key=os.path.getmtime)
    config = load_config(args.recipe, [*settings, f"rl.num_steps={args.steps}"])
    assembly = assemble(config, choose_device(config.run.device), model)
    try:
        arguments = grpo_arguments(config, str(args.folder), save_strategy="no")
        trainer = ElpoTrainer(assembly, arguments)
        trainer.train()
        trainer.save_model(str(args.folder / "model"))
    finally:
        assembly.close()


if __name__ == "__main__":
    main()
