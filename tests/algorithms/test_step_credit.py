"""Credit of single steps: GiGPO, Tree-GRPO, VinePPO, VPPO, and AEPO's objective, by hand and otherwise."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import zscore

from elpo.algorithms.advantage import branch_advantages, trajectory_advantages
from elpo.algorithms.anchor_groups import anchor_group_advantages
from elpo.algorithms.balanced import balanced_surrogate
from elpo.algorithms.credit_rules import assign_credits
from elpo.algorithms.prefix_reward import prefix_reward_advantages
from elpo.algorithms.surrogate import clipped_surrogate
from elpo.algorithms.tree_groups import chain_of, tree_group_advantages
from elpo.algorithms.vine import step_values, vine
from elpo.recipes import ConfigError, load_config
from elpo.tree import ROOT
from elpo.types import Outcome, ToolResult, ToolStatus
from tests.trees import build_outcome, build_step, build_steps, empty_tree, flat

WIN, LOSS = build_outcome(True, 1.0), build_outcome(False, 0.0)


def steps_seeing(*outputs: str):
    """Tool steps with these answers, and a final one."""
    seen = [replace(build_step(True), tool_result=ToolResult(ToolStatus.OK, output)) for output in outputs]
    return [*seen, build_step(False)]


def branched(seed: int, num_leaves: int = 9):
    """A random tree of trajectories of one to four steps, with few different answers of the tool."""
    rng = np.random.default_rng(seed)
    tree = empty_tree()
    for _ in range(num_leaves):
        prefixes = [ROOT, *(i for i in range(len(tree.nodes)) if i not in tree.outcomes)]
        prefix = int(rng.choice(prefixes))
        outputs = [str(rng.integers(3)) for _ in range(int(rng.integers(0, 4)))]
        tree.add(prefix, steps_seeing(*outputs), Outcome(float(rng.integers(3)), bool(rng.integers(2))))
    return tree


# GiGPO


def test_gigpo_by_hand():
    """Two episodes of two steps see the same answer; γ = 1/2, so that their first steps return 1/2 and 0."""
    tree = empty_tree()
    tree.add(ROOT, steps_seeing("a"), WIN)
    tree.add(ROOT, steps_seeing("a"), LOSS)
    episode = 0.5 / np.sqrt(0.5)  # of 1 and 0, sample deviation
    found = anchor_group_advantages(tree, discount=0.5)
    np.testing.assert_allclose(found, [2 * episode, 2 * episode, -2 * episode, -2 * episode], rtol=1e-5)
    plain = anchor_group_advantages(tree, discount=0.5, scale=False, step_weight=2.0)
    np.testing.assert_allclose(plain, [0.5 + 2 * 0.25, 0.5 + 2 * 0.5, -1.0, -1.5])


def test_gigpo_recognises_a_state_wherever_it_recurs():
    """The answer "x" comes after one step in one episode and after two in the other."""
    tree = empty_tree()
    tree.add(ROOT, steps_seeing("x"), WIN)
    tree.add(ROOT, steps_seeing("y", "x"), LOSS)
    found = anchor_group_advantages(tree, step_weight=1.0, scale=False, discount=1.0)
    # both first steps, both steps after x; the one after y is alone
    np.testing.assert_allclose(found, [1.0, 1.0, -1.0, -0.5, -1.0])


@pytest.mark.parametrize("anchor", ["observation", "prefix"])
@pytest.mark.parametrize("seed", range(4))
def test_gigpo_is_a_table_of_steps_grouped_by_state(anchor, seed):
    """As verl-agent does: a row for every step of every episode, groups by state, torch.std."""
    tree = branched(seed)
    rows = []  # node, state, return, episode
    for leaf, outcome in tree.outcomes.items():
        path = tree.path(leaf)
        for k, node in enumerate(path):
            parent = tree.nodes[node].parent
            seen = None if parent == ROOT else tree.nodes[parent].step.tool_result.output
            state = parent if anchor == "prefix" else seen
            rows.append((node, state, 0.9 ** (len(path) - 1 - k) * outcome.reward, outcome.reward))
    rewards = torch.tensor([outcome.reward for outcome in tree.outcomes.values()], dtype=torch.float64)
    table, sizes = np.zeros(len(tree.nodes)), np.zeros(len(tree.nodes))
    for node, state, returned, reward in rows:
        group = torch.tensor([r for _, s, r, _ in rows if s == state], dtype=torch.float64)
        step = (returned - group.mean()) / (group.std() + 1e-6) if len(group) > 1 else torch.zeros(())
        table[node] += float((reward - rewards.mean()) / (rewards.std() + 1e-6) + 0.7 * step)
        sizes[node] += 1
    found = anchor_group_advantages(tree, anchor, discount=0.9, step_weight=0.7)
    np.testing.assert_allclose(found, table / sizes, atol=1e-9)


def test_gigpo_without_recurring_states_is_grpo_but_for_the_first_step():
    tree = empty_tree()
    for i, outcome in enumerate((WIN, LOSS, LOSS)):
        tree.add(ROOT, steps_seeing(f"{i}a", f"{i}b"), outcome)
    found = anchor_group_advantages(tree, discount=1.0)
    episodes = trajectory_advantages(tree, "sample")
    first = [0, 3, 6]
    np.testing.assert_allclose(found[first], 2 * episodes[first])
    rest = np.setdiff1d(range(9), first)
    np.testing.assert_allclose(found[rest], episodes[rest])


def test_gigpo_on_a_tree_compares_siblings_like_the_branch_term():
    """One leaf below each child of the root and γ = 1: the two are the same where nothing branches deeper."""
    tree = flat([1.0, 0.0, 0.0, 1.0])
    found = anchor_group_advantages(tree, "prefix", discount=1.0) - trajectory_advantages(tree, "sample")
    heads = [tree.path(leaf)[0] for leaf in tree.leaves]
    np.testing.assert_allclose(found[heads], branch_advantages(tree, "sample")[heads])


def test_gigpo_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="anchor"):
        anchor_group_advantages(flat([1.0]), "history")
    with pytest.raises(ValueError, match="discount"):
        anchor_group_advantages(flat([1.0]), discount=1.5)


# Tree-GRPO


def test_tree_grpo_by_hand():
    """Two trees of two leaves, rewards 1 0 | 0 0: within the first ±1/√2, over all four 3/2 and -1/2."""
    tree = empty_tree()
    for outcome in (WIN, LOSS):
        tree.add(ROOT, build_steps(2), outcome)
    for chain in (0, 3):
        tree.add(chain, build_steps(1), LOSS)
    found = tree_group_advantages(tree, num_chains=2)
    half, high, low = np.sqrt(0.5), 1.5, -0.5
    leaves = np.array([half + high, low, low - half, low])
    np.testing.assert_allclose(found[tree.leaves], leaves, rtol=1e-5)
    np.testing.assert_allclose(found[0], leaves[[0, 2]].mean(), rtol=1e-4)  # shared first step


@pytest.mark.parametrize("seed", range(4))
def test_tree_grpo_against_scipy(seed):
    tree = branched(seed, 16)
    chains = chain_of(tree, 4)
    rewards = np.array([outcome.reward for outcome in tree.outcomes.values()])
    expected = zscore(rewards, ddof=1)
    for chain in range(4):
        members = np.flatnonzero(chains == chain)
        if len(set(rewards[members])) > 1:
            expected[members] += zscore(rewards[members], ddof=1)
    np.testing.assert_allclose(tree_group_advantages(tree, 4)[tree.leaves], expected, atol=1e-4)


def test_expansions_of_the_prompt_fill_the_smallest_trees():
    tree = empty_tree()
    for _ in range(2):
        tree.add(ROOT, build_steps(2), LOSS)
    tree.add(0, build_steps(0), LOSS)
    for _ in range(3):
        tree.add(ROOT, build_steps(0), LOSS)
    np.testing.assert_array_equal(chain_of(tree, 2), [0, 1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match="num_chains is 0"):
        chain_of(tree, 0)


# VinePPO


def test_vine_values_every_step_of_its_chains(run):
    """Two chains of two calls with two samples each: 2 + 4 + 4, then a third chain and its first state."""
    _, ledger, requests = run(vine(2, 2), 12, lambda tree, prefix, i: (2 - len(tree.path(prefix)), False))
    drawn = [(request.prefix, request.num_rollouts) for request in requests]
    assert drawn == [(ROOT, 2), (0, 2), (1, 2), (3, 2), (4, 2), (ROOT, 1), (18, 1)]
    assert ledger.remaining == 0


def test_vine_by_hand():
    """V(prompt) = 0 for the first chain, then 1/2 after step one, 1 after step two, and it ends with 0."""
    tree = empty_tree()
    tree.add(ROOT, build_steps(2), LOSS)
    tree.add(ROOT, build_steps(1), LOSS)
    for anchor, outcomes in ((0, (WIN, LOSS)), (1, (WIN, WIN))):
        for outcome in outcomes:
            tree.add(anchor, build_steps(0), outcome)
    found = step_values(tree)
    np.testing.assert_allclose(found[:3], [0.5, 0.5, -1.0])
    assert not found[3:].any()  # the other chain is as good as the first; continuations are not trained on


@pytest.mark.parametrize("seed", range(5))
def test_vine_advantages_telescope(run, seed):
    """Along a chain they add up to R less the mean of the other chains, counted once a valued stretch."""
    rng = np.random.default_rng(seed)
    tree, _, _ = run(vine(3, 2), 16, lambda *_: (int(rng.integers(0, 4)), rng.random() < 0.5), seed)
    found = step_values(tree)
    chains = [leaf for leaf in tree.leaves if tree.prefix(leaf) == ROOT]
    valued = {tree.prefix(leaf) for leaf in tree.leaves}
    for chain in chains:
        others = [tree.outcomes[leaf].reward for leaf in chains if leaf != chain]
        ends = [node for node in tree.path(chain) if node in valued or node == chain]
        assert found[ends].sum() == pytest.approx(tree.outcomes[chain].reward - np.mean(others))
    on_chains = {node for chain in chains for node in tree.path(chain)}
    assert not any(found[node] for node in range(len(tree.nodes)) if node not in on_chains)


def test_vine_of_one_rollout_compares_with_nothing():
    assert not step_values(flat([1.0])).any()
    assert step_values(empty_tree()).shape == (0,)


# VPPO


def test_vppo_by_hand():
    """A failure of three equal steps whose second is critical: V = 1/2 · 1/3; the success has 1."""
    tree = empty_tree()
    tree.add(ROOT, build_steps(2), LOSS)
    tree.add(0, build_steps(0), WIN)  # saves the first step
    found = prefix_reward_advantages(tree)
    baseline = (0.5 / 3 + 1.0) / 2
    np.testing.assert_allclose(found, np.array([0.75, 0.0, 0.0, 1.0]) - baseline)


@pytest.mark.parametrize("seed", range(5))
def test_vppo_is_the_mean_over_tokens_of_the_written_out_responses(seed):
    """Token by token, with the critical step read off by looking for a success below."""
    tree = branched(seed)
    responses, tokens = [], defaultdict(list)
    for leaf, outcome in tree.outcomes.items():
        values, good = [], True
        for node in tree.path(leaf):
            below = [o.correct for other, o in tree.outcomes.items() if node in tree.path(other)]
            good = good and any(below)
            value = 1.0 if outcome.correct else 0.3 * good
            tokens[node].append(value)
            values += [value] * int(tree.nodes[node].step.sampled.sum())
        responses.append(np.mean(values))
    expected = [np.mean(tokens[node]) - np.mean(responses) for node in range(len(tree.nodes))]
    np.testing.assert_allclose(prefix_reward_advantages(tree, 0.3), expected, atol=1e-12)


def test_vppo_of_the_figure_uses_the_steps_the_search_found(figure4):
    """Both searched failures are credited exactly for what comes before their critical step."""
    tree = figure4.fill_and_search()
    found = prefix_reward_advantages(tree, 0.5)
    bottom = found.min()
    for search in tree.localizations:
        path = tree.path(search.leaf)
        where = path.index(search.critical)
        assert (found[path[:where]] > bottom).all()
        np.testing.assert_allclose(found[path[where:]], bottom)


def test_vppo_refuses_a_reward_out_of_range():
    with pytest.raises(ValueError, match="prefix_reward is 2"):
        prefix_reward_advantages(flat([1.0]), 2)


# ARPO: two ways to credit what trajectories share


def test_arpo_soft_keeps_each_trajectorys_own_and_hard_shares():
    tree = branched(1)
    soft, hard = (load_config(None, [f"algorithm.name={n}"]).algorithm for n in ("arpo", "arpo-hard"))
    (credit,) = assign_credits([tree], soft)
    rewards = [outcome.reward for outcome in tree.outcomes.values()]
    np.testing.assert_allclose(credit.own, zscore(rewards, ddof=1), atol=1e-5)
    (shared,) = assign_credits([tree], hard)
    assert shared.own is None
    for node, leaves in enumerate(tree.leaves_below()):
        expected = np.mean([credit.own[tree.leaves.index(leaf)] for leaf in leaves])
        assert shared.advantages[node] == pytest.approx(expected)


# AEPO's objective


def gradient(ratio: float, advantage: float, **settings) -> tuple[float, float]:
    """Value and gradient with respect to log π of one of two tokens of equal entropy."""
    logprobs = torch.tensor([ratio, 1.0], dtype=torch.float64).log().requires_grad_()
    same = torch.zeros(2, dtype=torch.float64)
    bounds = torch.tensor([0.8, 0.8]), torch.tensor([1.2, 1.2])
    objective = balanced_surrogate(
        logprobs, same, torch.tensor([advantage, advantage]), *bounds, entropies=same + 1, **settings
    )
    objective[0].backward()
    return float(objective[0].detach()), float(logprobs.grad[0])


def test_aepo_keeps_the_gradient_of_the_bound_above_it():
    value, slope = gradient(1.5, 2.0)
    assert value == pytest.approx(1.2 * 2) and slope == pytest.approx(1.2 * 2)
    value, slope = gradient(0.5, -2.0)
    assert value == pytest.approx(0.8 * -2) and slope == 0
    assert gradient(9.0, -1.0, dual_clip=3.0) == (-3.0, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_aepo_has_ppos_value_and_its_gradient_below_the_bound(seed):
    rng = torch.Generator().manual_seed(seed)
    old = -torch.rand(400, generator=rng, dtype=torch.float64)
    new = (old + torch.randn(400, generator=rng, dtype=torch.float64) / 3).requires_grad_()
    advantages = torch.randn(400, generator=rng, dtype=torch.float64)
    low, high = torch.full((400,), 0.8), torch.full((400,), 1.2)
    ours = balanced_surrogate(new, old, advantages, low, high, torch.ones(400), dual_clip=3.0)
    ppo = clipped_surrogate(new, old, advantages, low, high, dual_clip=3.0)
    torch.testing.assert_close(ours, ppo)
    slopes = [torch.autograd.grad(o.sum(), new, retain_graph=True)[0] for o in (ours, ppo)]
    above = ((new - old).exp() > 1.2) & (advantages > 0)
    assert above.any() and not slopes[1][above].any()
    torch.testing.assert_close(slopes[0][~above], slopes[1][~above])
    torch.testing.assert_close(slopes[0][above], 1.2 * advantages[above])


def test_aepo_weighs_uncertain_tokens_more():
    entropies = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    zeros, ones = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    found = balanced_surrogate(zeros, zeros, ones, 0.8 * ones, 1.2 * ones, entropies)
    np.testing.assert_allclose(found, 1 + 0.2 * zscore(entropies.numpy(), ddof=1), rtol=1e-6)
    single = balanced_surrogate(zeros[:1], zeros[:1], ones[:1], ones[:1], ones[:1], entropies[:1])
    assert single == 1


# Settings that contradict each other


@pytest.mark.parametrize(
    ("name", "overrides", "told"),
    [
        ("arpo", ["credit.branch_weight=0.5"], "branch_weight"),
        ("arpo", ["credit.name=tree_group"], "hierarchical"),
        ("tree-grpo", ["strategy.num_chains=2"], "num_chains 2 grows other trees than credit.num_trees 4"),
    ],
)
def test_contradictions_are_found_in_the_settings(name, overrides, told):
    with pytest.raises(ConfigError, match=told):
        load_config(None, [f"algorithm.name={name}", *(f"algorithm.{override}" for override in overrides)])
