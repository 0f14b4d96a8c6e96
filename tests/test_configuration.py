"""Recipes and overrides: what they resolve to, and that every mistake names its key, place and remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from elpo.algorithms.registry import ALGORITHMS
from elpo.config import Config
from elpo.recipes import ConfigError, changed_keys, dump_config, load_config

WriteRecipe = Callable[..., Path]


@pytest.fixture
def recipe(tmp_path: Path) -> WriteRecipe:
    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_nothing_given_is_the_defaults() -> None:
    assert load_config(None) == Config()


def test_numbers_of_recipes_and_overrides(recipe: WriteRecipe) -> None:
    path = recipe("rl: {optimizer: {learning_rate: 1e-4}, num_steps: 7}\nrun: {seed: 1}\n")
    config = load_config(path, ["run.seed=3", "rl.optimizer.betas=[0.8, 0.9]", "rollout.temperature=1E-1"])
    assert config.rl.optimizer.learning_rate == 1e-4
    assert config.rl.num_steps == 7
    assert config.run.seed == 3
    assert config.rl.optimizer.betas == (0.8, 0.9)
    assert config.rollout.temperature == 0.1


def test_values_are_yaml(recipe: WriteRecipe) -> None:
    config = load_config(
        recipe("model: {path: some/model}\n"),
        ["model.path=null", "run.tensorboard=false", "task.options.day=2020-01-01", "run.dir=runs/a=b"],
    )
    assert config.model.path is None
    assert config.run.tensorboard is False
    assert config.task.options == {"day": "2020-01-01"}
    assert config.run.dir == "runs/a=b"


def test_a_partly_given_section_keeps_the_rest_of_its_own_defaults() -> None:
    optimizer = load_config(None, ["sft.optimizer.learning_rate=0.001"]).sft.optimizer
    assert optimizer.model_copy(update={"learning_rate": 1e-5}) == Config().sft.optimizer


def test_base_is_merged_below_and_found_beside_the_recipe(recipe: WriteRecipe) -> None:
    recipe("rl: {num_steps: 5, num_epochs: 2}\nrun: {seed: 1}\n", "shared/root.yaml")
    recipe("base: shared/root.yaml\nrl: {num_epochs: 3}\n", "middle.yaml")
    config = load_config(recipe("base: middle.yaml\nrun: {seed: 9}\n"))
    assert (config.rl.num_steps, config.rl.num_epochs, config.run.seed) == (5, 3, 9)


def test_options_fall_away_with_their_task(recipe: WriteRecipe) -> None:
    """Another task's options mean nothing to this one; those of the same task are merged."""
    ledger = recipe("task: {options: {min_lines: 5}}\nrun: {seed: 4}\n", "ledger.yaml")
    lookup = recipe("base: ledger.yaml\ntask: {name: lookup, options: {min_hops: 5}}\n", "lookup.yaml")
    longer = recipe("base: lookup.yaml\ntask: {name: lookup, options: {slack: 3}}\n", "longer.yaml")
    assert load_config(lookup).task.options == {"min_hops": 5}
    assert load_config(lookup).run.seed == 4
    assert load_config(longer).task.options == {"min_hops": 5, "slack": 3}
    same = load_config(ledger, ["task.name=ledger", "task.options.slack=3"])
    assert same.task.options == {"min_lines": 5, "slack": 3}
    for order in (1, -1):  # overrides stand together, in any order
        other = load_config(longer, ["task.options.x=1", "task.name=my_task:Mine"][::order])
        assert (other.task.name, other.task.options) == ("my_task:Mine", {"x": 1})


def test_a_circle_of_bases_is_refused(recipe: WriteRecipe) -> None:
    recipe("base: b.yaml\n", "a.yaml")
    recipe("base: a.yaml\n", "b.yaml")
    with pytest.raises(ConfigError, match="its own base"):
        load_config(recipe("base: a.yaml\n"))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_of_the_table_is_valid(name: str) -> None:
    config = load_config(None, [f"algorithm.name={name}"])
    assert config.algorithm.name == name
    changed = [key for key in changed_keys(Config(), config) if key != "algorithm.name"]
    assert bool(changed) == (name != "elpo")
    assert all(key.startswith("algorithm.") for key in changed)


