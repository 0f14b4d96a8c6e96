"""Equal budgets: whatever a row of the table draws, it is paid for, and all of it is spent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elpo.algorithms.registry import ALGORITHMS
from elpo.recipes import load_config
from elpo.training.assembly import make_strategy

OPTIONS = {
    "posterior": ["strategy.search_limit=13", "strategy.round_cost=2.0", "strategy.informed=false"],
    "aepo": ["strategy.pre_monitor=counted", "strategy.branching=code"],
    "vineppo": ["strategy.num_samples=9"],
}


def settings_of(name: str):
    """The strategies a row may have: its own, and with its options changed."""
    for option in [None, *OPTIONS.get(name.removeprefix("elpo-"), [])]:
        overrides = [f"algorithm.name={name}", *([f"algorithm.{option}"] if option else [])]
        yield load_config(None, overrides).algorithm.strategy


STRATEGIES = {repr(config): config for name in ALGORITHMS for config in settings_of(name)}


@pytest.mark.parametrize("config", STRATEGIES.values(), ids=lambda config: config.name)
@settings(max_examples=25, deadline=None)
@given(
    total=st.integers(0, 24),
    seed=st.integers(0, 2**32),
    success=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    fault=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_every_strategy_spends_exactly_its_budget(run, config, total, seed, success, fault):
    """With any policy, lengths, entropies and losses; and every rollout that survived is in the tree."""
    chance, continued = np.random.default_rng(seed + 1), []

    def policy(tree, prefix, i):
        if chance.random() < fault:
            return None
        continued.append(prefix)
        num_tools = int(chance.integers(0, 5))
        return num_tools, chance.random() < success, list(3 * chance.random(num_tools + 1))

    tree, ledger, requests = run(make_strategy(config), total, policy, seed)
    assert ledger.spent == total == sum(request.num_rollouts for request in requests)
    assert all(request.num_rollouts >= 1 for request in requests)
    assert [tree.prefix(leaf) for leaf in tree.leaves] == continued


def test_the_table_has_every_kind_of_strategy():
    assert {config.name for config in STRATEGIES.values()} == {
        "bel", "independent", "random_prefix", "frontier", "posterior", "entropy_branching", "vine",
    }  # fmt: skip
