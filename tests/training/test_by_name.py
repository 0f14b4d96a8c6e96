"""Strategies and credit rules of somebody else's, named `module:function` in a recipe."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from elpo.algorithms.advantage import mean_over_leaves_below
from elpo.algorithms.budget import BudgetLedger
from elpo.algorithms.strategies import RolloutRequest, Search
from elpo.recipes import dump_config, load_config
from elpo.training.run_folder import RunFolder
from elpo.training.trainer import train
from elpo.tree import ROOT, RolloutTree
from tests.coins import coins_config

HERE = "tests.training.test_by_name"


def pairs(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
    while ledger.remaining:
        yield RolloutRequest(ROOT, min(2, ledger.remaining))


def nothing(tree: RolloutTree, ledger: BudgetLedger, rng: np.random.Generator) -> Search:
    yield RolloutRequest(ROOT, 0)


def median_advantages(tree: RolloutTree) -> np.ndarray:
    rewards = np.array([outcome.reward for outcome in tree.outcomes.values()])
    return mean_over_leaves_below(tree, rewards - np.median(rewards))


def one_number(tree: RolloutTree) -> float:
    return 3.0


NOT_A_FUNCTION_OF_TREES = "text"


def test_a_run_with_a_strategy_and_a_credit_rule_of_its_own(tmp_path: Path) -> None:
    config = coins_config(
        tmp_path / "run",
        f"algorithm.strategy.name={HERE}:pairs",
        f"algorithm.credit.name={HERE}:median_advantages",
        "rl.num_steps=1",
        "run.trees_kept=4",
    )
    train(config)
    folder = RunFolder(tmp_path / "run")
    for tree, credit in folder.read_trees(1):
        assert credit is not None
        np.testing.assert_allclose(credit.advantages, median_advantages(tree), atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert folder.config() == config == load_config(folder.config_file)
        assert f"name: {HERE}:pairs" in dump_config(config)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (f"algorithm.strategy.name={HERE}:pears", "strategy.name: .*has no attribute 'pears'"),
        (
            "algorithm.strategy.name=no_such_module:pairs",
            "strategy.name: .*'no_such_module'; go to the folder",
        ),
        (f"algorithm.strategy.name={HERE}:HERE", "is no function"),
        (f"algorithm.credit.name={HERE}:mean", "credit.name: .*has no attribute 'mean'"),
        (f"algorithm.credit.name={HERE}:NOT_A_FUNCTION_OF_TREES", "is no function"),
    ],
)
def test_what_cannot_be_loaded_is_said_before_anything_is_written(
    setting: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        train(coins_config(tmp_path / "run", setting))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (f"algorithm.strategy.name={HERE}:nothing", "num_rollouts is 0: use 1 or more"),
        (f"algorithm.credit.name={HERE}:one_number", "gave .* nodes; return one finite number a node"),
    ],
)
def test_what_breaks_its_promise_ends_the_run_with_a_reason(setting: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        train(coins_config(tmp_path / "run", setting, "sft.num_steps=1", "evaluation.num_problems=1"))
    assert RunFolder(tmp_path / "run").read_metrics("evaluation")
