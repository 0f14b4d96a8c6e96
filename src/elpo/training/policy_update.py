"""One RL step's learning: credit for finished trees, then mini-batch updates with the clipped surrogate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from elpo.algorithms.credit import Credit, assign_credit
from elpo.algorithms.surrogate import (
    SurrogateStatistics,
    clipped_surrogate,
    normaliser,
    surrogate_statistics,
    token_weights,
)
from elpo.batch import micro_batches, token_batch
from elpo.config import AlgorithmConfig, LossConfig, RLConfig
from elpo.packing import MicroBatch, Minibatch, num_unique, pack_trees
from elpo.training.learner import Learner
from elpo.tree import RolloutTree


def credit_of(tree: RolloutTree, config: AlgorithmConfig) -> Credit:
    """Advantages and clip bounds of every node of a finished tree, by the configured rule."""
    credit, clip = config.credit, config.clip
    return assign_credit(
        tree,
        branch_weight=credit.branch_weight,
        std=credit.std,
        scale=credit.scale,
        eps=credit.eps,
        eps_low=clip.low,
        eps_high=clip.high,
        eps_elc=clip.elc,
        scope=clip.scope,
    )


def update_policy(
    learner: Learner,
    trees: Sequence[RolloutTree],
    credits: Sequence[Credit],
    algorithm: AlgorithmConfig,
    rl: RLConfig,
) -> dict[str, float]:
    """Train on the trees of one RL step, mini-batch by mini-batch of whole trees; returns metrics.

    Of several processes each brings its share of the trees (`Processes.share`). Normalisers, and the metrics
    returned, are those of all: loss and gradient are those of one process with all trees.

    Rows without any advantage count in the normaliser of Eq. 1 but are not put through the model, and
    a mini-batch of nothing else makes no update: its gradient is zero, and the optimizer's momentum must
    not move the policy for it.
    """
    statistics = SurrogateStatistics()
    losses: list[float] = []
    norms: list[float] = []
    differences: list[tuple[float, float]] = []  # of the first update: summed over tokens, and their number
    prepare = _packed if learner.packed else _unrolled
    processes = learner.processes
    batches = []
    for first in range(0, sum(processes.every(len(trees))), rl.problems_per_minibatch):
        stop = first + rl.problems_per_minibatch
        mine = [i for i in range(len(trees)) if first <= processes.position(i) < stop]
        chosen = [trees[i] for i in mine], [credits[i] for i in mine]
        batches.append(prepare(*chosen, algorithm.loss, rl.microbatch_tokens))
    facts = [[(len(b.parts), b.normaliser, b.num_forwarded, b.num_unique) for b in batches]]
    totals = np.sum(processes.every(facts), (0, 1))  # [mini-batches, 4]
    for _ in range(rl.num_epochs):
        for batch, (num_parts, whole, *_) in zip(batches, totals, strict=True):
            if not num_parts:
                continue
            update = _Update(learner, batch, whole, algorithm)
            norms.append(learner.update(update.losses(), len(batch.parts)))
            statistics += update.statistics
            losses.append(update.loss)
            if len(norms) == 1:
                differences.append((update.difference, update.num_tokens))
    of_all = processes.every((statistics, losses, differences))
    statistics = sum((found[0] for found in of_all), SurrogateStatistics())
    losses = [sum(parts) for parts in zip(*(found[1] for found in of_all), strict=True)]
    differences = [part for found in of_all for part in found[2]]
    means = statistics.means()
    metrics = {
        "loss": sum(losses) / max(1, len(losses)),
        "updates": float(len(norms)),
        "grad/norm": sum(norms) / max(1, len(norms)),
        "lr": learner.learning_rate,
        "clip/low_share": means.get("clip_fraction_low", 0.0),
        "clip/high_share": means.get("clip_fraction_high", 0.0),
        "clip/elc_share": means.get("error_fraction", 0.0),
        "ratio/max": means.get("ratio_max", 1.0),
        "kl/approx": means.get("approx_kl", 0.0),
    }
    if differences:
        difference, num_tokens = np.sum(differences, 0)
        metrics["logprob/sampler_difference"] = float(difference / max(1.0, num_tokens))
        forwarded, unique = np.sum(totals, 0)[2:]
        metrics["tokens/forwarded_per_unique"] = float(forwarded / unique)
    return metrics


def _packed(
    trees: Sequence[RolloutTree], credits: Sequence[Credit], loss: LossConfig, max_tokens: int
) -> Minibatch:
    """Every token of a tree once."""
    return pack_trees(trees, credits, loss.aggregation, loss.shared_tokens, max_tokens)


def _unrolled(
    trees: Sequence[RolloutTree], credits: Sequence[Credit], loss: LossConfig, max_tokens: int
) -> Minibatch:
    """A padded row for every trajectory: Eq. 1 as it is written."""
    batch = token_batch(trees, credits, loss.shared_tokens)
    learning = torch.nonzero(batch.carries_gradient)[:, 0]
    weights = token_weights(batch.mask, loss.aggregation)
    parts = []
    for index in micro_batches(batch.lengths[learning], max_tokens):
        rows = batch.rows(learning[index])
        sampled = rows.mask > 0
        parts.append(
            MicroBatch(
                token_ids=rows.token_ids,
                sampled=sampled,
                old_logprobs=rows.old_logprobs,
                advantages=rows.advantages,
                clip_low=rows.clip_low,
                clip_high=rows.clip_high,
                weights=weights[learning[index], : rows.token_ids.shape[1]],
                counts=sampled.float(),
            )
        )
    learns = iter(batch.carries_gradient.tolist())
    unique = sum(num_unique(tree, [leaf for leaf in tree.leaves if next(learns)]) for tree in trees)
    return Minibatch(tuple(parts), unique, normaliser(batch.mask.sum(-1), loss.aggregation))


class _Update:
    """The losses of one mini-batch's parts, and what was seen on the way.

    `whole` is the normaliser of the mini-batch, of which `batch` may be the share of one process.
    """

    def __init__(self, learner: Learner, batch: Minibatch, whole: float, algorithm: AlgorithmConfig) -> None:
        self.statistics = SurrogateStatistics()
        self.loss = 0.0
        self.difference = 0.0  # to the sampler's log-probabilities, summed over tokens, nats
        self.num_tokens = 0.0
        self._learner = learner
        self._parts = batch.parts
        self._share = batch.normaliser / whole
        self._clip = algorithm.clip

    def losses(self) -> Iterator[Tensor]:
        """Eq. 1 in parts that add up to it."""
        for part in self._parts:
            on = part.to(self._learner.device)
            logprobs, _ = self._learner.scorer(on.token_ids, on.sampled, on.layout)
            bounds = (on.clip_low, on.clip_high)
            objective = clipped_surrogate(logprobs, on.old_logprobs, on.advantages, *bounds, self._clip.dual)
            loss = -(on.weights * objective).sum() * self._share
            with torch.no_grad():
                error_region = on.clip_low < 1 - self._clip.low - 1e-6
                self.statistics += surrogate_statistics(
                    logprobs, on.old_logprobs, on.advantages, *bounds, on.counts, error_region
                )
                self.difference += float(((logprobs - on.old_logprobs).abs() * on.counts).sum())
                self.num_tokens += float(on.counts.sum())
                self.loss += float(loss)
            yield loss
