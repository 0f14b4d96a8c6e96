"""The client against a server that misbehaves in every way; what it may spend; what it keeps."""

from __future__ import annotations

import contextlib
import email.utils
import itertools
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from elpo.chat import ChatRequest, Completion, ContextTooLong, RawCall
from elpo.endpoints.account import Account, LimitReached, Spending
from elpo.endpoints.journal import Journal, KeptPolicy
from elpo.endpoints.openai import Endpoint, EndpointRefused, Retries
from elpo.interfaces import InfrastructureFault

REQUEST = ChatRequest("m", ({"role": "user", "content": "hi"},), (), 16, 0.7, 11)
ANSWER = {
    "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2},
}


class Scripted(ThreadingHTTPServer):
    """Answers the n-th request with the n-th of `replies`: (status, body, headers), or a function."""

    daemon_threads = True

    def __init__(self) -> None:
        self.replies: list = []
        self.asked: list = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((time.monotonic(), self.path, dict(self.headers), body))
        reply = self.server.replies.pop(0) if self.server.replies else (200, json.dumps(ANSWER), {})
        if callable(reply):
            reply(self)
            return
        status, content, headers = reply
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    with Scripted() as scripted:
        yield scripted
        scripted.shutdown()


def endpoint(server, attempts=4, timeout=5.0, **more):
    return Endpoint(server.url, retries=Retries(attempts, 0.01, timeout), **more)


def test_a_request_and_its_completion(server):
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
    message = {"content": None, "tool_calls": calls}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    server.replies = [(200, json.dumps(answer), {})]
    request = ChatRequest("m", REQUEST.messages, (tool,), 16, 0.7, 11)
    found = endpoint(server, api_key="secret").complete(request)
    assert found == Completion("", (RawCall("c1", "f", '{"x": 1}'),), "tool_calls", None, None)
    _, path, headers, body = server.asked[0]
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert body["tools"] == [tool] and body["parallel_tool_calls"] is False
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("m", 16, 0.7, 11)


def test_fields_that_an_endpoint_does_not_take(server):
    endpoint(server, omit=("seed", "temperature", "max_tokens")).complete(REQUEST)
    assert set(server.asked[0][3]) == {"model", "messages", "max_completion_tokens"}
    with pytest.raises(ValueError, match="messages cannot be left out"):
        endpoint(server, omit=("messages",))


def hang_up(handler):
    handler.close_connection = True


def stall(handler):
    time.sleep(1.0)


def cut(handler):
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [')


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ((500, "<html>oops", {}), "server"),
        ((503, "{}", {}), "server"),
        ((529, "overloaded", {}), "server"),
        ((429, '{"error": {"message": "slow down"}}', {}), "busy"),
        ((408, "", {}), "busy"),
        ((200, '{"choices": [{"mess', {}), "answer"),
        ((200, "", {}), "answer"),
        ((200, "[" * 100_000, {}), "answer"),
        ((200, '{"choices": []}', {}), "answer"),
        ((200, '{"choices": [{"message": null}]}', {}), "answer"),
        ((200, '{"choices": [{"message": {"tool_calls": [{"function": {}}]}}]}', {}), "answer"),
        ((200, '{"error": {"message": "in disguise"}}', {}), "answer"),
        (hang_up, "connection"),
        (cut, "connection"),
        (stall, "timeout"),
    ],
)
def test_what_may_pass_is_tried_again(server, reply, kind):
    server.replies = [reply, reply]
    client = endpoint(server, timeout=0.3 if kind == "timeout" else 5.0)
    assert client.complete(REQUEST) == Completion("hello", (), "stop", 5, 2)
    assert client.failures == {kind: 2}
    assert len(server.asked) == 3


def test_what_does_not_pass_is_a_fault_and_no_verdict(server):
    server.replies = [(500, "", {})] * 4
    with pytest.raises(InfrastructureFault, match="no completion in 4 attempts; the last: status 500"):
        endpoint(server).complete(REQUEST)
    with pytest.raises(InfrastructureFault, match="ConnectionRefused"):
        Endpoint("http://127.0.0.1:1/v1", retries=Retries(2, 0.01)).complete(REQUEST)


def test_what_never_passes_is_not_tried_again(server):
    for status, said, error in [
        (401, {"error": {"message": "no such key"}}, EndpointRefused),
        (404, {"error": {"message": "no model m"}}, EndpointRefused),
        (400, {"error": "what?"}, EndpointRefused),
        (429, {"error": {"message": "pay first", "code": "insufficient_quota"}}, EndpointRefused),
        (400, {"error": {"message": "long", "code": "context_length_exceeded"}}, ContextTooLong),
        (400, {"message": "This model's maximum context length is 8 tokens"}, ContextTooLong),
    ]:
        server.replies, server.asked = [(status, json.dumps(said), {})], []
        with pytest.raises(error):
            endpoint(server).complete(REQUEST)
        assert len(server.asked) == 1


def test_pauses_grow_unless_the_server_says_how_long(server):
    server.replies = [(500, "", {})] * 3
    Endpoint(server.url, retries=Retries(4, 0.1)).complete(REQUEST)
    times = [time for time, *_ in server.asked]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps[0] >= 0.05 and gaps[1] >= 0.1 and gaps[2] >= 0.2
    server.asked.clear()

    def later(handler):
        handler.send_response(503)
        handler.send_header("Retry-After", email.utils.formatdate(time.time() + 2, usegmt=True))
        handler.end_headers()

    server.replies = [(429, "", {"Retry-After": "0.4"}), later]
    Endpoint(server.url, retries=Retries(3, 0.001)).complete(REQUEST)
    times = [time for time, *_ in server.asked]
    assert times[1] - times[0] >= 0.4 and times[2] - times[1] >= 0.4


