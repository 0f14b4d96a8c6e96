"""The trained model as a function of token ids, and one update of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from elpo.config import OptimizerConfig
from elpo.packing import MicroBatch, TreeLayout
from elpo.training.processes import Processes
from elpo.training.tree_attention import hidden_states, packing_obstacle

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_LOGITS = 1 << 26
"""Logits that exist at a time: 256 MB in float32, 440 tokens of a vocabulary of 152,000."""


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class SampledLogProbs(nn.Module):
    """Log-probabilities of sampled tokens under a causal LM.

    The vocabulary projection runs only where a sampled token follows, which for tool-using
    trajectories is a fraction of the positions, and on `MAX_LOGITS` at a time: with more of them, those of a
    chunk are dropped and computed again in the backward pass. Wraps the model so that one `forward` is all a
    distributed engine needs to hook.
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # FSDP shards by these

    def tie_weights(self) -> None:
        """Make weights that are one one again, after an engine has replaced them."""
        self.model.tie_weights()  # type: ignore[operator]

    def forward(
        self, token_ids: Tensor, sampled: Tensor, layout: TreeLayout | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score right-padded rows, or with a `layout` packed trees (for a model without `packing_obstacle`).

        Args:
            token_ids: int64 [B, T], or [N] with a layout.
            sampled: bool, same shape; never true where nothing comes before.

        Returns:
            log-probabilities (nats, at the temperature; 0 where not sampled) and the entropies of the same
            distributions, detached; same shape.
        """
        base: nn.Module = self.model.base_model  # type: ignore[assignment]
        if layout is None:
            hidden = base(input_ids=token_ids, use_cache=False).last_hidden_state
            predictors = hidden[:, :-1][sampled[:, 1:]]
        else:
            predictors = hidden_states(base, token_ids, layout)[layout.previous[sampled]]
        chosen, entropy = self._scores(predictors, token_ids[sampled])
        scores = torch.zeros(2, *token_ids.shape, dtype=chosen.dtype, device=chosen.device)
        return scores[0].masked_scatter(sampled, chosen), scores[1].masked_scatter(sampled, entropy)

    def _scores(self, predictors: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [S] of `tokens` [S] after `predictors` [S, d], chunk by chunk."""
        head: nn.Module = self.model.get_output_embeddings()  # type: ignore[operator]
        size = max(1, MAX_LOGITS // int(self.model.config.get_text_config().vocab_size))  # type: ignore[union-attr, operator]
        if len(tokens) <= size:
            return self._chunk_scores(head, predictors, tokens)
        chunks = [
            checkpoint(self._chunk_scores, head, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in zip(torch.split(predictors, size), torch.split(tokens, size), strict=True)
        ]
        chosen, entropies = zip(*chunks, strict=True)
        return torch.cat(chosen), torch.cat(entropies)

    def _chunk_scores(self, head: nn.Module, predictors: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(head(predictors).float() / self.temperature, dim=-1)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, tokens[:, None])[:, 0], entropy


def learning_rate_factor(config: OptimizerConfig, num_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate after a number of updates: linear warm-up, then the schedule.

    Deviation: transformers' warm-up begins at 0, which wastes the first update; this one at 1/warmup_steps.
    """

    def factor(update: int) -> float:
        if update < config.warmup_steps:
            return (update + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        progress = (update - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor


@dataclass
class Learner:
    """A model with its optimizer and schedule, prepared by accelerate."""

    accelerator: Accelerator
    scorer: nn.Module  # a prepared `SampledLogProbs`
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    max_grad_norm: float
    packed: bool = False  # the scorer takes packed trees
    obstacle: str | None = None  # why it does not, where it was asked to
    processes: Processes = field(default_factory=Processes)

    @classmethod
    def prepare(
        cls,
        accelerator: Accelerator,
        model: nn.Module,
        config: OptimizerConfig,
        num_updates: int,
        temperature: float = 1.0,
        packing: Literal["auto", "tree", "rows"] = "auto",
        before: Learner | None = None,
    ) -> Learner:
        """AdamW and its schedule for the trainable parameters of `model`.

        `before` is the learner of the phase before, whose prepared model is kept: it is sharded only once.

        Raises:
            ValueError: `packing` is "tree" and the model cannot be given packed trees.
        """
        if before is not None:
            scorer, obstacle = before.scorer, before.obstacle
            accelerator.unwrap_model(scorer).temperature = temperature
        else:
            obstacle = None if packing == "rows" else packing_obstacle(model)
            scorer = SampledLogProbs(model, temperature)
        if packing == "tree" and obstacle:
            raise ValueError(f"model.packing is tree, but {obstacle}; use auto or rows")
        parameters = [p for p in scorer.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        factor = learning_rate_factor(config, num_updates)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        scorer, optimizer = accelerator.prepare(scorer, optimizer)
        packed = packing != "rows" and obstacle is None
        processes = Processes(accelerator.process_index, accelerator.num_processes)
        return cls(
            accelerator, scorer, optimizer, scheduler, config.max_grad_norm, packed, obstacle, processes
        )

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def learning_rate(self) -> float:
        """The rate of the next update."""
        return float(self.scheduler.get_last_lr()[0])

    @property
    def is_sharded(self) -> bool:
        """True where every process holds a part of each weight (FSDP2)."""
        return isinstance(self.scorer, FSDPModule)

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state, by name of the weight and put together, for any number of processes.

        Empty before the first update: torch would make a state, by an update that counts.
        """
        if not self._plain_optimizer.state:
            return {}
        return get_optimizer_state_dict(self.scorer, self._plain_optimizer, options=_WHOLE)

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Put back what `optimizer_state` gave, be it in another number of processes."""
        if not state:
            return
        self.optimizer.zero_grad()
        set_optimizer_state_dict(self.scorer, self._plain_optimizer, state, options=_WHOLE)
        for group in self._plain_optimizer.param_groups:
            group["betas"] = tuple(group["betas"])  # torch has taken it apart

    def full_weights(self) -> dict[str, Tensor] | None:
        """The model's weights put together, by name, tied ones once; None where the model has them itself."""
        if not self.is_sharded:
            return None
        state = get_model_state_dict(self.scorer, options=_WHOLE)
        named = self.scorer.named_parameters
        again = {name for name, _ in named(remove_duplicate=False)} - {name for name, _ in named()}
        return {
            name.removeprefix("model."): cast(Tensor, value)
            for name, value in state.items()
            if name not in again
        }

    def trained_weights(self) -> dict[str, Tensor]:
        """The weights that are trained, put together, by name; empty in all processes but the main one."""
        named = self.accelerator.unwrap_model(self.scorer).named_parameters()
        trained = {name for name, weight in named if weight.requires_grad}
        state = get_model_state_dict(self.scorer, options=_WHOLE)
        return {name: cast(Tensor, value) for name, value in state.items() if name in trained}

    def load_trained_weights(self, state: dict[str, Any]) -> None:
        """Put back what `trained_weights` gave, be it in another number of processes."""
        set_model_state_dict(self.scorer, state, options=replace(_WHOLE, strict=False))

    def reshard(self) -> None:
        """Drop what FSDP has put together of the weights, so that the next pass sees them as they are."""
        for module in self.scorer.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def copy_weights(self, replica: nn.Module) -> None:
        """Give `replica`, a whole model on every process, the weights of the sharded one."""
        ours = dict(self.scorer.named_parameters())
        with torch.no_grad():
            for name, value in replica.named_parameters():
                sharded: Any = ours[f"model.{name}"]
                value.copy_(sharded.full_tensor())

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        prepared: Any = self.optimizer
        return getattr(prepared, "optimizer", prepared)  # type: ignore[no-any-return]

    def logprobs(self, parts: Sequence[MicroBatch]) -> list[Tensor]:
        """Log-probabilities of the sampled tokens of each part under the weights as they are, without
        gradient; each of the shape of its `token_ids`.

        Of several processes each brings its own parts; all make as many passes as the one with most.
        """
        found = []
        with torch.no_grad():
            for i in range(max(self.processes.every(len(parts)))):
                if i >= len(parts):
                    self._idle_loss()
                    continue
                on = parts[i].to(self.device)
                scores: Tensor = self.scorer(on.token_ids, on.sampled, on.layout)[0]
                found.append(scores.to(parts[i].token_ids.device))
        return found

    def update(self, losses: Iterable[Tensor], num: int = 1) -> float:
        """Accumulate the gradient of the sum of `losses` and step; returns the norm before clipping.

        A gradient that is not finite is thrown away and the weights stay; its norm tells.

        Of several processes each brings its own `num` losses, perhaps none; the sum is over all of them.
        Every process makes as many passes as the one with most, since each pass is a meeting of all.
        """
        self.optimizer.zero_grad()
        if self.processes.num == 1:
            for loss in losses:
                self.accelerator.backward(loss)
        else:
            self._backward_together(iter(losses), max(self.processes.every(num)))
        norm = self.accelerator.clip_grad_norm_(self.scorer.parameters(), self.max_grad_norm)
        assert norm is not None
        norm = getattr(norm, "full_tensor", lambda: norm)()  # sharded weights have a sharded norm
        if torch.isfinite(norm):
            self.optimizer.step()
        self.scheduler.step()
        return float(norm)

    def _backward_together(self, losses: Iterator[Tensor], num_passes: int) -> None:
        """DDP averages gradients over processes in the last pass, FSDP in every one."""
        replicated = isinstance(self.scorer, DistributedDataParallel)
        for i in range(num_passes):
            last = i == num_passes - 1
            with self.accelerator.no_sync(self.scorer) if replicated and not last else nullcontext():
                loss = next(losses, None)
                self.accelerator.backward(self._idle_loss() if loss is None else loss * self.processes.num)
        assert next(losses, None) is None, "more losses than were announced"

    def _idle_loss(self) -> Tensor:
        """Nothing, by way of every weight."""
        token_ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        logprobs: Tensor = self.scorer(token_ids, torch.tensor([[False, True]], device=self.device))[0]
        return logprobs.sum() * 0.0