def test_grpo_is_the_flat_tree_with_its_own_clip() -> None:
    algorithm = load_config(None, ["algorithm.name=grpo"]).algorithm
    assert algorithm.strategy.name == "independent"
    assert (algorithm.credit.branch_weight, algorithm.credit.std) == (0.0, "sample")
    assert (algorithm.clip.low, algorithm.clip.high, algorithm.clip.elc) == (0.2, 0.2, 0.0)


def test_what_is_said_explicitly_wins_over_the_algorithm_wherever_it_stands(recipe: WriteRecipe) -> None:
    recipe("algorithm: {clip: {high: 0.28}}\n", "base.yaml")
    clip = load_config(
        recipe("base: base.yaml\nalgorithm: {name: grpo}\n"), ["algorithm.clip.low=0.1"]
    ).algorithm.clip
    assert (clip.low, clip.high, clip.elc) == (0.1, 0.28, 0.0)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("rl.optimizer.lerning_rate=1", ["rl.optimizer.lerning_rate", "override", "'learning_rate'"]),
        ("rll.num_steps=1", ["unknown key rll", "did you mean 'rl'"]),
        ("zzz=1", ["unknown key zzz", "valid names: run, model, task"]),
        ("algorithm.name=grop", ["no algorithm 'grop'", "did you mean 'grpo'"]),
        ("algorithm.strategy.name=bell", ["algorithm.strategy.name is 'bell'", "did you mean 'bel'"]),
        ("run.device=quantum", ["run.device is 'quantum'", "valid names: auto, cpu, cuda"]),
        ("rl.num_steps=-1", ["rl.num_steps is -1", "greater than or equal to 0"]),
        ("rl.num_steps=2.5", ["rl.num_steps is 2.5", "integer"]),
        ("rl.num_steps=true", ["rl.num_steps is True", "integer"]),
        ("rl.num_steps='5'", ["rl.num_steps is '5'", "integer"]),
        ("run.tensorboard=1", ["run.tensorboard is 1", "boolean"]),
        ("rollout.temperature=0", ["rollout.temperature is 0", "greater than 0"]),
        ("rollout.temperature=.inf", ["rollout.temperature is inf", "finite"]),
        ("rl.optimizer.betas=[0.9]", ["rl.optimizer.betas.1 is missing"]),
        ("rl.optimizer.betas=[0.9,1.0]", ["rl.optimizer.betas.1 is 1.0", "less than 1"]),
        ("algorithm.clip.dual=1.0", ["algorithm.clip.dual is 1.0", "greater than 1"]),
        ("algorithm=elpo", ["algorithm is 'elpo'", "it is a section"]),
        ("run=null", ["run is None", "it is a section"]),
        ("rl.num_steps.x=1", ["rl.num_steps is {'x': 1}"]),
        ("rl.problems_per_step=24", ["rl: problems_per_step 24", "problems_per_minibatch 16"]),
        ("rollout.max_turn_tokens=99999", ["rollout: max_turn_tokens 99999 is above max_tokens 20480"]),
        ("algorithm.num_rollouts=2", ["max_failures 3 is above num_rollouts 2"]),
        ("algorithm.strategy.min_suffixes=4", ["min_suffixes 4 is above max_suffixes 3"]),
        ("algorithm.clip.elc=0.8", ["algorithm.clip: low + elc = 1", "below 1"]),
        ("model.tiny.num_heads=3", ["model.tiny: hidden_size 128 is not a multiple"]),
        ("model.tiny.num_kv_heads=3", ["num_heads 4 is not a multiple of num_kv_heads 3"]),
        ("rl.num_steps", ["not an override", "key.sub=value"]),
        ("=3", ["not an override"]),
        ("rl.num_steps=[1", ["override 'rl.num_steps=[1'", "not YAML"]),
    ],
)
def test_a_wrong_override_is_explained(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("rl:\n  num_stesp: 3\n", ["unknown key rl.num_stesp", "recipe.yaml", "did you mean 'num_steps'"]),
        ("rl:\n  num_steps: lots\n", ["rl.num_steps is 'lots' (", "recipe.yaml"]),
        ("rl:\n  num_steps: 3\n bad: [4\n", ["recipe.yaml:3:"]),
        ("rl:\n  num_steps: 3\n  num_steps: 4\n", ["recipe.yaml:3:3", "'num_steps' is given twice"]),
        ("- a\n- b\n", ["recipe.yaml", "`key: value`"]),
        ("base: [a, b]\n", ["base is ['a', 'b']"]),
        ("base: nowhere.yaml\n", ["there is no recipe", "nowhere.yaml"]),
        ("rl: {7: 3}\n", ["unknown key rl.7"]),
    ],
)
def test_a_wrong_recipe_is_explained(recipe: WriteRecipe, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe(text))
    for part in parts:
        assert part in str(caught.value)


