"""A served model: chat requests in, chat responses out. The same for the HTTP server and in the process."""

from __future__ import annotations

import json
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, wait
from functools import lru_cache
from typing import Any

import numpy as np

from elpo.interfaces import Engine, TurnRequest
from elpo.rollout.dialogue import Dialogue
from elpo.serving.batching import BatchedEngine
from elpo.serving.protocol import BadRequest, ChatBody, choice, response

_POLL_SECONDS = 0.5


class ServedModel:
    """Answers chat requests with one engine. Thread-safe; concurrent requests are decoded as one batch.

    With a seed the answer is a function of the request alone, up to rounding that differs with the batch;
    without one it is random. Choice i of a request is sampled with the seed's i-th child.

    Args:
        engine: samples turns; its end-of-turn token is the tokenizer's.
        name: what clients call the model.
        context_length: tokens of prompt and answer together that the model can take.
    """

    def __init__(self, engine: Engine, tokenizer: Any, name: str, context_length: int) -> None:
        self.name = name
        self.context_length = context_length
        self.created = int(time.time())
        self._batched = BatchedEngine(engine)
        # Whether text may become control tokens is a state of the tokenizer: one thread at a time.
        self._tokenizing = threading.Lock()
        self._dialogue = lru_cache(16)(
            lambda schemas: Dialogue(tokenizer, [dict(schema) for schema in json.loads(schemas)])
        )
        self._dialogue("[]")  # a template that cannot be served is found now

    def respond(self, body: ChatBody, gone: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """The response to a request. `gone` is polled; once true, nobody waits for it any more.

        Raises:
            BadRequest: another model, a conversation the chat template refuses, or one that is too long.
            ConnectionError: `gone` became true.
        """
        if body.model != self.name:
            raise BadRequest(
                f"there is no model {body.model!r} here, only {self.name!r}", "model", "model_not_found"
            )
        tools: Sequence[Mapping[str, Any]] = body.tools if body.tool_choice == "auto" else ()
        try:
            with self._tokenizing:
                dialogue = self._dialogue(json.dumps(tools))
                prompt = dialogue.conversation_ids(body.messages)
        except Exception as error:  # templates raise what they like
            raise BadRequest(f"the chat template refuses this conversation: {error}", "messages") from error
        room = self.context_length - len(prompt)
        if room < 1:
            raise BadRequest(
                f"this model's maximum context length is {self.context_length} tokens; the messages have "
                f"{len(prompt)}",
                "messages",
                "context_length_exceeded",
            )
        # Conversations that open alike share prefixes.
        group = zlib.crc32(json.dumps([tools, body.messages[:2]]).encode())
        entropy = secrets.randbits(63) if body.seed is None else body.seed % (1 << 64)
        seeds = np.random.SeedSequence(entropy).generate_state(body.n, np.uint64)
        asked = [
            self._batched.sample(
                TurnRequest(
                    rollout=0,
                    group=group,
                    token_ids=prompt,
                    max_new_tokens=min(room, body.token_limit or room),
                    seed=int(seed),
                    temperature=body.temperature,
                    num_top=body.top_logprobs,
                )
            )
            for seed in seeds
        ]
        futures = [future for _, future in asked]
        while wait(futures, _POLL_SECONDS).not_done:
            if gone():
                for number, _ in asked:
                    self._batched.cancel(number)
                raise ConnectionError("the client hung up")
        try:
            turns = [future.result() for future in futures]
        except CancelledError:
            raise ConnectionError("the request was cancelled") from None
        choices = [choice(i, turn, dialogue, tools, body.logprobs) for i, turn in enumerate(turns)]
        name = f"chatcmpl-{secrets.token_hex(12)}"
        return response(name, self.name, int(time.time()), len(prompt), turns, choices)

    def close(self) -> None:
        """End the decode thread."""
        self._batched.close()
