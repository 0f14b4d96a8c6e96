"""Sampling with vLLM in this process, on the GPU of the trainer or one beside it.

vLLM batches continuously: a turn that is submitted joins the others at its next step, so that the many small
requests of a search are one stream of work. Prefixes are shared by vLLM's own cache (it keeps blocks of
tokens, least recently used), and there is no sleep mode: it would throw weights and cache away between calls.
"""

from __future__ import annotations

import os
from itertools import count
from typing import Any

import torch

from elpo.engines.vllm_turns import make_turn, require_vllm, sampling_arguments
from elpo.engines.weights import checkpoint_weights
from elpo.interfaces import EngineCounts, InfrastructureFault, Turn, TurnRequest


class VllmEngine:
    """An `elpo.interfaces.Engine` over vLLM's `LLMEngine`; `load_weights` after each update.

    Entropies are lower bounds from the `top_k` most likely tokens, see `elpo.engines.topk.grouped_entropy`.
    """

    def __init__(
        self,
        engine: Any,
        end_ids: tuple[int, ...],
        num_slots: int,
        temperature: float = 1.0,
        top_k: int = 19,
    ) -> None:
        """Wrap a vLLM engine that exists; `start` makes one.

        Raises:
            ImportError: vLLM is outside the range.
            ValueError: the engine's log-probabilities are not those of the sampling distribution, or it does
                not keep prefixes, or it can sleep.
        """
        require_vllm(top_k)
        model, cache = engine.vllm_config.model_config, engine.vllm_config.cache_config
        if model.logprobs_mode != "processed_logprobs":
            raise ValueError(f"vLLM's logprobs_mode is {model.logprobs_mode!r}; use 'processed_logprobs'")
        if not cache.enable_prefix_caching:
            raise ValueError("vLLM's enable_prefix_caching is off; a search needs it")
        if model.enable_sleep_mode:
            raise ValueError(
                "vLLM's enable_sleep_mode is on; it drops the cache between the calls of a search"
            )
        self.num_slots = num_slots
        self.counts = EngineCounts()
        self._engine = engine
        self._end_ids = end_ids
        self._temperature = temperature
        self._top_k = top_k
        self._ids = count()
        self._waiting: dict[str, TurnRequest] = {}
        self._failed = ""

    @classmethod
    def start(
        cls,
        model: str,
        end_ids: tuple[int, ...],
        num_slots: int,
        temperature: float = 1.0,
        top_k: int = 19,
        **arguments: Any,
    ) -> VllmEngine:
        """Load `model`, a folder or a name, into a new vLLM engine in this very process.

        `arguments` go to vLLM's `EngineArgs`: `gpu_memory_utilization`, `max_model_len`, `dtype`. The
        tokenizer is not loaded: token ids go in and out.

        Raises:
            ImportError: vLLM is missing or outside the range.
        """
        require_vllm(top_k)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else weights could not be handed over as tensors
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform

        # a prompt that is read in parts rewinds the turn's generator, which one on a CPU cannot do
        whole = {"enable_chunked_prefill": False} if current_platform.is_cpu() else {}
        settings = {
            "model": model,
            "max_num_seqs": num_slots,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",  # no defaults of the model's for sampling
            "skip_tokenizer_init": True,
            **whole,
            **arguments,
        }
        engine = LLMEngine.from_engine_args(EngineArgs(**settings))
        return cls(engine, end_ids, num_slots, temperature, top_k)

    def submit(self, request: TurnRequest) -> None:
        """Queue one turn."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        arguments = sampling_arguments(request, self._end_ids, self._temperature, self._top_k)
        name = f"elpo-{next(self._ids)}"
        self._engine.add_request(
            name,
            {"prompt_token_ids": request.token_ids.tolist()},
            SamplingParams(**arguments, output_kind=RequestOutputKind.FINAL_ONLY),
        )
        self._waiting[name] = request

    def step(self) -> list[Turn]:
        """One step of vLLM: a token for every running turn, or a part of a prompt.

        Raises:
            InfrastructureFault: vLLM has failed; it forgets its turns then, and must not be used any more.
        """
        if self._failed:
            raise InfrastructureFault(self._failed)
        if not self._waiting:
            return []
        try:
            outputs = self._engine.step()
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            self._failed = f"vLLM failed while it sampled {len(self._waiting)} turns: {told}"
            raise InfrastructureFault(self._failed) from error
        turns = [self._turn(output) for output in outputs if output.finished]
        self.counts.decode_steps += 1
        return sorted(turns, key=lambda turn: turn.rollout)

    def release(self, rollout: int) -> None:
        """The rollout is over; what it still waits for is given up."""
        names = [name for name, request in self._waiting.items() if request.rollout == rollout]
        if names:
            self._engine.abort_request(names)
        for name in names:
            del self._waiting[name]

    def forget(self, group: int) -> None:
        """Nothing to do: vLLM drops old prefixes when it needs their room."""

    def close(self) -> None:
        """Let go of the model and its memory."""
        self._engine.engine_core.shutdown()

    def load_weights(self, model: torch.nn.Module) -> None:
        """Take over the weights of `model`, a transformers model, with or without a LoRA adapter.

        Raises:
            RuntimeError: turns are being sampled.
        """
        if self._waiting:
            raise RuntimeError(f"{len(self._waiting)} turns are being sampled; load weights between steps")

        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": checkpoint_weights(model)})
        if self._engine.vllm_config.device_config.device_type == "cpu":
            self._engine.apply_model(_repack_head)
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not drop its prefix cache; old prefixes would be sampled from")

    def _turn(self, output: Any) -> Turn:
        request = self._waiting.pop(output.request_id)
        (answer,) = output.outputs
        ids = list(answer.token_ids)
        logprobs = [at[token].logprob for token, at in zip(ids, answer.logprobs, strict=True)]
        alternatives = [[entry.logprob for entry in at.values()] for at in answer.logprobs]
        reused = output.num_cached_tokens or 0
        self.counts.decoded_tokens += len(ids)
        self.counts.reused_tokens += reused
        self.counts.fed_tokens += len(request.token_ids) - reused
        return make_turn(request, ids, logprobs, alternatives, self._top_k, self._end_ids)


def _repack_head(model: torch.nn.Module) -> None:
    """On a CPU vLLM keeps its layers packed. It packs those anew that a reload has named, which a head tied
    to the embedding is not: it would go on with the weights of before.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
