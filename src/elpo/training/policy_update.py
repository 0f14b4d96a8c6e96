"""One RL step's learning: mini-batch updates on finished trees with the configured surrogate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from elpo.algorithm_config import AlgorithmConfig, LossConfig
from elpo.algorithms.credit import Credit
from elpo.algorithms.reference_kl import reference_kl
from elpo.algorithms.surrogate import SurrogateStatistics, normaliser, surrogate_statistics, token_weights
from elpo.algorithms.surrogates import (
    BY_TRAJECTORY,
    TokenTerms,
    clipped_log_ratio,
    learns_from_zero,
    objective,
)
from elpo.batch import micro_batches, token_batch
from elpo.config import RLConfig
from elpo.packing import MicroBatch, Minibatch, Trajectories
from elpo.training.learner import Learner
from elpo.training.reference import Reference
from elpo.tree import RolloutTree
from elpo.tree_packing import num_unique, pack_trees


def update_policy(
    learner: Learner,
    trees: Sequence[RolloutTree],
    credits: Sequence[Credit],
    algorithm: AlgorithmConfig,
    rl: RLConfig,
    recompute: bool = False,
    reference: Reference | None = None,
) -> dict[str, float]:
    """Train on the trees of one RL step, mini-batch by mini-batch of whole trees; returns metrics.

    Of several processes each brings its share of the trees (`Processes.share`). Normalisers, and the metrics
    returned, are those of all: loss and gradient are those of one process with all trees.

    Rows without any advantage count in the normaliser of Eq. 1 but are not put through the model, and
    a mini-batch of nothing else makes no update: its gradient is zero, and the optimizer's momentum must
    not move the policy for it.

    Args:
        recompute: take the old log-probabilities from the learner, by one more forward pass, instead of the
            sampler's.
        reference: the policy that the loss has a KL to; needed where `loss.kl_weight` is above 0.
    """
    statistics = SurrogateStatistics()
    losses: list[float] = []
    norms: list[float] = []
    differences: list[tuple[float, float]] = []  # of the sampler: summed over tokens, and their number
    processes = learner.processes
    batches = _minibatches(learner, trees, credits, algorithm.loss, rl)
    if recompute:
        batches, difference = _rescored(learner, batches)
        if difference[1]:
            differences.append(difference)
    if reference is not None:
        batches = _referred(reference, batches)
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
            if not differences:
                differences.append((update.difference, update.num_tokens))
    of_all = processes.every((statistics, losses, differences))
    statistics = sum((found[0] for found in of_all), SurrogateStatistics())
    losses = [sum(parts) for parts in zip(*(found[1] for found in of_all), strict=True)]
    differences = [part for found in of_all for part in found[2]]
    metrics = {
        "loss": sum(losses) / max(1, len(losses)),
        "updates": float(len(norms)),
        "grad/norm": sum(norms) / max(1, len(norms)),
        "lr": learner.learning_rate,
        **_clip_metrics(statistics),
    }
    if reference is not None:
        metrics["kl/reference"] = statistics.reference_kl / max(1.0, statistics.weight)
    if differences:
        difference, num_tokens = np.sum(differences, 0)
        metrics["logprob/sampler_difference"] = float(difference / max(1.0, num_tokens))
        forwarded, unique = np.sum(totals, 0)[2:]
        metrics["tokens/forwarded_per_unique"] = float(forwarded / unique)
    return metrics


def _minibatches(
    learner: Learner,
    trees: Sequence[RolloutTree],
    credits: Sequence[Credit],
    loss: LossConfig,
    rl: RLConfig,
) -> list[Minibatch]:
    """This process's part of every mini-batch of the step."""
    prepare = packed if learner.packed else unrolled
    processes = learner.processes
    batches = []
    for first in range(0, sum(processes.every(len(trees))), rl.problems_per_minibatch):
        stop = first + rl.problems_per_minibatch
        mine = [i for i in range(len(trees)) if first <= processes.position(i) < stop]
        chosen = [trees[i] for i in mine], [credits[i] for i in mine]
        batches.append(prepare(*chosen, loss, rl.microbatch_tokens))
    return batches


def _clip_metrics(statistics: SurrogateStatistics) -> dict[str, float]:
    """What the clip did, and how far the policy has moved."""
    means = statistics.means()
    return {
        "clip/low_share": means.get("clip_fraction_low", 0.0),
        "clip/high_share": means.get("clip_fraction_high", 0.0),
        "clip/elc_share": means.get("error_fraction", 0.0),
        "ratio/max": means.get("ratio_max", 1.0),
        "kl/approx": means.get("approx_kl", 0.0),
    }


def _rescored(learner: Learner, batches: Sequence[Minibatch]) -> tuple[list[Minibatch], tuple[float, float]]:
    """The same with the learner's own log-probabilities for old ones; by how much the sampler's were off,
    summed over tokens, and the number of those."""
    difference = num_tokens = 0.0
    scores = iter(learner.logprobs([part for batch in batches for part in batch.parts]))
    rescored = []
    for batch in batches:
        parts = []
        for part in batch.parts:
            own = torch.where(part.sampled, next(scores).to(part.old_logprobs), part.old_logprobs)
            difference += float(((own - part.old_logprobs).abs() * part.counts).sum())
            num_tokens += float(part.counts.sum())
            parts.append(replace(part, old_logprobs=own))
        rescored.append(replace(batch, parts=tuple(parts)))
    return rescored, (difference, num_tokens)


