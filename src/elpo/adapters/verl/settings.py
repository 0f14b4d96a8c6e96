"""One recipe of ours beside verl's configuration: what it means there, and whether the two agree.

`python -m elpo.adapters.verl.settings RECIPE DATA` prints the recipe as arguments of `verl.trainer.main_ppo`;
the data files are those of `elpo.adapters.verl.rows`. Needs no verl.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from elpo.config import Config
from elpo.recipes import load_config

ENTROPIES = ("surprisal", "prompt_logprobs")
TRAINER = "elpo_sync"
LOSS = "elpo"


def verl_arguments(config: Config, recipe: Path, data: Path) -> list[str]:
    """The recipe as `key=value` arguments of verl's; where and with what it runs is to be added.

    Of the tokens a trajectory may have, an eighth may be prompt.
    """
    rollout, actor = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
    algorithm, rl = config.algorithm, config.rl
    settings = {
        "+elpo.recipe": recipe.resolve(),
        "trainer.v1.trainer_mode": TRAINER,
        "trainer.total_training_steps": rl.num_steps,
        f"{rollout}.agent.agent_loop_config_path": Path(__file__).with_name("agent.yaml"),
        f"{rollout}.agent.default_agent_loop": "elpo",
        f"{rollout}.n": algorithm.num_rollouts,
        f"{rollout}.temperature": config.rollout.temperature,
        f"{rollout}.prompt_length": config.rollout.max_tokens // 8,
        f"{rollout}.response_length": config.rollout.max_tokens,
        f"{rollout}.val_kwargs.temperature": config.rollout.temperature,
        f"{rollout}.val_kwargs.do_sample": True,
        f"{rollout}.val_kwargs.n": 1,
        f"{actor}.policy_loss.loss_mode": LOSS,
        f"{actor}.loss_agg_mode": algorithm.loss.aggregation,
        f"{actor}.clip_ratio_low": algorithm.clip.low,
        f"{actor}.clip_ratio_high": algorithm.clip.high,
        f"{actor}.ppo_mini_batch_size": rl.problems_per_minibatch,
        f"{actor}.ppo_epochs": rl.num_epochs,
        f"{actor}.use_kl_loss": False,
        f"{actor}.grad_clip": rl.optimizer.max_grad_norm,
        f"{actor}.optim.lr": rl.optimizer.learning_rate,
        f"{actor}.optim.weight_decay": rl.optimizer.weight_decay,
        f"{actor}.optim.lr_warmup_steps": rl.optimizer.warmup_steps,
        "data.train_files": data.resolve() / "train.parquet",
        "data.val_files": data.resolve() / "validation.parquet",
        "data.train_batch_size": rl.problems_per_step,
        "data.max_prompt_length": config.rollout.max_tokens // 8,
        "data.max_response_length": config.rollout.max_tokens,
        "data.return_raw_chat": True,
        "algorithm.adv_estimator": "grpo",  # made, and then replaced by ours
    }
    if config.model.path is not None:
        settings["actor_rollout_ref.model.path"] = config.model.path
    return [f"{key}={value}" for key, value in settings.items()]


def read_recipe(config: Any) -> Config:
    """Our settings for a run of verl, from the recipe at `elpo.recipe` of its configuration.

    Raises:
        ValueError: the key is missing, or the recipe is wrong.
    """
    path = config.get("elpo", {}).get("recipe")
    if not path:
        raise ValueError("verl's configuration names no recipe of ours; add +elpo.recipe=FILE.yaml")
    return _load(str(path))


@cache
def _load(path: str) -> Config:
    return load_config(Path(path))


def entropy_source(config: Any) -> str:
    """Where the search's entropies come from, `elpo.entropy`: one of `ENTROPIES`.

    Raises:
        ValueError: it is another word, or asks for what the sampling temperature does not allow.
    """
    source = str(config.get("elpo", {}).get("entropy", "surprisal"))
    if source not in ENTROPIES:
        raise ValueError(f"elpo.entropy is {source!r}; use one of {', '.join(ENTROPIES)}")
    temperature = config.actor_rollout_ref.rollout.temperature
    if source == "prompt_logprobs" and temperature != 1:
        raise ValueError(
            f"elpo.entropy is prompt_logprobs, which servers give at temperature 1, and rollout.temperature "
            f"is {temperature}; use surprisal"
        )
    return source


def check_agreement(config: Any, ours: Config) -> None:
    """Refuse a configuration of verl under which it would train something other than the recipe.

    Raises:
        ValueError: names the key of verl's, its value and what it should be.
    """
    rollout, actor = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor
    from elpo.adapters.leaf_rows import check_algorithm

    check_algorithm(ours.algorithm, "verl")
    clip = ours.algorithm.clip
    wanted = {
        "actor_rollout_ref.rollout.n": (rollout.n, ours.algorithm.num_rollouts),
        "actor_rollout_ref.rollout.temperature": (rollout.temperature, ours.rollout.temperature),
        "actor_rollout_ref.actor.loss_agg_mode": (actor.loss_agg_mode, ours.algorithm.loss.aggregation),
        "actor_rollout_ref.actor.clip_ratio_low": (actor.clip_ratio_low, clip.low),
        "actor_rollout_ref.actor.clip_ratio_high": (actor.clip_ratio_high, clip.high),
        "actor_rollout_ref.actor.policy_loss.loss_mode": (actor.policy_loss.loss_mode, LOSS),
    }
    for key, (value, right) in wanted.items():
        if value != right:
            raise ValueError(f"{key} is {value!r}; the recipe needs {right!r}")
    entropy_source(config)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    print(*verl_arguments(load_config(sys.argv[1]), Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
