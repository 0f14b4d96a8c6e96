"""From recipe files and `key=value` overrides to one checked `Config`, and back to YAML.

Settings are laid over each other, later ones winning key by key: the defaults, the row of the table
of algorithms, the recipe's `base` (and that one's), the recipe, the overrides. Options of a task fall
away where a later recipe or an override names another task; what a recipe says of an algorithm falls away
where another one is named and it only repeats that algorithm's row, as the config.yaml of a run does.
Each layer remembers where it came from, so that a mistake is reported with its key, its place and the
remedy.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from elpo.algorithms.registry import ALGORITHMS
from elpo.config import Config
from elpo.strict_yaml import dump, parse, where


class ConfigError(ValueError):
    """A recipe or an override says something that cannot be run; the message names it and the remedy."""


@dataclass(frozen=True)
class _Layer:
    """Nested settings and the place they came from."""

    origin: str
    settings: dict[str, Any]


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a recipe file and `key.sub=value` overrides describe.

    A recipe may name another one to start from: `base: other.yaml`, relative to its own folder.
    Values of overrides are YAML: `run.seed=3`, `rl.optimizer.betas=[0.9,0.99]`, `model.path=null`.

    Raises:
        ConfigError: for a missing or malformed file, an unknown key, an impossible value, an unknown
            algorithm; every mistake found is a line of the message.
    """
    recipes = [] if path is None else _recipe_layers(Path(path), ())
    layers = _of_one_task(recipes, [_override_layer(text) for text in overrides])
    layers = _of_one_algorithm(layers)
    problems = [line for layer in layers for line in _unknown_keys(layer.settings, Config, "", layer.origin)]
    if problems:
        raise ConfigError("\n".join(problems))

    settings = _merged(Config().model_dump(), *(layer.settings for layer in layers))
    preset = _preset(settings, layers)
    settings = _merged(Config().model_dump(), preset, *(layer.settings for layer in layers))
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_explained(e, layers) for e in error.errors())) from None


def dump_config(config: Config) -> str:
    """Every setting of `config` as YAML text that `load_config` reads back to an equal object."""
    return dump(config.model_dump(mode="json"))


def changed_keys(old: Config, new: Config) -> list[str]:
    """Dotted names of the settings in which two configurations differ, in the order of the schema."""

    def compare(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str) -> Iterable[str]:
        for key in {**a, **b}:
            x, y = a.get(key), b.get(key)
            if isinstance(x, dict) and isinstance(y, dict):
                yield from compare(x, y, f"{prefix}{key}.")
            elif x != y:
                yield f"{prefix}{key}"

    return list(compare(old.model_dump(), new.model_dump(), ""))


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown word: the valid name it resembles, or all of them.

    >>> nearest("lerning_rate", ["learning_rate", "betas"])
    "did you mean 'learning_rate'?"
    >>> nearest("x", ["learning_rate", "betas"])
    'valid names: learning_rate, betas'
    """
    names = list(names)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(names)}"


def _recipe_layers(path: Path, including: tuple[Path, ...]) -> list[_Layer]:
    """The recipe at `path` after the chain of its bases; `including` are the recipes that led here."""
    if path.resolve() in including:
        raise ConfigError(f"{path}: this recipe is its own base; remove one `base:` of the circle")
    settings = _read_yaml(path)
    base = settings.pop("base", None)
    if base is None:
        return [_Layer(str(path), settings)]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base is {base!r}; give the file name of one recipe")
    return [
        *_recipe_layers(path.parent / base, (*including, path.resolve())),
        _Layer(str(path), settings),
    ]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = f" ({nearest(path.name, sorted(siblings))})" if siblings else ""
        raise ConfigError(f"there is no recipe {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error}") from None
    try:
        settings = parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{where(error)}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: a recipe is made of `key: value` lines, this is {settings!r:.80}")
    return settings


def _override_layer(text: str) -> _Layer:
    key, equals, value_text = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{text!r} is not an override; write key.sub=value, for example rl.num_steps=50")
    origin = f"override {text!r}"
    try:
        value = parse(value_text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: the value is not YAML{where(error)}") from None
    for name in reversed(key.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return _Layer(origin, value)


def _of_one_task(recipes: Sequence[_Layer], overrides: Sequence[_Layer]) -> list[_Layer]:
    """All layers, without the options of tasks that a later recipe, or an override, replaces by another."""
    name: Any = Config().task.name
    kept: list[_Layer] = []
    for group in (*([recipe] for recipe in recipes), overrides):
        sections = [layer.settings.get("task") for layer in group]
        named = [section["name"] for section in sections if isinstance(section, dict) and "name" in section]
        if named and named[-1] != name:
            name = named[-1]
            kept = [_without_task_options(layer) for layer in kept]
        kept += group
    return kept


def _without_task_options(layer: _Layer) -> _Layer:
    section = layer.settings.get("task")
    if not isinstance(section, dict):
        return layer
    rest = {key: value for key, value in section.items() if key != "options"}
    return _Layer(layer.origin, {**layer.settings, "task": rest})


def _of_one_algorithm(layers: Sequence[_Layer]) -> list[_Layer]:
    """The layers, without what only repeats the row of an algorithm that a later layer replaces."""
    sections = [layer.settings.get("algorithm") for layer in layers]
    names = [section.get("name") if isinstance(section, dict) else None for section in sections]
    last = next((name for name in reversed(names) if name is not None), None)
    kept = []
    for layer, section, name in zip(layers, sections, names, strict=True):
        if isinstance(section, dict) and isinstance(name, str) and name in ALGORITHMS and name != last:
            row = _merged(Config().algorithm.model_dump(mode="json"), ALGORITHMS[name])
            layer = _Layer(layer.origin, {**layer.settings, "algorithm": _beyond(section, row)})
        kept.append(layer)
    return kept


def _beyond(settings: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that are not as known."""
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and isinstance(known.get(key), Mapping):
            kept[key] = _beyond(value, known[key])
        elif key not in known or value != known[key]:
            kept[key] = value
    return kept


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers over earlier ones; mappings are merged key by key, anything else is replaced."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            if isinstance(old, dict) and isinstance(value, Mapping):
                result[key] = _merged(old, value)
            else:
                result[key] = _merged(value) if isinstance(value, Mapping) else value
    return result


