"""A proxy on loopback that spoils a given share of the requests, in all the ways endpoints do."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from elpo.http_post import Address, NoAnswer, post

KINDS = ("timeout", "busy", "server", "broken_json", "wrong_json", "dropped", "cut")


class FaultyProxy(ThreadingHTTPServer):
    """Forwards to `upstream`, a base URL; spoils a request with probability `rate`.

    timeout: no answer for `stall` seconds. busy: 429 with Retry-After. server: 500. broken_json: an answer
    cut in the middle. wrong_json: JSON that is no completion. dropped: the connection closes with no answer.
    cut: it closes in the middle of one. What the last four spoil was really drawn upstream.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, upstream: str, rate: float, stall: float, seed: int = 0, kinds: tuple[str, ...] = KINDS
    ) -> None:
        self.upstream = Address.of(upstream, "")
        self.rate = rate
        self.stall = stall
        self.kinds = kinds
        self.spoilt: Counter[str] = Counter()
        self.passed = 0
        self.lock = threading.Lock()
        self.rng = random.Random(seed)
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{self.upstream.path}"

    def choose(self) -> str | None:
        """The fault of the next request, None for none."""
        with self.lock:
            if self.rng.random() >= self.rate:
                self.passed += 1
                return None
            kind = self.rng.choice(self.kinds)
            self.spoilt[kind] += 1
            return kind

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def do_POST(self) -> None:
        self.close_connection = True
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.server.choose()
        if kind == "timeout":
            time.sleep(self.server.stall)
            return
        if kind == "busy":
            self.answer(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.05"})
            return
        if kind == "server":
            self.answer(500, b"<html>Internal Server Error</html>", {})
            return
        try:
            upstream = post(self.server.upstream, self.path, body, 120.0)
        except NoAnswer:
            return
        content = upstream.content
        if kind == "dropped":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif kind == "cut":
            self.answer(200, content[: len(content) // 2], {"Content-Length": str(len(content))})
        elif kind == "broken_json":
            self.answer(200, content[: len(content) // 2], {})
        elif kind == "wrong_json":
            self.answer(200, b'{"object": "chat.completion", "choices": []}', {})
        else:
            self.answer(upstream.status, content, {})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass
