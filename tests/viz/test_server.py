"""The live page's server: what it answers, to whom, and what it does not."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import elpo
from elpo.training.run_folder import RunFolder, RunFolderError
from elpo.viz.server import report_server
from tests.viz.runs import scripted_run

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return scripted_run(tmp_path_factory.mktemp("served") / "run", steps=2, trees=1)


@pytest.fixture(scope="module")
def port(run: RunFolder) -> Iterator[int]:
    with report_server([run.path]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(port: int, path: str, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(
        "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_page_and_documents(port: int, run: RunFolder) -> None:
    status, headers, body = get(port, "/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert b"connect-src 'self'" in body and b"data-name" not in body.partition(b"<script>")[0]
    status, headers, body = get(port, "/data/index", Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    index = json.loads(gzip.decompress(body))
    assert index["runs"][0]["name"] == "run"
    for tree in index["trees"]:
        status, _, body = get(port, f"/data/{tree['key']}")
        assert status == 200 and json.loads(body)["problem"]["id"] == tree["problem"]


def test_what_has_not_changed_is_not_sent_again(port: int, run: RunFolder) -> None:
    _, headers, _ = get(port, "/data/index")
    status, _, body = get(port, "/data/index", If_None_Match=headers["ETag"])
    assert (status, body) == (304, b"")
    run.append_metrics("rl", 3, {"rollouts/total": 4.0})
    status, _, body = get(port, "/data/index", If_None_Match=headers["ETag"])
    assert status == 200 and json.loads(body)["runs"][0]["metrics"]["rl"]["step"] == [1, 2, 3]


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"/data/{key}"
            for key in ("0-rl-1-99", "0-rl-7-0", "1-rl-1-0", "-1-rl-1-0", "0-rl-1--1", "0-sft-1-0")
        ),
        *(
            "/data/x",
            "/data/",
            "/config.yaml",
            "/data/../config.yaml",
            "/data/%2e%2e%2fconfig.yaml",
            "//data/x",
        ),
    ],
)
def test_nothing_else_is_served(port: int, path: str) -> None:
    status, headers, body = get(port, path)
    assert status == 404 and headers["Content-Type"].startswith("text/plain")
    assert b"hidden_size" not in body


def test_other_sites_cannot_reach_it_by_a_name_of_theirs(port: int) -> None:
    for host, status in {
        "127.0.0.1": 200,
        "localhost:1": 200,
        "[::1]:1": 200,
        "evil.example": 403,
        "": 403,
    }.items():
        assert get(port, "/data/index", Host=host)[0] == status, host


def test_a_damaged_file_is_said_and_the_server_goes_on(tmp_path: Path) -> None:
    folder = scripted_run(tmp_path / "run", steps=1, trees=1)
    with report_server([folder.path]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            good = folder.trees_file(1).read_bytes()
            folder.trees_file(1).write_bytes(good[:100])
            status, _, body = get(server.server_address[1], "/data/index")
            assert status == 404 and b"is damaged" in body
            folder.trees_file(1).write_bytes(good)
            assert get(server.server_address[1], "/data/index")[0] == 200
        finally:
            server.shutdown()
            thread.join()


def test_mistakes_are_named(run: RunFolder, port: int, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="there is no run"):
        report_server([tmp_path])
    with pytest.raises(ValueError, match=r"cannot listen on 127\.0\.0\.1 port 99999.*--port"):
        report_server([run.path], port=99999)
    with pytest.raises(ValueError, match=f"port {port}.*choose another --port"):
        report_server([run.path], port=port)


def test_the_command_serves_until_it_is_interrupted(run: RunFolder) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(elpo.__file__).parents[1])}
    command = [sys.executable, "-m", "elpo.cli", "serve", str(run.path), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        try:
            line = server.stdout.readline()
            port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
            assert get(port, "/")[0] == 200
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 130
            assert server.stderr.read() == "interrupted\n"
        finally:
            server.kill()
