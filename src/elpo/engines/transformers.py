"""Sampling with any full-attention Hugging Face causal LM: continuous batching, prefixes fed once.

Every live rollout owns a slot of one key/value cache. A decode step feeds one token to every decoding
slot; new prompts and tool feedback are fed in chunks of several slots. What a finished rollout leaves in
its slot is kept for its group, so that a branch starts from its prefix's keys and values instead of
feeding the prefix again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from elpo.engines.sampling import log_probabilities, sample, uniforms
from elpo.engines.slots import SlotCache
from elpo.interfaces import EngineCounts, Turn, TurnRequest


@dataclass(eq=False)
class _Live:
    """A rollout in a slot. `tokens[:fed]` are in the cache; the rest is still to be fed."""

    rollout: int
    group: int
    slot: int
    tokens: np.ndarray
    fed: int
    request: TurnRequest | None = None
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    top: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # ids [k], log-probabilities [k]

    def begin(self, request: TurnRequest) -> None:
        assert np.array_equal(request.token_ids[: len(self.tokens)], self.tokens), "a context was rewritten"
        self.tokens = request.token_ids
        self.request = request
        self.sampled, self.logprobs, self.entropies, self.top = [], [], [], []

    @property
    def pending(self) -> int:
        """Tokens to feed before the next one can be sampled; 0 while the rollout waits for a tool."""
        return len(self.tokens) + len(self.sampled) - self.fed if self.request else 0

    def next_tokens(self) -> np.ndarray:
        start = self.fed - len(self.tokens)
        if start >= 0:
            return np.asarray(self.sampled[start:], np.int64)
        return np.concatenate([self.tokens[self.fed :], np.asarray(self.sampled, np.int64)])


@dataclass(eq=False)
class _Prefix:
    """What a finished rollout left: token ids [T] and their keys and values [layers, 2, H, T, D]."""

    group: int
    tokens: np.ndarray
    states: Tensor

    @property
    def fed(self) -> int:
        return len(self.tokens)


class TransformersEngine:
    """An `elpo.interfaces.Engine` over a `transformers` causal LM.

    The model is the one being trained: nothing is copied, so a weight update needs no synchronisation,
    only that no prefix outlives it (the scheduler forgets each tree when it is done).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        end_ids: tuple[int, ...],
        num_slots: int,
        temperature: float = 1.0,
        prefix_cache_mb: int = 2048,
        autocast: torch.dtype | None = None,
    ) -> None:
        """
        Raises:
            ValueError: the model has layers that are not full attention.
        """
        config = model.config.get_text_config()  # type: ignore[union-attr, operator]
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ValueError(
                f"this engine needs full attention in every layer, the model has {sorted(kinds)}"
            )
        self.num_slots = num_slots
        self.counts = EngineCounts()
        self.model = model
        self._end_ids = frozenset(end_ids)
        self._temperature = temperature
        self._cache = SlotCache(num_slots, config.num_hidden_layers)
        self._free = list(range(num_slots))[::-1]
        self._live: dict[int, _Live] = {}
        self._queue: deque[TurnRequest] = deque()
        self._prefixes: OrderedDict[int, _Prefix] = OrderedDict()
        self._known: dict[int, dict[int, _Prefix]] = {}  # the same by group
        self._prefix_ids = 0
        self.prefix_bytes = 0
        self._max_prefix_bytes = prefix_cache_mb << 20
        self._autocast = autocast  # what to compute in, where it is not the weights' own type

    # the interface

    def submit(self, request: TurnRequest) -> None:
        """Queue one turn; a rollout that has a slot continues in it."""
        live = self._live.get(request.rollout)
        if live is None:
            self._queue.append(request)
        else:
            live.begin(request)

    def release(self, rollout: int) -> None:
        """Free the rollout's slot and keep its prefix for its group, memory permitting."""
        live = self._live.pop(rollout, None)
        if live is None:
            self._queue = deque(request for request in self._queue if request.rollout != rollout)
            return
        tokens = np.concatenate([live.tokens, np.asarray(live.sampled, np.int64)])[: live.fed]
        self._keep(_Prefix(live.group, tokens, self._cache.read(live.slot, live.fed)))
        self._free.append(live.slot)
        self._free.sort(reverse=True)

    def forget(self, group: int) -> None:
        """Drop the prefixes of a finished tree."""
        for key in list(self._known.get(group, ())):
            self._drop(key)

    @torch.inference_mode()
    def step(self) -> list[Turn]:
        """Admit what fits, feed what is to be fed, sample one token for every decoding rollout."""
        self._admit()
        active = [live for live in self._live.values() if live.pending]
        decoding = [live for live in active if live.pending == 1]
        chunks = [live for live in active if live.pending > 1]
        # Feeding few slots wastes a forward pass: while many others decode, wait for company.
        sampled = 0
        if chunks and len(chunks) * 6 >= len(decoding):
            self._feed(chunks)
            self.counts.chunk_steps += 1
            sampled += len(chunks)
        if decoding:
            self._feed(decoding)
            sampled += len(decoding)
        self.counts.decode_steps += bool(sampled)
        self.counts.decoded_tokens += sampled
        return self._ended()

    # slots and prefixes

    def _admit(self) -> None:
        """Give slots to queued rollouts. While a group's first prompt is being fed the group's others
        wait, so that they can copy it."""
        waiting: deque[TurnRequest] = deque()
        feeding = {live.group for live in self._live.values() if live.pending > 1 and not live.sampled}
        while self._queue and self._free:
            request = self._queue.popleft()
            states, length = self._longest_prefix(request)
            if length == 0 and request.group in feeding:
                waiting.append(request)
                continue
            live = _Live(request.rollout, request.group, self._free.pop(), request.token_ids[:0], length)
            if states is not None:
                self._cache.load(live.slot, states, length)
            live.begin(request)
            self.counts.reused_tokens += length
            self._live[request.rollout] = live
            if live.pending > 1:
                feeding.add(request.group)
        self._queue.extendleft(reversed(waiting))

    def _longest_prefix(self, request: TurnRequest) -> tuple[Tensor | None, int]:
        """Keys and values of the longest known prefix; the last token is always fed, for its logits."""
        best: _Prefix | _Live | None = None
        best_length = 0
        wanted = request.token_ids[:-1]
        candidates: list[_Prefix | _Live] = [*self._known.get(request.group, {}).values()]
        candidates += [live for live in self._live.values() if live.group == request.group]
        for known in candidates:
            length = _common(known.tokens[: known.fed], wanted)
            if length > best_length:
                best, best_length = known, length
        if isinstance(best, _Live):
            return self._cache.read(best.slot, best_length), best_length
        return (best.states if best else None), best_length

    def _keep(self, prefix: _Prefix) -> None:
        size = prefix.states.nbytes
        while self._prefixes and self.prefix_bytes + size > self._max_prefix_bytes:
            oldest = next(iter(self._prefixes))
            self.counts.evicted_tokens += self._prefixes[oldest].fed
            self._drop(oldest)
        if size > self._max_prefix_bytes:
            self.counts.evicted_tokens += prefix.fed
        else:
            self._prefixes[self._prefix_ids] = prefix
            self._known.setdefault(prefix.group, {})[self._prefix_ids] = prefix
            self._prefix_ids += 1
            self.prefix_bytes += size

    def _drop(self, key: int) -> None:
        prefix = self._prefixes.pop(key)
        self.prefix_bytes -= prefix.states.nbytes
        del self._known[prefix.group][key]
        if not self._known[prefix.group]:
            del self._known[prefix.group]

    # forward passes

    def _feed(self, lives: list[_Live]) -> None:
        """Put the pending tokens of `lives` through the model and sample a token for each."""
        weight = next(self.model.parameters())
        device = weight.device
        decode = all(live.pending == 1 for live in lives)
        num_rows = max(live.slot for live in lives) + 1 if decode else len(lives)
        rows = [live.slot for live in lives] if decode else list(range(len(lives)))
        num_tokens = max(live.pending for live in lives)
        token_ids = np.zeros((num_rows, num_tokens), np.int64)
        positions = np.zeros((num_rows, num_tokens), np.int64)
        if decode:  # slots that sit this pass out write one throw-away position, overwritten when they go on
            for live in self._live.values():
                if live.slot < num_rows:
                    positions[live.slot] = live.fed
        last = np.zeros(len(lives), np.int64)
        for row, live, i in zip(rows, lives, range(len(lives)), strict=True):
            tokens = live.next_tokens()
            token_ids[row, : len(tokens)] = tokens
            positions[row] = live.fed + np.arange(num_tokens)  # beyond `tokens`: overwritten later as well
            self.counts.fed_tokens += max(0, len(live.tokens) - live.fed)
            live.fed += len(tokens)
            last[i] = len(tokens) - 1
        width = int(positions.max()) + 1
        slots = torch.arange(num_rows) if decode else torch.tensor([live.slot for live in lives])
        position_ids = torch.from_numpy(positions).to(device)
        self._cache.select(slots.to(device), position_ids, width)
        hidden_keys = torch.arange(width, device=device) > position_ids[:, None, :, None]  # [B, 1, Q, width]
        # added to the scores: every attention implementation understands that
        mask = torch.zeros(hidden_keys.shape, dtype=weight.dtype, device=device)
        mask.masked_fill_(hidden_keys, float("-inf"))
        with torch.autocast(device.type, self._autocast, enabled=self._autocast is not None):
            hidden = self.model.base_model(  # type: ignore[operator]
                input_ids=torch.from_numpy(token_ids).to(device),
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
            picked = hidden[torch.tensor(rows, device=device), torch.from_numpy(last).to(device)]
            logits = self.model.get_output_embeddings()(picked)  # type: ignore[operator]
        self._sample(lives, logits)

    def _sample(self, lives: list[_Live], logits: Tensor) -> None:
        requests = [live.request for live in lives if live.request]
        seeds = np.array([request.seed for request in requests], np.uint64)
        uniform = torch.from_numpy(uniforms(seeds, np.array([live.fed for live in lives])))
        temperature: float | Tensor = self._temperature
        if any(request.temperature is not None for request in requests):
            each = [self._temperature if r.temperature is None else r.temperature for r in requests]
            temperature = torch.tensor(each, dtype=torch.float32, device=logits.device)
        tokens, logprobs, entropies = sample(logits, uniform.to(logits.device), temperature)
        for live, *values in zip(lives, tokens.tolist(), logprobs.tolist(), entropies.tolist(), strict=True):
            live.sampled.append(values[0])
            live.logprobs.append(values[1])
            live.entropies.append(values[2])
        if most := max(request.num_top for request in requests):
            top, ids = log_probabilities(logits, temperature).topk(min(most, logits.shape[-1]), dim=-1)
            for live, request, row_ids, row in zip(lives, requests, ids.cpu(), top.cpu(), strict=True):
                live.top.append((row_ids[: request.num_top], row[: request.num_top]))

    def _ended(self) -> list[Turn]:
        turns = []
        for live in self._live.values():
            if live.request is None or not live.sampled:
                continue
            ended = live.sampled[-1] in self._end_ids
            if not ended and len(live.sampled) < live.request.max_new_tokens:
                continue
            ids = np.asarray(live.sampled, np.int64)
            turns.append(
                Turn(
                    live.rollout,
                    ids,
                    np.asarray(live.logprobs, np.float32),
                    np.asarray(live.entropies, np.float32),
                    ended,
                    *_top_arrays(live),
                )
            )
            live.tokens = np.concatenate([live.tokens, ids])
            live.sampled, live.request = [], None
        return sorted(turns, key=lambda turn: turn.rollout)


def _top_arrays(live: _Live) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The likeliest tokens of a turn and their log-probabilities, [L, k] each, where they were asked for."""
    if not live.request or not live.request.num_top:
        return None, None
    ids, logprobs = (torch.stack(column).numpy() for column in zip(*live.top, strict=True))
    return ids, logprobs


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix of two token sequences."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
