"""The update against the paper's loss written out token by token, without batches, masks or padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from elpo.algorithm_config import AlgorithmConfig, ClipConfig, LossConfig
from elpo.algorithms.credit import Credit
from elpo.algorithms.credit_rules import assign_credits
from elpo.config import RLConfig
from elpo.training.learner import Learner
from elpo.training.policy_update import update_policy
from elpo.tree import RolloutTree
from tests.training.small import (
    assert_close,
    gradients_of,
    random_tree,
    record_gradients,
    small_learner,
    small_model,
)

LOSSES = [
    LossConfig(aggregation=aggregation, shared_tokens=shared)
    for aggregation, shared in itertools.product(("seq-mean-token-mean", "token-mean"), ("duplicate", "once"))
]


def algorithm_of(loss: LossConfig | None = None, **clip: Any) -> AlgorithmConfig:
    return AlgorithmConfig(loss=loss or LossConfig(), clip=ClipConfig(**clip))


def rl_of(num_problems: int, microbatch_tokens: int = 10_000, num_epochs: int = 1) -> RLConfig:
    return RLConfig(
        problems_per_step=num_problems,
        problems_per_minibatch=num_problems,
        microbatch_tokens=microbatch_tokens,
        num_epochs=num_epochs,
    )


def update(
    trees: Sequence[RolloutTree], algorithm: AlgorithmConfig, rl: RLConfig | None = None, **settings: Any
) -> tuple[dict[str, float], list[dict[str, torch.Tensor]], Learner]:
    """Metrics and the gradient of every update, from a fresh copy of the model that made the trees."""
    learner = small_learner(small_model(), **settings)
    gradients = record_gradients(learner)
    credits = assign_credits(trees, algorithm)
    metrics = update_policy(learner, trees, credits, algorithm, rl or rl_of(len(trees)))
    return metrics, gradients, learner


def token_objectives(
    model: Any, tree: RolloutTree, credit: Credit, dual: float | None = None
) -> list[list[tuple[int, torch.Tensor]]]:
    """For every trajectory (node, objective) of each token the policy sampled: Eq. 11 and 12, one by one."""
    found = []
    for leaf in tree.leaves:
        context = list(tree.prompt_ids)
        objectives = []
        for node in tree.path(leaf):
            step = tree.nodes[node].step
            advantage = float(credit.advantages[node])
            low, high = float(credit.clip_low[node]), float(credit.clip_high[node])
            for token, sampled, old in zip(step.token_ids, step.sampled, step.logprobs, strict=True):
                if sampled:
                    logits = model(torch.tensor([context])).logits[0, -1]
                    ratio = torch.exp(torch.log_softmax(logits, -1)[int(token)] - float(old))
                    objective = ratio * advantage
                    if advantage >= 0 and ratio > high:
                        objective = torch.tensor(high * advantage)
                    if advantage < 0 and ratio < low:
                        objective = torch.tensor(low * advantage)
                    if dual is not None and advantage < 0 and objective < dual * advantage:
                        objective = torch.tensor(dual * advantage)
                    objectives.append((node, objective))
                context.append(int(token))
        found.append(objectives)
    return found


def direct_loss(
    model: Any, trees: Sequence[RolloutTree], algorithm: AlgorithmConfig
) -> tuple[torch.Tensor, int]:
    """Eq. 1 and its variants; and how many tokens were clipped."""
    rows = []
    for tree in trees:
        below = tree.leaves_below()
        for row in token_objectives(model, tree, assign_credits([tree], algorithm)[0], algorithm.clip.dual):
            share = [1 / len(below[node]) if algorithm.loss.shared_tokens == "once" else 1 for node, _ in row]
            rows.append((share, [objective for _, objective in row]))
    clipped = sum(not objective.requires_grad for _, row in rows for objective in row)
    sums = [sum(w * o for w, o in zip(share, row, strict=True)) for share, row in rows]
    if algorithm.loss.aggregation == "token-mean":
        return -sum(sums) / sum(sum(share) for share, _ in rows), clipped  # type: ignore[return-value]
    means = [total / sum(share) for total, (share, _) in zip(sums, rows, strict=True)]
    return -sum(means) / len(means), clipped  # type: ignore[return-value]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.aggregation}-{loss.shared_tokens}")
@pytest.mark.parametrize("dual", [None, 1.1])
def test_equals_the_equation(loss: LossConfig, dual: float | None) -> None:
    model = small_model()
    trees = [random_tree(seed, model, off_policy=0.6) for seed in (1, 2)]
    algorithm = algorithm_of(loss, dual=dual)
    metrics, (gradients,), _ = update(trees, algorithm)
    expected, clipped = direct_loss(model, trees, algorithm)
    assert clipped > 5
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert_close(gradients, gradients_of(model, expected))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.aggregation}-{loss.shared_tokens}")
def test_micro_batches_add_up(loss: LossConfig) -> None:
    trees = [random_tree(seed, small_model(), off_policy=0.6) for seed in range(8)]
    whole, (expected,), _ = update(trees, algorithm_of(loss), rl_of(8, 100_000))
    for microbatch_tokens in (1, 60):
        parts, (gradients,), _ = update(trees, algorithm_of(loss), rl_of(8, microbatch_tokens))
        assert parts.pop("tokens/forwarded_per_unique") >= whole["tokens/forwarded_per_unique"] == 1
        assert parts == pytest.approx({name: whole[name] for name in parts}, rel=1e-4, abs=1e-6)
        assert_close(gradients, expected)


def test_token_mean_of_once_counts_every_sampled_token_once() -> None:
    """The same loss without any tree: a mean over the distinct tokens."""
    model = small_model()
    trees = [random_tree(seed, model, off_policy=0.3) for seed in (3, 4)]
    algorithm = algorithm_of(LossConfig(aggregation="token-mean", shared_tokens="once"))
    _, (gradients,), _ = update(trees, algorithm)
    distinct: dict[tuple[int, int, int], torch.Tensor] = {}
    for i, tree in enumerate(trees):
        for row in token_objectives(model, tree, assign_credits([tree], algorithm)[0]):
            for node, group in itertools.groupby(row, key=lambda token: token[0]):
                distinct |= {(i, node, j): objective for j, (_, objective) in enumerate(group)}
    assert len(distinct) == sum(int(node.step.sampled.sum()) for tree in trees for node in tree.nodes)
    expected = -torch.stack(list(distinct.values())).mean()
    assert_close(gradients, gradients_of(model, expected))


def test_feedback_gets_no_gradient() -> None:
    """The last hidden states that predict feedback, prompt or padding are not pushed anywhere."""
    learner = small_learner(small_model(), packing="rows")
    algorithm = algorithm_of()
    trees = [random_tree(5, small_model())]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        output.last_hidden_state.retain_grad()
        seen.append((kwargs["input_ids"], output.last_hidden_state))

    learner.scorer.model.base_model.register_forward_hook(keep, with_kwargs=True)  # type: ignore[union-attr, operator]
    update_policy(learner, trees, assign_credits(trees[:1], algorithm), algorithm, rl_of(1))
    ((token_ids, hidden),) = seen
    moved = hidden.grad.abs().sum(-1) > 0
    credit = assign_credits([trees[0]], algorithm)[0]
    paths = {tuple(trees[0].context(leaf).tolist()): trees[0].path(leaf) for leaf in trees[0].leaves}
    num_feedback = 0
    for ids, row in zip(token_ids, moved, strict=True):
        ((context, path),) = [(c, p) for c, p in paths.items() if ids[: len(c)].tolist() == list(c)]
        expected = np.zeros(len(ids) + 1, bool)
        at = len(trees[0].prompt_ids)
        for node in path:
            sampled = trees[0].nodes[node].step.sampled
            expected[at : at + len(sampled)] = sampled & (credit.advantages[node] != 0)
            num_feedback += int((~sampled).sum())
            at += len(sampled)
        assert at == len(context)
        assert row.tolist() == expected[1:].tolist()
    assert num_feedback > 5


def test_rows_without_advantage_change_only_the_normaliser() -> None:
    model = small_model()
    trees = [random_tree(1, model, off_policy=0.6)]
    nothing = random_tree(2, model, rewards="failed")
    assert not assign_credits([nothing], algorithm_of())[0].advantages.any()
    alone, (expected,), _ = update(trees, algorithm_of())
    diluted, (gradients,), _ = update([*trees, nothing], algorithm_of())
    assert diluted["loss"] == pytest.approx(alone["loss"] / 2, rel=1e-5)
    assert_close(gradients, {name: value / 2 for name, value in expected.items()})
    same = ("ratio/max", "kl/approx", "clip/low_share", "logprob/sampler_difference")
    assert [diluted[name] for name in same] == pytest.approx([alone[name] for name in same])


def test_nothing_to_learn_is_no_update() -> None:
    learner = small_learner(small_model())
    algorithm = algorithm_of()
    mixed, failed = random_tree(1, small_model()), random_tree(2, small_model(), rewards="failed")
    empty = RolloutTree(mixed.problem, mixed.prompt_ids)  # every rollout was lost

    def run(*trees: RolloutTree) -> dict[str, float]:
        credits = assign_credits(trees, algorithm)
        rl = RLConfig(problems_per_step=len(trees), problems_per_minibatch=1)
        return update_policy(learner, trees, credits, algorithm, rl)

    assert run(mixed)["updates"] == 1
    before = {name: value.clone() for name, value in learner.scorer.state_dict().items()}
    assert run(failed, empty)["updates"] == 0
    assert all(torch.equal(value, before[name]) for name, value in learner.scorer.state_dict().items())
    metrics = run(failed, mixed, empty)
    assert metrics["updates"] == 1 and metrics["loss"] != 0
    assert not torch.equal(
        before["model.lm_head.weight"], learner.scorer.state_dict()["model.lm_head.weight"]
    )


def test_the_first_update_is_on_policy_and_later_ones_are_not() -> None:
    trees = [random_tree(seed, small_model()) for seed in range(4)]
    algorithm = algorithm_of()
    once, _, _ = update(trees, algorithm)
    assert once["logprob/sampler_difference"] < 1e-5
    assert once["kl/approx"] < 1e-9 and once["ratio/max"] == pytest.approx(1, abs=1e-4)
    assert once["clip/low_share"] == once["clip/high_share"] == 0
    rl = RLConfig(problems_per_step=4, problems_per_minibatch=2, num_epochs=3)
    more, gradients, _ = update(trees, algorithm, rl, learning_rate=3e-2)
    assert more["updates"] == len(gradients) == 6
    assert more["kl/approx"] > 1e-4 and more["ratio/max"] > 1.05
    assert more["logprob/sampler_difference"] < 1e-5  # of the first mini-batch alone


def test_clip_shares_are_shares_of_the_tokens_trained_on() -> None:
    model = small_model()
    trees = [random_tree(seed, model, off_policy=0.6) for seed in range(3)]
    algorithm = algorithm_of()
    metrics, _, _ = update(trees, algorithm)
    total = low = high = inside = 0
    for tree in trees:
        credit = assign_credits([tree], algorithm)[0]
        for row in token_objectives(model, tree, credit):
            if not any(credit.advantages[node] for node, _ in row):
                continue
            for node, objective in row:
                total += 1
                low += not objective.requires_grad and credit.advantages[node] < 0
                high += not objective.requires_grad and credit.advantages[node] > 0
                inside += credit.clip_low[node] < 0.75
    assert min(low, high, inside) > 0
    shares = [metrics[f"clip/{name}_share"] for name in ("low", "high", "elc")]
    assert shares == pytest.approx([low / total, high / total, inside / total])


@pytest.mark.parametrize("packing", ["tree", "rows"])
def test_recomputed_log_probabilities_are_those_of_the_learner(packing: str) -> None:
    """A sampler that is off by up to 0.4 nats makes other gradients, and with `recompute` it does not."""
    algorithm = algorithm_of()
    model = small_model()
    exact = [random_tree(seed, model) for seed in range(3)]
    off = [random_tree(seed, model, off_policy=0.4) for seed in range(3)]
    rl = rl_of(3, microbatch_tokens=40)

    def gradients(trees: list[RolloutTree], recompute: bool) -> tuple[dict[str, float], Any]:
        learner = small_learner(small_model(), packing=packing)  # type: ignore[arg-type]
        recorded = record_gradients(learner)
        credits = assign_credits(trees, algorithm)
        return update_policy(learner, trees, credits, algorithm, rl, recompute), recorded[0]

    _, expected = gradients(exact, recompute=False)
    metrics, found = gradients(off, recompute=True)
    assert_close(found, expected)
    assert 0.1 < metrics["logprob/sampler_difference"] < 0.4
    assert metrics["kl/approx"] == pytest.approx(0, abs=1e-9)
    other_metrics, other = gradients(off, recompute=False)
    assert other_metrics["logprob/sampler_difference"] == pytest.approx(
        metrics["logprob/sampler_difference"], rel=1e-4
    )
    with pytest.raises(AssertionError):
        assert_close(other, expected)
