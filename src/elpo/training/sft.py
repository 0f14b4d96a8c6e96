"""Cold start: supervised fine-tuning on conversations with tool calls.

A conversation becomes the same token sequence a rollout of it would have been, and only what an
assistant wrote is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elpo.batch import micro_batches
from elpo.packing import TreeLayout, tree_layout
from elpo.rollout.dialogue import Dialogue
from elpo.training.learner import Learner
from elpo.tree_packing import balanced


@dataclass(frozen=True, eq=False)
class Conversation:
    """Token ids int64 [T] and which of them an assistant wrote, bool [T]."""

    token_ids: np.ndarray
    sampled: np.ndarray


def conversation_tokens(dialogue: Dialogue, messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Tokenise a conversation turn by turn, as the rollouts that follow will be.

    Raises:
        ValueError: a tool message does not follow an assistant turn, or the assistant says nothing.
    """
    start = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), None)
    if start is None:
        raise ValueError("a conversation needs at least one assistant turn")
    ids = [dialogue.prompt_ids(messages[:start])]
    sampled = [False]
    expect_assistant = True
    for message in messages[start:]:
        if expect_assistant != (message["role"] == "assistant"):
            raise ValueError(
                f"unexpected {message['role']!r} message: turns and tool feedback must alternate"
            )
        if expect_assistant:
            ids.append(dialogue.assistant_ids(message))
        elif message["role"] == "tool":
            ids.append(dialogue.feedback_ids(str(message["content"])))
        else:
            raise ValueError(f"unexpected {message['role']!r} message after an assistant turn")
        sampled.append(expect_assistant)
        expect_assistant = not expect_assistant
    lengths = [len(part) for part in ids]
    return Conversation(np.concatenate(ids), np.repeat(sampled, lengths))


def batch_indices(num: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Which of `num` examples step `step` (from 0) uses: epochs of seeded permutations, cut into batches.

    A pure function of its arguments, so that a resumed run sees the same data.
    """
    wanted = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = wanted // num
    orders = {int(e): np.random.default_rng([seed, int(e)]).permutation(num) for e in np.unique(epochs)}
    return np.array([orders[int(e)][i] for e, i in zip(epochs, wanted % num, strict=True)])


def sft_update(learner: Learner, batch: Sequence[Conversation], microbatch_tokens: int) -> dict[str, float]:
    """One update towards the batch's assistant tokens (token-mean cross-entropy, nats); returns metrics.

    Of several processes each trains on its share of the batch, which all are given as a whole.
    """
    num_tokens = sum(int(c.sampled.sum()) for c in batch)
    totals = {"loss": 0.0, "entropy": 0.0, "forwarded": 0.0}
    share = learner.processes.share(batch)
    parts = list((_packed if learner.packed else _padded)(share, microbatch_tokens)) if share else []

    def losses() -> Iterator[Tensor]:
        for token_ids, sampled, layout in parts:
            on = (part.to(learner.device) for part in (token_ids, sampled, layout) if part is not None)
            logprobs, entropies = learner.scorer(*on)
            totals["forwarded"] += token_ids.numel()
            loss = -logprobs.sum() / num_tokens
            totals["loss"] += float(loss.detach())
            totals["entropy"] += float(entropies.sum()) / num_tokens
            yield loss

    norm = learner.update(losses(), len(parts))
    of_all = learner.processes.every(totals)
    totals = {name: sum(found[name] for found in of_all) for name in totals}
    return {
        "loss": totals["loss"],
        "entropy/mean": totals["entropy"],
        "tokens/sampled": float(num_tokens),
        "tokens/forwarded_per_unique": totals["forwarded"] / sum(len(c.token_ids) for c in batch),
        "grad/norm": norm,
        "lr": learner.learning_rate,
    }


def _packed(
    batch: Sequence[Conversation], max_tokens: int
) -> Iterator[tuple[Tensor, Tensor, TreeLayout | None]]:
    """Conversations one after the other, each a tree of one branch: token ids, sampled [N], layout."""
    for group in balanced([len(c.token_ids) for c in batch], max_tokens):
        chosen = [batch[i] for i in group]
        ids, sampled = (
            np.concatenate([getattr(c, name) for c in chosen]) for name in ("token_ids", "sampled")
        )
        layout = tree_layout([-1] * len(chosen), [len(c.token_ids) for c in chosen])
        yield torch.from_numpy(ids), torch.from_numpy(sampled), layout


def _padded(
    batch: Sequence[Conversation], max_tokens: int
) -> Iterator[tuple[Tensor, Tensor, TreeLayout | None]]:
    """Conversations below each other, right-padded: token ids, sampled [B, T], no layout."""
    lengths = torch.tensor([len(c.token_ids) for c in batch])
    for index in micro_batches(lengths, max_tokens):
        rows = [batch[int(i)] for i in index]
        width = max(len(row.token_ids) for row in rows)
        token_ids = torch.zeros(len(rows), width, dtype=torch.int64)
        sampled = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            token_ids[i, : len(row.token_ids)] = torch.from_numpy(row.token_ids)
            sampled[i, : len(row.sampled)] = torch.from_numpy(row.sampled)
        yield token_ids, sampled, None
