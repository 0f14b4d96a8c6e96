"""A served model asked in the same process: the server without the HTTP."""

from __future__ import annotations

import json

from elpo.chat import ChatRequest, Completion, ContextTooLong
from elpo.endpoints.openai import read_completion, request_body
from elpo.serving.model import ServedModel
from elpo.serving.protocol import BadRequest, read_request


class LocalPolicy:
    """A `elpo.chat.ChatPolicy`. What it answers is what the server would."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def complete(self, request: ChatRequest) -> Completion:
        """See `elpo.chat.ChatPolicy.complete`."""
        body = read_request(json.dumps({**request_body(request), "model": self._model.name}).encode())
        try:
            return read_completion(json.dumps(self._model.respond(body)))
        except BadRequest as error:
            if error.code == "context_length_exceeded":
                raise ContextTooLong(str(error)) from error
            raise

    def close(self) -> None:
        """The model is closed by whoever opened it."""
