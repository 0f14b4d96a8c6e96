"""One recipe of ours beside verl's configuration, and whether the two agree. Needs no verl."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from elpo.config import Config
from elpo.recipes import load_config

ENTROPIES = ("surprisal", "prompt_logprobs")
TRAINER = "elpo_sync"
LOSS = "elpo"


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
    if ours.algorithm.loss.shared_tokens != "duplicate":
        raise ValueError("algorithm.loss.shared_tokens is once, but verl has a row for each trajectory")
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