def test_closing_ends_the_waiting(server):
    server.replies = [(429, "", {"Retry-After": "60"})]
    client = endpoint(server)
    threading.Timer(0.2, client.close).start()
    begun = time.monotonic()
    with pytest.raises(InfrastructureFault, match="closed"):
        client.complete(REQUEST)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://x:0/v1", "http://a b/v1"])
def test_a_wrong_address_is_found_at_once(url):
    with pytest.raises(ValueError, match="is no address of a server"):
        Endpoint(url)


class Paid:
    """Uses up to what a request allows, at random; sometimes fails; reports usage or not."""

    def __init__(self, reports: bool = True) -> None:
        self.rng = random.Random(1)
        self.lock = threading.Lock()
        self.reports = reports
        self.calls = self.used = 0

    def complete(self, request: ChatRequest) -> Completion:
        with self.lock:
            self.calls += 1
            fails = self.rng.random() < 0.2
            prompt, answer = self.rng.randint(1, 20), self.rng.randint(1, request.max_tokens)
        time.sleep(0.001)
        if fails:
            raise InfrastructureFault("lost")
        with self.lock:
            self.used += prompt + answer
        return Completion("x", (), "stop", *((prompt, answer) if self.reports else (None, None)))

    def close(self) -> None:
        pass


def numbered(seed: int) -> ChatRequest:
    return ChatRequest("m", REQUEST.messages, (), 16, 0.7, seed)


@pytest.mark.parametrize("reports", [True, False])
def test_no_limit_is_ever_passed(tmp_path, reports):
    paid = Paid(reports)
    account = Account(Spending(max_tokens=3000))
    policy = KeptPolicy(paid, Journal(tmp_path / "j.jsonl"), account)

    def ask(seed: int) -> str:
        try:
            policy.complete(numbered(seed))
        except (InfrastructureFault, LimitReached) as error:
            return type(error).__name__
        return "drawn"

    with ThreadPoolExecutor(8) as threads:
        ends = list(threads.map(ask, range(400)))
    assert {"drawn", "InfrastructureFault", "LimitReached"} == set(ends)
    assert paid.used <= account.prompt_tokens + account.completion_tokens <= 3000
    assert account.requests == ends.count("drawn")
    if reports:
        assert paid.used > 2800  # a limit is not given up early, only what one request might use is held back
        assert account.prompt_tokens + account.completion_tokens == paid.used


def test_money(tmp_path):
    spending = Spending(max_cost=0.001, input_price=1.0, output_price=10.0)
    assert spending.cost(1_000_000, 100_000) == pytest.approx(2.0)
    account = Account(spending)
    policy = KeptPolicy(Paid(), Journal(tmp_path / "j.jsonl"), account)

    def ask_on() -> None:
        for seed in range(400):
            with contextlib.suppress(InfrastructureFault):
                policy.complete(numbered(seed))

    with pytest.raises(LimitReached, match=r"cost 0\.001"):
        ask_on()
    assert 0.0005 < account.cost <= 0.001
    with pytest.raises(ValueError, match="needs the prices"):
        Spending(max_cost=1.0)
    with pytest.raises(ValueError, match="negative"):
        Spending(max_tokens=-1)


def test_what_was_drawn_is_never_asked_again_and_still_paid(tmp_path):
    file = tmp_path / "kept" / "j.jsonl"
    first = Paid(reports=False)
    policy = KeptPolicy(first, Journal(file), Account())
    answered = {}
    for seed in range(30):
        try:
            answered[seed] = policy.complete(numbered(seed))
        except InfrastructureFault:
            continue
    spent = policy.account.prompt_tokens, policy.account.completion_tokens
    policy.close()
    with file.open("ab") as torn:
        torn.write(b'{"key": "half a li')
    second = Paid()
    again = KeptPolicy(second, Journal(file), Account())
    assert (again.account.prompt_tokens, again.account.completion_tokens) == spent
    assert {seed: again.complete(numbered(seed)) for seed in answered} == answered
    assert (second.calls, again.num_replayed) == (0, len(answered))
    while len(file.read_bytes().splitlines()) == len(answered):  # the torn line is gone
        with contextlib.suppress(InfrastructureFault):
            again.complete(numbered(99))
    again.close()
    third = Journal(file)
    assert len(third) == len(answered) + 1
    third.close()


def test_a_damaged_line_is_named(tmp_path: Path):
    file = tmp_path / "j.jsonl"
    file.write_text('{"key": "a"}\nnonsense\n')
    with pytest.raises(ValueError, match=r"j\.jsonl:1 is damaged"):
        Journal(file)


def test_equal_requests_have_equal_keys_and_others_do_not():
    assert numbered(3).key == numbered(3).key
    others = [
        ChatRequest("n", REQUEST.messages, (), 16, 0.7, 11),
        ChatRequest("m", (), (), 16, 0.7, 11),
        ChatRequest("m", REQUEST.messages, ({"type": "function"},), 16, 0.7, 11),
        ChatRequest("m", REQUEST.messages, (), 17, 0.7, 11),
        ChatRequest("m", REQUEST.messages, (), 16, 0.8, 11),
        ChatRequest("m", REQUEST.messages, (), 16, 0.7, 12),
    ]
    assert len({REQUEST.key, *(other.key for other in others)}) == 7
