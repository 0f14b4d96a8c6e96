"""vLLM as its source has it, as far as we use it, with a transformers model in place of its own.

What calls may say is taken from `tests/fixtures/vllm_api.json`: names of arguments, fields and routes that
both ends of the supported range have (read from the wheels of 0.29.0 and 0.31.0). Anything else is refused
here as there. What is imitated beyond the names: requests run side by side and are answered when they end; a
stop token is part of the answer; log-probabilities are those at the temperature, the sampled token's first,
then the most likely ones; prefixes are cached in whole blocks of 16 tokens; the cache is not dropped under
running requests; weights are a copy of their own, taken by checkpoint name and in a reload only. On a CPU the
head is packed, anew where a reload names it or the layer is asked to, and prompts above 2048 tokens together,
of turns with seeds, need `enable_chunked_prefill` off. After an error inside a step requests are forgotten,
and steps return nothing. All of this was seen in 0.31.0 itself, which `test_vllm_itself.py` runs.
"""

from __future__ import annotations

import copy
import json
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

API = json.loads((Path(__file__).parents[1] / "fixtures" / "vllm_api.json").read_text())
BLOCK = 16
VERSION = "0.31.0"


def known(kind: str, names: Any) -> None:
    unknown = set(names) - set(API[kind])
    if unknown:
        raise TypeError(f"vLLM's {kind} has no {sorted(unknown)}")


class SamplingParams:
    def __init__(self, **given: Any) -> None:
        known("SamplingParams", given)
        defaults = {
            "temperature": 1.0,
            "max_tokens": 16,
            "stop_token_ids": [],
            "seed": None,
            "logprobs": None,
        }
        vars(self).update(defaults | given)
        if self.logprobs is not None and self.logprobs > 20:
            raise ValueError("Requested sample logprobs is greater than max allowed: 20")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class _Request:
    name: str
    prompt: list[int]
    params: SamplingParams
    generator: torch.Generator
    cached: int
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]


