r"""Sampling with a vLLM server, over HTTP: token ids in, token ids out.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --generation-config vllm \
        --enable-prefix-caching --enable-scale-out --weight-transfer-config '{"backend": "nccl"}'

0.29 has the route without `--enable-scale-out`, and does not know the flag.

A turn is a request of its own and ends on its own; the server batches what is in flight. Weights go over
NCCL by vLLM's own transfer engine, after each update. The server must not sleep.
"""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import torch

from elpo.engines.awaited import AwaitedEngine
from elpo.engines.vllm_turns import VERSIONS, make_turn, require_vllm, sampling_arguments
from elpo.engines.weights import checkpoint_weights
from elpo.interfaces import InfrastructureFault, Turn, TurnRequest
from elpo.versions import within

NUM_ATTEMPTS = 3

ROUTES = {
    "/inference/v1/generate": "--enable-scale-out",
    "/get_world_size": "VLLM_SERVER_DEV_MODE=1",
    "/reset_prefix_cache": "VLLM_SERVER_DEV_MODE=1",
}
"""What is asked of a server, and what it must be started with to have it."""


class VllmServerEngine(AwaitedEngine):
    """An `elpo.interfaces.Engine` that asks `url`; `load_weights` after each update.

    Entropies are lower bounds from the `top_k` most likely tokens, see `elpo.engines.topk.grouped_entropy`.
    """

    def __init__(
        self,
        url: str,
        end_ids: tuple[int, ...],
        num_slots: int,
        temperature: float = 1.0,
        top_k: int = 19,
        timeout: float = 600.0,
        pause: float = 1.0,
    ) -> None:
        """`timeout` seconds for one answer, `pause` before the second attempt, doubled before the third.

        Raises:
            ImportError: vLLM is missing here or outside the range; it is needed to send weights.
            ValueError: `url` is no address, nothing answers there, or it is another version of vLLM or was
                started without a route.
        """
        require_vllm(top_k)
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError(f"vllm.url is {url!r}; give one such as http://host:8000")
        super().__init__(num_slots)
        self._url = url.rstrip("/")
        self._end_ids = end_ids
        self._temperature = temperature
        self._top_k = top_k
        self._timeout = timeout
        self._pause = pause
        self._threads = ThreadPoolExecutor(num_slots, thread_name_prefix="elpo-vllm")
        self._transfer: Any = None
        self._check_server()

    def ask(self, request: TurnRequest) -> Future[Turn]:
        """Send one turn. It fails with `InfrastructureFault` when the server does, `NUM_ATTEMPTS` times."""
        return self._threads.submit(self._sample, request)

    def close(self) -> None:
        """Let go of the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def load_weights(self, model: torch.nn.Module) -> None:
        """Send the weights of `model`, a transformers model, with or without a LoRA adapter, to all workers.

        The first call opens the channel, for which the server must have been started with a weight transfer
        config and in development mode.

        Raises:
            RuntimeError: turns are being sampled, or the server kept its prefixes.
        """
        if self._waiting:
            raise RuntimeError(f"{len(self._waiting)} turns are being sampled; load weights between steps")
        if self._transfer is None:
            self._transfer = self._open_transfer(model)
        self._transfer.send_weights()
        if not self._post("/reset_prefix_cache", {})["success"]:
            raise RuntimeError("vLLM did not drop its prefix cache; old prefixes would be sampled from")

    def _open_transfer(self, model: torch.nn.Module) -> Any:
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        class Weights(WeightSource):
            def metadata(self) -> list[Any]:
                return [ParamMeta(name, value.dtype, tuple(value.shape)) for name, value in self]

            def __iter__(self) -> Any:
                return checkpoint_weights(model)

        host = socket.gethostbyname(socket.gethostname())
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        workers = self._request("/get_world_size")["world_size"]
        return WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(host, port, workers + 1, rank=0),
            client=HTTPVLLMWeightSyncClient(self._url),
            source=Weights(),
        )

    def _check_server(self) -> None:
        try:
            found = str(self._request("/version")["version"])
        except InfrastructureFault as error:
            raise ValueError(f"vllm.url: {error}; start the server first") from error
        if not within(found, *VERSIONS):
            first, after = VERSIONS
            raise ValueError(
                f"vllm.url: the server runs vLLM {found}; this works with {first} to below {after}"
            )
        known = self._request("/openapi.json")["paths"]
        for path, start in ROUTES.items():
            if path not in known:
                raise ValueError(f"vllm.url: the server has no {path}; start it with {start}")

    def _sample(self, request: TurnRequest) -> Turn:
        # one more alternative than is used: the server counts the sampled token among them
        arguments = sampling_arguments(request, self._end_ids, self._temperature, self._top_k + 1)
        body = {"token_ids": request.token_ids.tolist(), "sampling_params": arguments}
        (choice,) = self._post("/inference/v1/generate", body)["choices"]
        content = choice["logprobs"]["content"]
        return make_turn(
            request,
            choice["token_ids"],
            [entry["logprob"] for entry in content],
            [[other["logprob"] for other in entry["top_logprobs"]] for entry in content],
            self._top_k,
            self._end_ids,
        )

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        pause = self._pause
        for attempt in range(NUM_ATTEMPTS):
            try:
                return self._request(path, body)
            except InfrastructureFault:
                if attempt == NUM_ATTEMPTS - 1:
                    raise
                time.sleep(pause)
                pause *= 2
        raise AssertionError("unreachable")

    def _request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            told = error.read(500).decode(errors="replace")
            if error.code < 500:  # a mistake of ours; asking again would not help
                raise RuntimeError(f"vLLM refused {path}: {error.code} {told}") from error
            raise InfrastructureFault(f"vLLM at {self._url} failed: {error.code} {told}") from error
        except (OSError, ValueError) as error:
            raise InfrastructureFault(f"vLLM at {self._url} does not answer: {error}") from error
