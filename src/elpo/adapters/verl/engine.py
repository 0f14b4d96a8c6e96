"""verl's own rollout servers as an engine: the search runs in a thread, the requests on verl's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from elpo.engines.awaited import AwaitedEngine
from elpo.interfaces import InfrastructureFault, Turn, TurnRequest

Generate = Callable[..., Coroutine[Any, Any, Any]]
"""`LLMServerClient.generate(request_id, *, prompt_ids, sampling_params)`, which gives a `TokenOutput`."""


class VerlEngine(AwaitedEngine):
    """An `elpo.interfaces.Engine` over verl's client, for the rollouts of one tree.

    verl's servers return the sampled token's log-probability and nothing else. The entropy of a token is
    therefore estimated by its surprisal, −log π(token): unbiased, but of one draw, so that means over a few
    tokens are rough (`elpo.adapters.verl.entropies` gives better ones). All requests of a tree carry one id,
    by which verl sends them to one replica and its prefix cache. Sampling is not seeded.
    """

    def __init__(
        self,
        generate: Generate,
        loop: asyncio.AbstractEventLoop,
        request_id: str,
        sampling_params: Mapping[str, Any],
        end_ids: Sequence[int],
        num_slots: int,
    ) -> None:
        super().__init__(num_slots)
        self._generate = generate
        self._loop = loop
        self._request_id = request_id
        self._sampling_params = dict(sampling_params)
        self._end_ids = list(end_ids)
        self.versions: list[int] = []  # of the weights that sampled, as verl counts its steps

    def ask(self, request: TurnRequest) -> Future[Turn]:
        """One request to a server."""
        return asyncio.run_coroutine_threadsafe(self._sample(request), self._loop)

    def score(self, token_ids: np.ndarray, top_k: int) -> list[list[float]]:
        """Log-probabilities of the `top_k` most likely tokens at each place but the first. Waits for them.

        Entry i is about the token at i + 1. Costs one prefill.

        Raises:
            InfrastructureFault: the server does not give them.
        """
        parameters = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": top_k}
        asked = self._request(token_ids.tolist(), parameters)
        output = asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        found = output.extra_fields.get("prompt_logprobs")
        if found is None or len(found) < len(token_ids) - 1:
            raise InfrastructureFault(
                "the rollout server gives no prompt_logprobs; use elpo.entropy=surprisal"
            )
        return [list(top) for top in found[: len(token_ids) - 1]]

    async def _sample(self, request: TurnRequest) -> Turn:
        ours = {
            "max_tokens": request.max_new_tokens,
            "stop_token_ids": self._end_ids,
            "ignore_eos": True,
            "logprobs": True,
        }
        output = await self._request(request.token_ids.tolist(), self._sampling_params | ours)
        ids = list(output.token_ids)
        if not ids or output.log_probs is None or len(output.log_probs) != len(ids):
            raise InfrastructureFault(
                f"a rollout server answered with {len(ids)} tokens and "
                f"{len(output.log_probs or [])} log-probabilities ({output.stop_reason})"
            )
        logprobs = np.asarray(output.log_probs, np.float32)
        return Turn(
            request.rollout, np.asarray(ids, np.int64), logprobs, -logprobs, ended=ids[-1] in self._end_ids
        )

    async def _request(self, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        output = await self._generate(
            request_id=self._request_id, prompt_ids=prompt_ids, sampling_params=sampling_params
        )
        for name in ("min_global_steps", "max_global_steps"):
            version = output.extra_fields.get(name, output.extra_fields.get("global_steps"))
            if version is not None:
                self.versions.append(int(version))
        return output