def _referred(reference: Reference, batches: Sequence[Minibatch]) -> list[Minibatch]:
    """The same with the reference's log-probabilities."""
    scores = iter(reference.logprobs([part for batch in batches for part in batch.parts]))
    return [
        replace(b, parts=tuple(replace(part, reference_logprobs=next(scores)) for part in b.parts))
        for b in batches
    ]


def _by_trajectory(credits: Sequence[Credit], loss: LossConfig) -> bool:
    """Whether a token of a shared prefix is another term in each trajectory through it."""
    return loss.surrogate in BY_TRAJECTORY or any(credit.own is not None for credit in credits)


def packed(
    trees: Sequence[RolloutTree], credits: Sequence[Credit], loss: LossConfig, max_tokens: int
) -> Minibatch:
    """Every token of a tree once."""
    return pack_trees(
        trees,
        credits,
        loss.aggregation,
        loss.shared_tokens,
        max_tokens,
        divisor=loss.divisor,
        by_trajectory=_by_trajectory(credits, loss),
        keep_all=learns_from_zero(loss),
    )


def unrolled(
    trees: Sequence[RolloutTree], credits: Sequence[Credit], loss: LossConfig, max_tokens: int
) -> Minibatch:
    """A padded row for every trajectory: Eq. 1 as it is written."""
    batch = token_batch(trees, credits, loss.shared_tokens)
    learns = batch.mask.any(-1) if learns_from_zero(loss) else batch.carries_gradient
    learning = torch.nonzero(learns)[:, 0]
    weights = token_weights(batch.mask, loss.aggregation, loss.divisor)
    parts = []
    for index in micro_batches(batch.lengths[learning], max_tokens):
        rows = batch.rows(learning[index])
        sampled = rows.mask > 0
        of_rows = weights[learning[index], : rows.token_ids.shape[1]]
        by_row = None
        if _by_trajectory(credits, loss):
            places = torch.nonzero(sampled.flatten())[:, 0]
            by_row = Trajectories(
                places, torch.nonzero(sampled)[:, 0], of_rows[sampled], rows.advantages[sampled]
            )
        parts.append(
            MicroBatch(
                token_ids=rows.token_ids,
                sampled=sampled,
                old_logprobs=rows.old_logprobs,
                advantages=rows.advantages,
                clip_low=rows.clip_low,
                clip_high=rows.clip_high,
                weights=of_rows,
                counts=sampled.float(),
                trajectories=by_row,
            )
        )
    kept = iter(learns.tolist())
    unique = sum(num_unique(tree, [leaf for leaf in tree.leaves if next(kept)]) for tree in trees)
    return Minibatch(tuple(parts), unique, normaliser(batch.mask.sum(-1), loss.aggregation))


def loss_terms(part: MicroBatch, logprobs: Tensor, entropies: Tensor) -> tuple[TokenTerms, Tensor, Tensor]:
    """What the surrogate of a part looks at, the weight of each token, and how many each counts for.

    The loss of the part is `-(weights * objective(terms, algorithm)).sum()`.
    """
    bounds = part.clip_low, part.clip_high
    terms = TokenTerms(
        logprobs, entropies, part.old_logprobs, part.advantages, *bounds, part.reference_logprobs
    )
    of = part.trajectories
    if of is None:
        return terms, part.weights, part.counts
    terms = replace(terms.at(of.places, of.numbers), advantages=of.advantages)
    return terms, of.weights, torch.ones_like(of.weights)


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
        self._algorithm = algorithm

    def losses(self) -> Iterator[Tensor]:
        """Eq. 1 in parts that add up to it."""
        for part in self._parts:
            on = part.to(self._learner.device)
            logprobs, entropies = self._learner.scorer(on.token_ids, on.sampled, on.layout)
            terms, weights, counts = loss_terms(on, logprobs, entropies)
            loss = -(weights * objective(terms, self._algorithm)).sum() * self._share
            with torch.no_grad():
                self.statistics += surrogate_statistics(
                    terms.logprobs,
                    terms.old_logprobs,
                    terms.advantages,
                    terms.clip_low,
                    terms.clip_high,
                    counts,
                    terms.clip_low < 1 - self._algorithm.clip.low - 1e-6,
                    clipped_log_ratio(terms, self._algorithm),
                )
                if (theirs := terms.reference_logprobs) is not None:
                    kl = reference_kl(terms.logprobs, theirs, self._algorithm.loss.kl_estimator)
                    self.statistics += SurrogateStatistics(reference_kl=float((kl * counts).sum()))
                self.difference += float(((terms.logprobs - terms.old_logprobs).abs() * counts).sum())
                self.num_tokens += float(counts.sum())
                self.loss += float(loss)
            yield loss
