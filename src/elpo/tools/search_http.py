r"""A search backend on another machine: a client of Search-R1's retrieval server.

Request:  POST {"queries": ["..."], "topk": 3, "return_scores": true}
Response: {"result": [[{"document": {"id": "..", "contents": "\"Title\"\nText"}, "score": 0.8}, ...]]}

with one inner list for each query. Documents without the wrapper, and with `title` and `text` instead of
`contents`, are read as well, which is what servers of that family send without scores.
"""

from __future__ import annotations

import json
import threading

from elpo.http_post import MAX_RESPONSE_BYTES, Address, NoAnswer, post
from elpo.tools.search_backend import EmptyPassage, Passage, SearchUnavailable, passage_from

NUM_ATTEMPTS = 3
FIRST_PAUSE = 0.5  # seconds before the second attempt; every later pause is twice the one before
_WORTH_A_RETRY = (408, 425, 429)  # of the client errors; server errors all are


class _AttemptFailed(Exception):
    """An attempt that gave no answer; `final` where another one would fail as well."""

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class RetrievalClient:
    """A `SearchBackend` that asks a server, each query on a connection of its own; proxies are not used.

    A server that does not answer, answers with an error or with something else than passages is asked again
    after a pause. Every attempt has a hard deadline, even against a server that sends a byte now and then.

    Args:
        url: such as `http://10.0.0.3:8000/retrieve`; without a path, `/retrieve` is meant.
        timeout: seconds for one attempt.

    Raises:
        ValueError: `url` is not an address of a server.
    """

    def __init__(self, url: str, timeout: float = 10.0, first_pause: float = FIRST_PAUSE) -> None:
        self._address = Address.of(url, "http://host:8000/retrieve")
        self.url = url
        path, _, query = self._address.path.partition("?")
        path = path if path.strip("/") else "/retrieve"
        self._target = f"{path}?{query}" if query else path
        self._timeout = timeout
        self._first_pause = first_pause
        self._closed = threading.Event()

    def search(self, query: str, top_k: int) -> list[Passage]:
        """See `SearchBackend.search`."""
        body = json.dumps({"queries": [query], "topk": top_k, "return_scores": True}).encode()
        failures = []
        for attempt in range(NUM_ATTEMPTS):
            pause = self._first_pause * 2 ** (attempt - 1) if attempt else 0.0
            if self._closed.wait(pause) if pause else self._closed.is_set():
                raise SearchUnavailable("the search client is closed")
            try:
                return _passages(self._post(body))[:top_k]
            except _AttemptFailed as failure:
                failures.append(str(failure))
                if failure.final:
                    break
        tried = f"{len(failures)} attempts" if len(failures) > 1 else "one attempt"
        raise SearchUnavailable(f"{self.url} gave no result in {tried}; the last: {failures[-1]}")

    def close(self) -> None:
        """Wait for no further attempt."""
        self._closed.set()

    def _post(self, body: bytes) -> bytes:
        """The body of the response to one request.

        Raises:
            _AttemptFailed: there is none, or its status is not 200.
        """
        try:
            response = post(self._address, self._target, body, self._timeout)
        except NoAnswer as error:
            raise _AttemptFailed(str(error)) from error
        if response.status != 200:
            client_error = 300 <= response.status < 500 and response.status not in _WORTH_A_RETRY
            raise _AttemptFailed(f"status {response.status} {response.reason}", final=client_error)
        if response.too_long:
            raise _AttemptFailed(f"an answer of more than {MAX_RESPONSE_BYTES >> 20} MB", final=True)
        return response.content


def _passages(content: bytes) -> list[Passage]:
    """The passages of a response to one query.

    Raises:
        _AttemptFailed: it is not what a retrieval server answers.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _AttemptFailed(f"the answer is not JSON: {error}") from None
    results = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(results, list) or len(results) != 1 or not isinstance(results[0], list):
        raise _AttemptFailed('the answer has no "result" with one list of documents')
    passages = []
    for number, item in enumerate(results[0], 1):
        document = item.get("document", item) if isinstance(item, dict) else item
        try:
            passages.append(passage_from(document, number))
        except EmptyPassage:
            continue  # a flaw of the corpus, not of the server
        except ValueError as error:
            raise _AttemptFailed(f"document {number} of the answer: {error}") from None
    return passages
