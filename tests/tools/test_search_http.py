"""The client against a real server on the loopback that answers rightly, wrongly, slowly or not at all."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from elpo import http_post
from elpo.tools.search import SearchTool
from elpo.tools.search_backend import Passage, SearchUnavailable
from elpo.tools.search_http import NUM_ATTEMPTS, RetrievalClient
from elpo.types import Problem, ToolCall, ToolResult, ToolStatus

DOCUMENTS = [
    {"id": "1", "contents": '"Lima"\nLima is the capital of Peru.'},
    {"id": "2", "contents": '"Quito"\nQuito is the capital of Ecuador.'},
    {"id": "3", "contents": '"Cusco"\nCusco lies in Peru.'},
]
TIMEOUT = 0.4

Behaviour = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as Search-R1's server does, or as the server's `behaviours` say, one for each request."""

    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Content-Type"], body))
        behaviours = self.server.behaviours
        (behaviours.pop(0) if behaviours else answer)(self, body)

    def reply(self, content: bytes, status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client has hung up
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.behaviours: list[Behaviour] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/retrieve"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def result_of(query: str, top_k: int) -> list[dict[str, Any]]:
    found = [document for document in DOCUMENTS if query in document["contents"]]
    return [{"document": document, "score": 0.5} for document in found[:top_k]]


def answer(handler: Handler, body: dict[str, Any]) -> None:
    result = [result_of(query, body["topk"]) for query in body["queries"]]
    handler.reply(json.dumps({"result": result}).encode())


def raw(content: bytes, status: int = 200) -> Behaviour:
    return lambda handler, body: handler.reply(content, status)


def says(value: object) -> Behaviour:
    return raw(json.dumps(value).encode())


def hang(handler: Handler, body: dict[str, Any]) -> None:
    handler.server.over.wait(10)


def hang_in_the_body(handler: Handler, body: dict[str, Any]) -> None:
    handler.reply(b'{"result": ', length=1000)
    handler.server.over.wait(10)


def drip(handler: Handler, body: dict[str, Any]) -> None:
    """A byte now and then: no single wait is long."""
    handler.reply(b'{"result": ', length=1000)
    while not handler.server.over.wait(TIMEOUT / 8):
        handler.wfile.write(b" ")


def drip_headers(handler: Handler, body: dict[str, Any]) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.over.wait(TIMEOUT / 8):
        handler.wfile.write(b"X")


def drop(handler: Handler, body: dict[str, Any]) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def drop_in_the_body(handler: Handler, body: dict[str, Any]) -> None:
    handler.reply(b'{"result": [[', length=1000)
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def no_http(handler: Handler, body: dict[str, Any]) -> None:
    handler.wfile.write(b"\0\xff garbage\r\n\r\n")


FAULTS: dict[str, Behaviour] = {
    "500": raw(b"", 500),
    "503": raw(b"", 503),
    "429": raw(b"", 429),
    "hang": hang,
    "hang in the body": hang_in_the_body,
    "drip": drip,
    "drip headers": drip_headers,
    "drop": drop,
    "drop in the body": drop_in_the_body,
    "no http": no_http,
    "no json": raw(b"<html>oops</html>"),
    "cut json": raw(b'{"result": [[{"document": {"id'),
    "not utf-8": raw(b'{"result": [["\xff"]]}'),
    "deep json": raw(b"[" * 100_000),
    "empty": raw(b""),
    "a list": says([[]]),
    "no result": says({"detail": "not found"}),
    "result is null": says({"result": None}),
    "no lists": says({"result": [{"document": DOCUMENTS[0]}]}),
    "two lists": says({"result": [[], []]}),
    "no document": says({"result": [[3]]}),
    "no contents": says({"result": [[{"document": {"id": "1"}, "score": 1}]]}),
    "contents is a number": says({"result": [[{"document": {"contents": 3}}]]}),
}


def client(server: Server) -> RetrievalClient:
    return RetrievalClient(server.url, TIMEOUT, first_pause=0.01)


def call(backend: RetrievalClient, query: str) -> ToolResult:
    session = SearchTool(backend).open(Problem("p", (), ""))
    return session.call(ToolCall("search", {"query": query}))[0]


def test_the_request_and_the_answer_are_search_r1s(server: Server) -> None:
    found = client(server).search("Peru", 2)
    assert found == [
        Passage("1", "Lima", "Lima is the capital of Peru."),
        Passage("3", "Cusco", "Cusco lies in Peru."),
    ]
    expected = {"queries": ["Peru"], "topk": 2, "return_scores": True}
    assert server.requests == [("/retrieve", "application/json", expected)]


def test_what_relatives_of_that_server_answer_is_read_too(server: Server) -> None:
    bare = {"id": 7, "title": "Lima", "text": "The capital."}
    server.behaviours = [
        says({"result": [[bare]]}),
        says({"result": [["just text"]]}),
        says({"result": [[{"document": {"contents": ""}}, {"document": bare}] * 3]}),
        says({"result": [[]]}),
    ]
    backend = client(server)
    assert backend.search("x", 3) == [Passage("7", "Lima", "The capital.")]
    assert backend.search("x", 3) == [Passage("1", "", "just text")]
    assert backend.search("x", 2) == [Passage("7", "Lima", "The capital.")] * 2  # no more than asked for
    assert backend.search("x", 3) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_retried_and_then_forgotten(server: Server, fault: str) -> None:
    server.behaviours = [FAULTS[fault]]
    result = call(client(server), "Ecuador")
    assert (result.status, result.output) == (ToolStatus.OK, "[1] Quito: Quito is the capital of Ecuador.")
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_an_infrastructure_fault_in_bounded_time(server: Server, fault: str) -> None:
    server.behaviours = [FAULTS[fault]] * NUM_ATTEMPTS
    begun = time.monotonic()
    result = call(client(server), "Ecuador")
    assert time.monotonic() - begun < NUM_ATTEMPTS * TIMEOUT + 1
    assert result.status is ToolStatus.INFRASTRUCTURE_FAULT
    assert f"{server.url} gave no result in {NUM_ATTEMPTS} attempts" in result.output
    assert len(server.requests) == NUM_ATTEMPTS
    assert call(client(server), "Ecuador").status is ToolStatus.OK  # the server is well again


@pytest.mark.parametrize("status", [301, 400, 404, 405, 422])
def test_a_refused_request_is_not_repeated(server: Server, status: int) -> None:
    server.behaviours = [raw(b"{}", status)]
    with pytest.raises(SearchUnavailable, match=f"in one attempt; the last: status {status}"):
        client(server).search("Peru", 1)
    assert len(server.requests) == 1


def test_an_answer_of_any_size_is_cut(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_post, "MAX_RESPONSE_BYTES", 100)
    server.behaviours = [raw(b'{"result": [["' + b"x" * 1000)]
    with pytest.raises(SearchUnavailable, match="an answer of more than"):
        client(server).search("Peru", 1)


def test_no_server_is_an_infrastructure_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    result = call(RetrievalClient(f"http://127.0.0.1:{port}", TIMEOUT, first_pause=0.01), "Peru")
    assert result.status is ToolStatus.INFRASTRUCTURE_FAULT
    assert "ConnectionRefusedError" in result.output


def test_a_server_that_accepts_and_says_nothing_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(SearchUnavailable, match=r"no answer within 0\.4 s"):
            RetrievalClient(url, TIMEOUT, first_pause=0.01).search("Peru", 1)
        assert time.monotonic() - begun < NUM_ATTEMPTS * TIMEOUT + 1


def test_pauses_grow_and_closing_ends_them(server: Server) -> None:
    server.behaviours = [raw(b"", 500)] * NUM_ATTEMPTS
    begun = time.monotonic()
    with pytest.raises(SearchUnavailable):
        RetrievalClient(server.url, TIMEOUT, first_pause=0.05).search("Peru", 1)
    assert time.monotonic() - begun >= 0.05 + 0.1
    server.behaviours = [raw(b"", 500)] * NUM_ATTEMPTS
    patient = RetrievalClient(server.url, TIMEOUT, first_pause=60)
    threading.Timer(0.1, patient.close).start()
    begun = time.monotonic()
    with pytest.raises(SearchUnavailable, match="closed"):
        patient.search("Peru", 1)
    assert time.monotonic() - begun < 30
    with pytest.raises(SearchUnavailable, match="closed"):
        patient.search("Peru", 1)


def test_no_thread_is_left_behind(server: Server) -> None:
    before = {thread.ident for thread in threading.enumerate() if isinstance(thread, threading.Timer)}
    backend = client(server)
    for _ in range(20):
        backend.search("Peru", 1)
    time.sleep(0.05)
    left = [t for t in threading.enumerate() if isinstance(t, threading.Timer) and t.ident not in before]
    assert not left


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000/retrieve", "ftp://host/retrieve", "http://", "http:///retrieve", "http://host:x/",
     "http://host:99999/", "http://host:0/", "http://ho st/", "http://höst/", "http://host/a\r\nX: y"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no address of a server"):
        RetrievalClient(url)


def test_the_path_is_retrieve_unless_another_is_given(server: Server) -> None:
    root = server.url.removesuffix("/retrieve")
    for url in (root, f"{root}/", f"{root}/v1/find?corpus=wiki"):
        RetrievalClient(url, TIMEOUT).search("Peru", 1)
    assert [path for path, _, _ in server.requests] == ["/retrieve", "/retrieve", "/v1/find?corpus=wiki"]
