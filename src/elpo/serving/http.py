"""The server: `POST /v1/chat/completions`, `GET /v1/models`, `GET /health`.

The standard library's server, a thread for each connection: what takes time is decoding, which one thread
does for all, and a server for one model on loopback needs neither routing nor an event loop.
"""

from __future__ import annotations

import hmac
import json
import select
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from elpo.interfaces import InfrastructureFault
from elpo.serving.model import ServedModel
from elpo.serving.protocol import BadRequest, read_request

MAX_BODY_BYTES = 32 << 20
_IDLE_SECONDS = 600.0


class ChatServer(ThreadingHTTPServer):
    """Serves one model. With `api_key`, requests need it as their bearer token.

    Raises:
        OSError: the address cannot be bound.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, model: ServedModel, host: str, port: int, api_key: str | None = None) -> None:
        self.model = model
        self.api_key = api_key
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """The base URL a client is given."""
        host, port = self.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{name}:{port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server: ChatServer

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, {"status": "ok"})
        elif self._authorized() and self.path.rstrip("/") == "/v1/models":
            model = self.server.model
            entry = {
                "id": model.name,
                "object": "model",
                "created": model.created,
                "owned_by": "elpo",
                "max_model_len": model.context_length,
            }
            self._send(200, {"object": "list", "data": [entry]})
        elif self._authorized():
            self._error(404, f"there is nothing at {self.path}", "invalid_request_error")

    def do_POST(self) -> None:
        try:
            body = self._body()
            if not self._authorized():
                return
            if self.path.rstrip("/") != "/v1/chat/completions":
                self._error(404, f"there is nothing at {self.path}", "invalid_request_error")
                return
            self._send(200, self.server.model.respond(read_request(body), self._hung_up))
        except BadRequest as error:
            status = 404 if error.code == "model_not_found" else 400
            self._error(status, str(error), "invalid_request_error", error.param, error.code)
        except InfrastructureFault as error:
            self._error(503, str(error), "server_error")
        except ConnectionError:
            self.close_connection = True
        except Exception as error:  # of the engine: the client is told, the server lives on
            self._error(500, f"{type(error).__name__}: {error}", "server_error")

    def _body(self) -> bytes:
        """The body, read whole so that the connection can go on.

        Raises:
            BadRequest: it has no length, is too long or no JSON. A browser may post a form to any address
                without asking, but not JSON.
        """
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            raise BadRequest(f"a body needs a Content-Length of at most {MAX_BODY_BYTES}")
        body = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":
            raise BadRequest("Content-Type must be application/json")
        return body

    def _authorized(self) -> bool:
        key = self.server.api_key
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if key is None or hmac.compare_digest(given.encode(), key.encode()):
            return True
        self._error(401, "wrong API key", "invalid_request_error", None, "invalid_api_key")
        return False

    def _hung_up(self) -> bool:
        """True once the client has closed its end; a request that is pipelined is none of that."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _error(
        self, status: int, message: str, kind: str, param: str | None = None, code: str | None = None
    ) -> None:
        self._send(status, {"error": {"message": message, "type": kind, "param": param, "code": code}})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: they hold what people ask."""
