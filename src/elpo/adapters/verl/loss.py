"""verl's policy loss with bounds of its own for every token, around which verl's own `ppo_loss` stays."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from elpo.versions import require

require("verl", "0.9", "0.10", extra="verl")

from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss  # noqa: E402
from verl.workers.utils.losses import ppo_loss  # noqa: E402

from elpo.adapters.verl.settings import LOSS  # noqa: E402
from elpo.algorithms.surrogate import clipped_surrogate, surrogate_statistics  # noqa: E402

METRICS = {
    "clip_fraction_low": "clip_fraction_low",
    "clip_fraction_high": "clip_fraction_high",
    "elc_fraction": "error_fraction",
    "ppo_kl": "approx_kl",
}
"""Names under `actor/`, always all of them, and those of `SurrogateStatistics.means`."""

_BOUNDS: ContextVar[tuple[Tensor, Tensor, float | None]] = ContextVar("elpo bounds of the micro-batch")


def elpo_loss(
    config: Any, model_output: Any, data: Any, dp_group: Any = None, *, dual_clip: float | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """A loss for verl's `set_loss_fn`: its `ppo_loss`, which adds entropy and KL and logs, with Eq. 12.

    `ppo_loss` hands a registered policy loss only some columns; the bounds reach ours beside it.

    Args:
        config, model_output, data, dp_group: as verl calls it; `data` has columns `clip_low`, `clip_high`.
        dual_clip: as in `elpo.algorithms.surrogate.clipped_surrogate`.
    """
    bounds = data.select("clip_low", "clip_high").to_padded_tensor()
    token = _BOUNDS.set((bounds["clip_low"], bounds["clip_high"], dual_clip))
    try:
        result: tuple[Tensor, dict[str, Any]] = ppo_loss(config, model_output, data, dp_group)
    finally:
        _BOUNDS.reset(token)
    return result


@register_policy_loss(LOSS)  # type: ignore[untyped-decorator]
def policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Eq. 12 under verl's name `elpo`; usable inside `elpo_loss` only.

    Raises:
        RuntimeError: called by another loss, so that the bounds are not known.
    """
    try:
        low, high, dual_clip = _BOUNDS.get()
    except LookupError:
        raise RuntimeError("the policy loss elpo needs trainer.v1.trainer_mode=elpo_sync") from None
    objective = clipped_surrogate(log_prob, old_log_prob, advantages, low, high, dual_clip)
    if rollout_is_weights is not None:
        objective = objective * rollout_is_weights
    loss = agg_loss(
        loss_mat=-objective,
        loss_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        **config.global_batch_info,
    )
    with torch.no_grad():
        wider = low < 1 - config.clip_ratio_low - 1e-6  # where ELC has lowered the bound
        statistics = surrogate_statistics(
            log_prob, old_log_prob, advantages, low, high, response_mask.float(), wider
        )
    means = statistics.means()
    return loss, {f"actor/{name}": means.get(key, 0.0) for name, key in METRICS.items()}