class ParallelLMHead(torch.nn.Module):
    """The packed head."""

    def __init__(self, weight: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.quant_method = types.SimpleNamespace(process_weights_after_loading=lambda layer: layer.pack())
        self.pack()

    def pack(self) -> None:
        self.packed = self.weight.detach().clone()


class FakeModel(torch.nn.Module):
    """vLLM's model; on a CPU its head is packed."""

    def __init__(self, model: Any, device: str) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        self.lm_head = ParallelLMHead(self.model.lm_head.weight)
        self.packs = device == "cpu"
        self.reloading = False

    def load_weights(self, pairs: Any) -> set[str]:
        if not self.reloading:
            raise AttributeError("'Parameter' object has no attribute 'weight_loader'")
        parameters = dict(self.model.named_parameters())
        loaded = set()
        for name, value in pairs:
            if name not in parameters:  # an adapter's
                raise ValueError(f"There is no module or parameter named {name!r}")
            parameters[name].data.copy_(value)
            loaded.add(name)
        if "lm_head.weight" in loaded:
            self.lm_head.pack()
        return loaded

    def reload_weights(self, weights_iterator: Any) -> None:
        self.reloading = True
        self.load_weights(weights_iterator)
        self.reloading = False

    def logits(self, ids: list[int]) -> torch.Tensor:
        hidden = self.model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        return (hidden @ (self.lm_head.packed if self.packs else self.lm_head.weight).T).float()


class LLMEngine:
    """vLLM's synchronous engine."""

    def __init__(self, policy: Any, /, device: str = "cpu", **settings: Any) -> None:
        known("EngineArgs", settings)
        namespace = types.SimpleNamespace
        self.vllm_config = namespace(
            model_config=namespace(
                logprobs_mode=settings.get("logprobs_mode", "raw_logprobs"),
                enable_sleep_mode=settings.get("enable_sleep_mode", False),
            ),
            cache_config=namespace(enable_prefix_caching=settings.get("enable_prefix_caching", True)),
            device_config=namespace(device_type=device),
        )
        self.target = FakeModel(policy, device)
        self.largest_batch = 0
        self.reads_in_parts = device == "cpu" and settings.get("enable_chunked_prefill", True)
        self.out_of_memory = False
        self._running: dict[str, _Request] = {}
        self._unread = 0
        self._blocks: set[tuple[int, ...]] = set()

    def add_request(self, request_id: str, prompt: Any, params: SamplingParams, **rest: Any) -> str:
        known("LLMEngine.add_request", rest)
        assert isinstance(request_id, str)
        ids = list(prompt["prompt_token_ids"])
        assert ids and all(type(i) is int for i in ids)
        generator = torch.Generator().manual_seed(params.seed)
        whole = range(BLOCK, len(ids), BLOCK)  # the last token is always fed
        cached = max((n for n in whole if tuple(ids[:n]) in self._blocks), default=0)
        self._unread += len(ids) - cached
        self._running[request_id] = _Request(request_id, ids, params, generator, cached, [], [])
        return f"{request_id}-internal"

    def abort_request(self, request_ids: list[str], internal: bool = False) -> None:
        for name in request_ids:
            self._running.pop(name, None)

    @torch.no_grad()
    def step(self) -> list[Any]:
        self.largest_batch = max(self.largest_batch, len(self._running))
        if self._unread > 2048 and self.reads_in_parts:
            raise RuntimeError("CPU Generator does not use offset")
        self._unread = 0
        if self.out_of_memory:
            self.out_of_memory = False
            self._running.clear()
            raise RuntimeError("out of memory")
        return [output for request in list(self._running.values()) if (output := self._advance(request))]

    def apply_model(self, function: Any) -> list[Any]:
        return [function(self.target)]

    def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> list[Any]:
        assert method == "reload_weights"
        known("GPUModelRunner.reload_weights", kwargs)
        return [self.target.reload_weights(*args, **kwargs)]

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        if self._running:
            return False
        self._blocks.clear()
        return True

    def _advance(self, request: _Request) -> Any:
        params = request.params
        logits = self.target.logits(request.prompt + request.token_ids)
        logprobs = torch.log_softmax(logits / params.temperature, -1)
        token = int(torch.multinomial(logprobs.exp(), 1, generator=request.generator))
        at = {token: Logprob(float(logprobs[token]), int((logprobs > logprobs[token]).sum()) + 1)}
        for rank, i in enumerate(torch.topk(logprobs, params.logprobs).indices.tolist(), 1):
            at.setdefault(i, Logprob(float(logprobs[i]), rank))
        request.token_ids.append(token)
        request.logprobs.append(at)
        stopped = token in params.stop_token_ids
        finished = stopped or len(request.token_ids) == params.max_tokens
        if not finished:
            return None  # FINAL_ONLY
        del self._running[request.name]
        ids = request.prompt + request.token_ids
        self._blocks.update(tuple(ids[:n]) for n in range(BLOCK, len(ids), BLOCK))
        answer = types.SimpleNamespace(
            token_ids=request.token_ids,
            logprobs=request.logprobs,
            finish_reason="stop" if stopped else "length",
        )
        known("CompletionOutput", vars(answer))
        output = types.SimpleNamespace(
            request_id=request.name, outputs=[answer], finished=True, num_cached_tokens=request.cached
        )
        known("RequestOutput", vars(output))
        return output


def install(monkeypatch: pytest.MonkeyPatch, version: str = VERSION) -> None:
    """Make `import vllm` mean this."""
    monkeypatch.setattr("elpo.versions.version", lambda package: version)
    vllm: Any = types.ModuleType("vllm")
    params: Any = types.ModuleType("vllm.sampling_params")
    params.RequestOutputKind = types.SimpleNamespace(FINAL_ONLY=2)
    vllm.SamplingParams = SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    platforms: Any = types.ModuleType("vllm.platforms")
    platforms.current_platform = types.SimpleNamespace(is_cpu=lambda: True)
    embedding: Any = types.ModuleType("vllm.model_executor.layers.vocab_parallel_embedding")
    embedding.ParallelLMHead = ParallelLMHead
    base: Any = types.ModuleType("vllm.distributed.weight_transfer.base")
    clients: Any = types.ModuleType("vllm.distributed.weight_transfer.clients")
    factory: Any = types.ModuleType("vllm.distributed.weight_transfer.factory")
    nccl: Any = types.ModuleType("vllm.distributed.weight_transfer.nccl_engine")
    base.WeightSource = object
    base.ParamMeta = ParamMeta
    clients.HTTPVLLMWeightSyncClient = lambda url: url
    factory.WeightTransferTrainerFactory = TrainerFactory
    nccl.NCCLTrainerInitInfo = NCCLTrainerInitInfo
    for module in (platforms, embedding, base, clients, factory, nccl):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@dataclass(frozen=True)
class ParamMeta:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass
class NCCLTrainerInitInfo:
    master_address: str
    master_port: int
    world_size: int
    rank: int


class TrainerFactory:
    """vLLM's trainer side; the broadcast goes straight into the server's model."""

    @staticmethod
    def trainer_init(init_info: NCCLTrainerInitInfo, *, client: str, source: Any) -> Any:
        server = SERVERS[client]
        server.world_size = init_info.world_size

        def send_weights() -> None:
            declared = [(meta.name, meta.shape) for meta in source.metadata()]
            pairs = [(name, value.clone()) for name, value in source]
            assert declared == [(name, tuple(value.shape)) for name, value in pairs]
            server.engine.target.reload_weights(pairs)
            server.num_updates += 1

        return types.SimpleNamespace(send_weights=send_weights)


SERVERS: dict[str, FakeServer] = {}


class FakeServer:
    """`vllm serve` with the routes we call, less `without`; `fail` makes the next requests answer 500."""

    def __init__(self, model: Any, version: str = VERSION) -> None:
        self.engine = LLMEngine(model, "cuda", logprobs_mode="processed_logprobs")
        self.version = version
        self.fail = 0
        self.num_requests = 0
        self.num_updates = 0
        self.world_size = 0
        self.without: set[str] = set()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known("routes", [self.path])
                paths = {path: {} for path in set(API["routes"]) - outer.without}
                answers = {
                    "/version": {"version": outer.version},
                    "/get_world_size": {"world_size": 2},
                    "/openapi.json": {"paths": paths},
                }
                self.answer(200, answers[self.path])

            def do_POST(self) -> None:
                known("routes", [self.path])
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/reset_prefix_cache":
                    self.answer(200, {"success": outer.engine.reset_prefix_cache()})
                elif outer.fail:
                    outer.fail -= 1
                    self.answer(500, {"error": "out of luck"})
                else:
                    self.answer(*outer.generate(body))

            def answer(self, code: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        SERVERS[self.url] = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def generate(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        known("GenerateRequest", body)
        with self._lock:
            self.num_requests += 1
            try:
                params = SamplingParams(**body["sampling_params"])
            except (TypeError, ValueError) as error:
                return 400, {"error": str(error)}
            self.engine.add_request("0", {"prompt_token_ids": body["token_ids"]}, params)
            outputs: list[Any] = []
            while not outputs:
                outputs = self.engine.step()
        (answer,) = outputs[0].outputs
        content = [
            {
                "token": f"token_id:{token}",
                "logprob": max(at[token].logprob, -9999.0),
                "top_logprobs": [
                    {"token": f"token_id:{i}", "logprob": max(entry.logprob, -9999.0)}
                    for i, entry in list(at.items())[: params.logprobs]
                ],
            }
            for token, at in zip(answer.token_ids, answer.logprobs, strict=True)
        ]
        choice = {"index": 0, "logprobs": {"content": content}, "token_ids": answer.token_ids}
        known("GenerateResponseChoice", choice)
        return 200, {"request_id": "0", "choices": [choice]}

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        del SERVERS[self.url]


def serving(model: Any, **settings: Any) -> Iterator[FakeServer]:
    server = FakeServer(model, **settings)
    try:
        yield server
    finally:
        server.close()
