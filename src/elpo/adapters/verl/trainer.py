"""verl's synchronous trainer with ELPO's advantages and loss; importing this registers it as `elpo_sync`.

verl finds it by the entry point in the group `verl.plugins`. It hides an error there, so that a broken
plug-in shows as an unknown trainer; importing this module by hand says what is wrong.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from elpo.versions import require

require("verl", "0.9", "0.10", extra="verl")

import transfer_queue  # noqa: E402
from omegaconf import open_dict  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from verl.trainer.ppo.v1 import register_trainer  # noqa: E402
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync  # noqa: E402
from verl.utils.config import omega_conf_to_dataclass  # noqa: E402

from elpo.adapters.leaf_rows import NEUTRAL  # noqa: E402
from elpo.adapters.verl.loss import elpo_loss  # noqa: E402
from elpo.adapters.verl.settings import TRAINER, check_agreement, read_recipe  # noqa: E402


@register_trainer(TRAINER)
class ElpoTrainer(PPOTrainerSync):
    """verl's trainer; only the advantage is overridden, and the loss is given to the actor."""

    def __init__(self, config: Any) -> None:
        """
        Raises:
            ValueError: verl's configuration and our recipe disagree.
        """
        self.recipe = read_recipe(config)
        check_agreement(config, self.recipe)
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"  # verl looks for this very word elsewhere
        super().__init__(config)

    def on_init_end(self) -> None:
        """Give the actor our loss."""
        actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        loss = partial(elpo_loss, config=actor, dual_clip=self.recipe.algorithm.clip.dual)
        self.actor_rollout_wg.set_loss_fn(loss)
        super().on_init_end()

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_advantage(batch, metrics)  # KL, rollout correction; its advantages go
        where = {"keys": batch.keys, "partition_id": batch.partition_id}
        data = transfer_queue.kv_batch_get(**where, select_fields=["response_mask", "extra_fields"])
        masks, extra = data["response_mask"].unbind(), list(data["extra_fields"])
        columns = token_columns(masks, extra, [bool(tag.get("is_padding")) for tag in batch.tags])
        metrics.update(mean_metrics(extra, batch.tags))
        fields = TensorDict(columns | {"returns": columns["advantages"].clone()}, batch_size=len(masks))
        return transfer_queue.kv_batch_put(**where, fields=fields)


def token_columns(
    masks: tuple[Tensor, ...] | list[Tensor], extra: list[dict[str, Any]], is_padding: list[bool]
) -> dict[str, Tensor]:
    """ELPO's jagged columns for rows of verl.

    verl fills a batch up with copies of rows that have no loss and another length: they get `NEUTRAL`.

    Args:
        masks: for each row the response mask, [T].
        extra: for each row its `extra_fields`.

    Raises:
        ValueError: a real row has not as many of our numbers as tokens.
    """
    columns: dict[str, list[Tensor]] = {name: [] for name in NEUTRAL}
    for mask, fields, padding in zip(masks, extra, is_padding, strict=True):
        for name, neutral in NEUTRAL.items():
            values = torch.full((len(mask),), neutral)
            if not padding:
                found = fields["elpo"][name]
                if len(found) != len(mask):
                    raise ValueError(f"a row has {len(mask)} response tokens and {len(found)} {name}")
                values = torch.tensor(found, dtype=torch.float32)
            if name == "advantages":
                values = values * mask
            columns[name].append(values)
    return {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in columns.items()}


def mean_metrics(extra: list[dict[str, Any]], tags: list[dict[str, Any]]) -> dict[str, float]:
    """The rollouts' metrics, means over the trees of the batch, under `elpo/`."""
    trees = [
        fields["elpo"]["metrics"]
        for fields, tag in zip(extra, tags, strict=True)
        if not tag.get("is_padding") and "metrics" in fields["elpo"]
    ]
    names = {name for tree in trees for name in tree}
    found = {name: [tree[name] for tree in trees if name in tree] for name in sorted(names)}
    return {f"elpo/{name}": sum(values) / len(values) for name, values in found.items()}
