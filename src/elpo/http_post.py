"""One POST with a hard deadline, on a connection of its own; what clients of servers share.

Proxies are not used and redirects not followed.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_RESPONSE_BYTES = 16 << 20


class NoAnswer(Exception):
    """The server did not answer: no connection, a dropped one, or not in time."""


@dataclass(frozen=True)
class Address:
    """Where a server listens; `path` as the URL has it, query included."""

    secure: bool
    host: str
    port: int | None
    path: str

    @classmethod
    def of(cls, url: str, example: str) -> Address:
        """
        Raises:
            ValueError: `url` is not an address of a server.
        """
        parts = urlsplit(url)
        try:
            well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # the port
            well_formed = False
        if not well_formed or not url.isascii() or any(character.isspace() for character in url):
            raise ValueError(f"{url!r} is no address of a server; give one such as {example}")
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        return cls(parts.scheme == "https", str(parts.hostname), parts.port, path)


@dataclass(frozen=True)
class Response:
    """What a server answered. Names in `headers` are in lower case."""

    status: int
    reason: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def too_long(self) -> bool:
        """True where `content` was cut off."""
        return len(self.content) > MAX_RESPONSE_BYTES


def post(
    address: Address, path: str, body: bytes, timeout: float, headers: Mapping[str, str] | None = None
) -> Response:
    """Send JSON and wait for the answer, `timeout` seconds at most, even if a byte arrives now and then.

    Raises:
        NoAnswer: there is none.
    """
    kind = http.client.HTTPSConnection if address.secure else http.client.HTTPConnection
    connection = kind(address.host, address.port, timeout=timeout)
    begun = time.monotonic()
    try:
        connection.connect()
        with _deadline(connection.sock, timeout - (time.monotonic() - begun)):
            connection.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            content = response.read(MAX_RESPONSE_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() - begun >= timeout:
            raise NoAnswer(f"no answer within {timeout:g} s") from error
        raise NoAnswer(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if time.monotonic() - begun >= timeout:  # cut off in the middle of a body of unknown length
        raise NoAnswer(f"no whole answer within {timeout:g} s")
    if response.length and len(content) <= MAX_RESPONSE_BYTES:  # what is still to come never came
        raise NoAnswer(f"the connection was dropped {response.length} bytes before the end of the answer")
    named = {name.lower(): value for name, value in response.getheaders()}
    return Response(response.status, response.reason, named, content)


@contextlib.contextmanager
def _deadline(connected: socket.socket, seconds: float) -> Iterator[None]:
    """Cut the connection after `seconds`, whatever is waited for (a socket's own timeout is per wait)."""

    def cut() -> None:
        with contextlib.suppress(OSError):  # it is closed already
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, seconds), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