def test_every_mistake_is_reported_at_once_with_its_own_place(recipe: WriteRecipe) -> None:
    path = recipe("rl: {num_steps: -1}\nrun: {seed: x}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["rollout.num_slots=0"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    places = {line.split(" ")[0]: line for line in lines}
    assert "recipe.yaml" in places["rl.num_steps"]
    assert "recipe.yaml" in places["run.seed"]
    assert "override 'rollout.num_slots=0'" in places["rollout.num_slots"]


def test_a_mistake_is_blamed_on_the_last_who_spoke(recipe: WriteRecipe) -> None:
    with pytest.raises(ConfigError, match=r"override 'rl\.num_steps=-2'"):
        load_config(recipe("rl: {num_steps: -1}\n"), ["rl.num_steps=-2", "rl.num_epochs=2"])


def test_a_missing_recipe_suggests_its_neighbour(recipe: WriteRecipe) -> None:
    path = recipe("", "tiny.yaml")
    with pytest.raises(
        ConfigError, match=r"there is no recipe .*tinny\.yaml \(did you mean 'tiny\.yaml'\?\)"
    ):
        load_config(path.with_name("tinny.yaml"))


def test_an_empty_recipe_is_the_defaults(recipe: WriteRecipe) -> None:
    assert load_config(recipe("# nothing\n")) == Config()


@example(learning_rate=1e-3, beta=0.9, high=0.2, algorithm="elpo", text="\x85", number=None)
@example(learning_rate=1e-3, beta=0.9, high=0.2, algorithm="elpo", text="0E0", number=None)
@given(
    learning_rate=st.floats(1e-12, 1.0),
    beta=st.floats(0, 0.999999),
    high=st.floats(0, 10),
    algorithm=st.sampled_from(sorted(ALGORITHMS)),
    text=st.text(max_size=20),
    number=st.one_of(
        st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()
    ),
)
def test_dump_and_load_are_inverse(
    tmp_path_factory: pytest.TempPathFactory,
    learning_rate: float,
    beta: float,
    high: float,
    algorithm: str,
    text: str,
    number: object,
) -> None:
    data = load_config(None, [f"algorithm.name={algorithm}"]).model_dump()
    data["rl"]["optimizer"] |= {"learning_rate": learning_rate, "betas": (beta, beta)}
    data["algorithm"]["clip"]["high"] = high
    data["task"]["options"] = {"text": text, "number": number, "nested": {"list": [text, number]}}
    data["run"]["dir"] = text
    config = Config.model_validate(data)
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_changed_keys_are_dotted_names() -> None:
    new = load_config(None, ["rl.num_steps=7", "run.seed=2", "task.options.depth=3"])
    assert changed_keys(Config(), new) == ["run.seed", "task.options.depth", "rl.num_steps"]


def test_the_dump_is_plain_yaml() -> None:
    assert yaml.safe_load(dump_config(Config()))["rl"]["num_steps"] == Config().rl.num_steps


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_runs_settings_with_another_algorithm_are_that_algorithms(recipe: WriteRecipe, name: str) -> None:
    """A run's config.yaml states all settings; those that only repeat a row go with its name."""
    own = ["algorithm.num_rollouts=24", "rl.num_steps=3"]
    saved = recipe(dump_config(load_config(None, ["algorithm.name=arpo", *own])))
    assert load_config(saved, [f"algorithm.name={name}"]) == load_config(
        None, [f"algorithm.name={name}", *own]
    )


def test_a_later_recipe_with_another_algorithm_keeps_what_the_base_has_changed(recipe: WriteRecipe) -> None:
    recipe("algorithm: {name: elpo, num_rollouts: 16, clip: {low: 0.1, high: 0.315}}", "base.yaml")
    algorithm = load_config(recipe("base: base.yaml\nalgorithm: {name: gspo}")).algorithm
    assert algorithm.clip.low == 0.1
    assert algorithm.clip.high == load_config(None, ["algorithm.name=gspo"]).algorithm.clip.high
