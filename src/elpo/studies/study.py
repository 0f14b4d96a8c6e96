"""What a comparison consists of: a recipe, variants of it, seeds. Plain data; nothing runs here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from elpo.config import Config
from elpo.recipes import ConfigError, load_config
from elpo.schema import Count, Fraction, Section
from elpo.strict_yaml import parse, where

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
START_SETTINGS = ("sft.", "model.", "task.")
"""A variant that changes one of these has a cold start of its own."""


class StudyConfig(Section):
    """A study file. `recipe` is relative to the file's own folder; `runs` is where the runs go. Studies of
    one recipe may share it: then they share cold starts and variants of the same name and settings.

    `algorithms` are variants that only set `algorithm.name`; `variants` give a name to any settings. The
    first variant is what the others are compared with. `target` is the held-out success whose price in
    rollouts is reported. `overrides` are settings of every run.
    """

    recipe: str
    runs: str | None = None
    seeds: tuple[Count, ...] = (0, 1, 2, 3, 4)
    target: Fraction = 0.5
    algorithms: tuple[str, ...] = ()
    variants: Mapping[str, tuple[str, ...]] = {}
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training of a study: its folder and its settings on top of the recipe."""

    folder: Path
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A study that can be run: every variant's settings are known to be valid."""

    name: str
    recipe: Path
    runs: Path
    seeds: tuple[int, ...]
    target: float
    common: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]]

    @cached_property
    def configs(self) -> Mapping[str, Config]:
        """The settings of every variant, but for seed and folder.

        Raises:
            ConfigError: those of a variant are wrong.
        """
        configs = {}
        for variant, own in self.variants.items():
            try:
                configs[variant] = load_config(self.recipe, (*self.common, *own))
            except ConfigError as error:
                raise ConfigError(f"variant {variant!r} of {self.name}: {error}") from None
        return configs

    def start_of(self, variant: str) -> str | None:
        """The name of the cold start that a variant begins with: its own, or the one most variants share;
        None where there is no cold start."""
        if not self.configs[variant].sft.num_steps:
            return None
        own = any(text.startswith(START_SETTINGS) for text in self.variants[variant])
        return f"{variant}-cold" if own else "cold"

    def cold_starts(self) -> list[Run]:
        """The cold starts, every one once for each seed."""
        runs: dict[Path, Run] = {}
        for seed in self.seeds:
            for variant, own in self.variants.items():
                if (start := self.start_of(variant)) is None:
                    continue
                folder = self.folder(start, seed)
                changes = (text for text in own if text.startswith(START_SETTINGS))
                settings = (*self.common, *changes, f"run.seed={seed}", "rl.num_steps=0")
                runs.setdefault(folder, Run(folder, settings))
        return list(runs.values())

    def trainings(self, checkpoint: Mapping[Path, Path]) -> list[Run]:
        """Every variant with every seed, seed by seed.

        Args:
            checkpoint: the model folder that the cold start in each folder has left.
        """
        runs = []
        for seed in self.seeds:
            for variant, own in self.variants.items():
                settings = (*self.common, *own, f"run.seed={seed}")
                if (start := self.start_of(variant)) is not None:
                    model = checkpoint[self.folder(start, seed)]
                    settings = (*settings, f"model.path={str(model)!r}", "sft.num_steps=0")
                runs.append(Run(self.folder(variant, seed), settings))
        return runs

    def folder(self, variant: str, seed: int) -> Path:
        """Where a run lives."""
        return self.runs / f"{variant}-{seed}"


def load_study(path: str | Path, changes: Mapping[str, Any], overrides: Sequence[str] = ()) -> Study:
    """The study that a file describes: a study file, or a recipe whose variants `changes` names.

    Args:
        path: YAML. A file without the key `recipe` is a recipe.
        changes: fields of `StudyConfig` that replace those of the file.
        overrides: settings for every run, after those of the file.

    Raises:
        ConfigError: the file, a name or the settings of a variant are wrong.
    """
    path = Path(path)
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the study {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{where(error)}") from None
    is_study = isinstance(content, dict) and "recipe" in content
    try:
        config = StudyConfig(**{**(content if is_study else {"recipe": path.name}), **changes})
    except ValidationError as error:
        lines = (f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError("\n".join(lines)) from None
    variants: dict[str, tuple[str, ...]] = {name: (f"algorithm.name={name}",) for name in config.algorithms}
    variants.update(config.variants)
    _check_names(path, variants, config.seeds)
    study = Study(
        name=path.stem,
        recipe=path.parent / config.recipe,
        runs=Path(config.runs or f"runs/studies/{path.stem}"),
        seeds=config.seeds,
        target=config.target,
        common=(*config.overrides, *overrides),
        variants=variants,
    )
    _ = study.configs  # what is wrong with them is found here
    return study


def _check_names(path: Path, variants: Mapping[str, Any], seeds: Sequence[int]) -> None:
    if not variants:
        raise ConfigError(f"{path} compares nothing: name algorithms (--algorithms elpo grpo) or variants")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: seeds {list(seeds)} must be one or more different numbers")
    for name in variants:
        if not NAME.fullmatch(name) or name.endswith("cold"):
            raise ConfigError(
                f"{path}: variant {name!r} names folders: use letters, digits and . _ + -, and not ...cold"
            )