def _preset(settings: Mapping[str, Any], layers: Sequence[_Layer]) -> dict[str, Any]:
    """The row of the table of algorithms that the merged settings name."""
    section = settings["algorithm"]
    name = section["name"] if isinstance(section, dict) else None
    if not isinstance(name, str):
        return {}  # left to the schema, which refuses it with its place
    if name not in ALGORITHMS:
        origin = _origin(("algorithm", "name"), layers)
        raise ConfigError(
            f"algorithm.name: there is no algorithm {name!r}{origin}; {nearest(name, ALGORITHMS)}"
        )
    return {"algorithm": ALGORITHMS[name]}


def _unknown_keys(
    settings: Mapping[Any, Any], schema: type[BaseModel], prefix: str, origin: str
) -> list[str]:
    """A line for every key of a layer that the schema does not have, its sections' keys included."""
    problems = []
    for key, value in settings.items():
        field = schema.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            advice = nearest(str(key), schema.model_fields)
            problems.append(f"unknown key {prefix}{key} ({origin}); {advice}")
            continue
        section = field.annotation
        if isinstance(value, Mapping) and isinstance(section, type) and issubclass(section, BaseModel):
            problems += _unknown_keys(value, section, f"{prefix}{key}.", origin)
    return problems


def _mentions(settings: Any, location: Sequence[int | str]) -> bool:
    """True where `settings` say something about `location`, be it by replacing a whole section."""
    for key in location:
        if not isinstance(settings, Mapping):
            return True
        if key not in settings:
            return False
        settings = settings[key]
    return True


def _origin(location: Sequence[int | str], layers: Sequence[_Layer]) -> str:
    """` (where)` of the last layer that mentions `location`; nothing where all layers are silent."""
    return next(
        (f" ({layer.origin})" for layer in reversed(layers) if _mentions(layer.settings, location)), ""
    )


def _explained(error: ErrorDetails, layers: Sequence[_Layer]) -> str:
    """One line for one of pydantic's errors: key, value, place, what is allowed."""
    key = ".".join(str(part) for part in error["loc"])
    place = _origin(error["loc"], layers)
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":  # a rule between fields; the sections' own words
        return f"{key}: {context['error']}"
    if kind == "model_type":
        return f"{key} is {value!r:.80}{place}, but it is a section: write {key}.<name>"
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", context["expected"])
        return f"{key} is {value!r:.80}{place}; {nearest(str(value), names)}"
    if kind == "missing":
        return f"{key} is missing{place}"
    return f"{key} is {value!r:.80}{place}; {error['msg'].replace('Input should be', 'it must be')}"
