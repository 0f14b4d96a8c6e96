"""`elpo serve`: the report page of a run that is still being written.

Plain HTTP for one person's browser: `/` is the page, `/data/index` and `/data/KEY` its documents, made from
the files as they are at that moment. There is no password. What is served can read a run's problems and the
model's text, so the server listens on this machine only unless told otherwise, and answers only requests that
were addressed to it: a foreign page cannot reach it by giving its own name this machine's address.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import ipaddress
import json
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from elpo.training.run_folder import RunFolderError
from elpo.viz.report import page
from elpo.viz.run_data import RunData


def report_server(runs: Sequence[str | Path], host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server of the report of `runs`, listening; call `serve_forever` on it, close it with `with`.

    Args:
        runs: run folders; a run may have just begun, but its config.yaml must be there.
        host: address to listen on.
        port: 0 for a free one, then found in `server_address`.

    Raises:
        RunFolderError: a folder holds no run.
        ValueError: the address cannot be listened on.
    """
    data = RunData(runs)
    title = ", ".join(folder.path.absolute().name for folder in data.folders)

    class Handler(_Handler):
        documents = _Documents(data, page(title).encode())

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen on {host} port {port}: {error}; choose another --port") from error


class _Documents:
    """The answers, by path. One at a time: reading a run is work, and its caches are not for threads."""

    def __init__(self, data: RunData, html: bytes) -> None:
        self._data = data
        self._html = html
        self._lock = threading.Lock()

    def find(self, path: str) -> tuple[str, bytes]:
        """Media type and body.

        Raises:
            RunFolderError: there is no such document.
        """
        if path == "/":
            return "text/html; charset=utf-8", self._html
        folder, _, name = path.lstrip("/").partition("/")
        if folder != "data":
            raise RunFolderError(f"there is no page {path}")
        with self._lock:
            found: Any = self._data.index() if name == "index" else self._data.tree(name)
        return "application/json", json.dumps(found, allow_nan=False).encode()


class _Handler(BaseHTTPRequestHandler):
    documents: _Documents
    server_version = "elpo"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        """Answer with a document, or with 304 where the browser has it already."""
        if not _is_own(self.headers.get("Host", "")):
            return self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"use this machine's address, not a name")
        try:
            kind, body = self.documents.find(unquote(urlsplit(self.path).path))
        except (RunFolderError, OSError) as error:
            return self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", str(error).encode())
        stamp = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        if self.headers.get("If-None-Match") == stamp:
            return self._answer(HTTPStatus.NOT_MODIFIED, kind, b"", stamp)
        return self._answer(HTTPStatus.OK, kind, body, stamp)

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, stamp: str = "") -> None:
        packed = len(body) > 1000 and "gzip" in self.headers.get("Accept-Encoding", "")
        if packed:
            body = gzip.compress(body, 1)
        self.send_response(status)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
        if packed:
            self.send_header("Content-Encoding", "gzip")
        if stamp:
            self.send_header("ETag", stamp)
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the browser went elsewhere
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the page asks every two seconds."""


def _is_own(host: str) -> bool:
    """Whether a request's Host is an address or localhost, not a name somebody else may have made up."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True
