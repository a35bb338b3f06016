"""`isthmus serve --replicas`: the app on Ray Serve answers like a single process, whichever replica is asked."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from corpora import picture
from serving_tools import make_table
from starlette.testclient import TestClient

from jobs.serve import ServeConfig, make_app, ray_application

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("shared_ray"), pytest.mark.timeout(180)]
TOKEN, STORE_SECRET = "sesame-of-the-test", "secret-key-of-the-test"
ASKED = "words that somebody searched for"
JSON = {"Content-Type": "application/json"}
QUERIES: list[dict[str, Any]] = [
    {"words": "red thing", "k": 10},
    {"like": ["r'7"], "not_words": ["green"], "k": 5},
    {"words": "thing 33", "hybrid": True, "k": 5},
    {"words": "thing", "filters": [{"column": "shop", "value": "it's"}], "k": 60},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replicas")
    make_table(folder)
    return folder


def command(folder: Path, *options: str) -> list[str]:
    served = [sys.executable, "-m", "jobs.cli", "serve", str(folder / "db" / "t")]
    return [*served, "--replicas", "2", "--cpus-per-replica", "0.5", *options]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of two replicas. When interrupted, they leave nothing behind, and the command succeeds."""
    environment = os.environ | {"ISTHMUS_TOKEN": TOKEN, "AWS_SECRET_ACCESS_KEY": STORE_SECRET}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command(folder, "--port", "0"), stderr=log, env=environment)
    try:
        yield address(process, folder / "log")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, (folder / "log").read_text()
        assert not replicas()


def address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 90
    while not (found := re.search(r"http://\S+", log.read_text().replace("\n", ""))):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found[0].rstrip("/")


def replicas(name: str = "isthmus:App") -> set[int]:
    """The processes of a deployment's replicas on the session's Ray."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if " ".join(child.cmdline()).startswith(f"ray::ServeReplica:{name}"):
                found.add(child.pid)
        except psutil.Error:
            pass
    return found


def ask(
    server: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """The status and the body of a response; the request shows the token unless headers say otherwise."""
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
    try:
        shown = {"Authorization": f"Bearer {TOKEN}"} if headers is None or headers is JSON else {}
        connection.request(method, path, body, shown | (headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def search(server: str, query: dict[str, Any]) -> dict[str, Any]:
    status, data = ask(server, "POST", "/api/search", json.dumps({"table": "t", **query}).encode(), JSON)
    assert status == 200, data
    return dict(json.loads(data))


def test_replicas_answer_as_one_process_does(server: str, folder: Path) -> None:
    assert len(replicas()) == 2
    app = make_app(ServeConfig(tables=[str(folder / "db" / "t")]))
    with TestClient(app, base_url="http://localhost") as alone:
        for query in QUERIES:
            expected = alone.post("/api/search", json={"table": "t", **query}).json()["hits"]
            assert expected
            for _ in range(4):
                assert search(server, query)["hits"] == expected
        for path in (
            "/",
            "/static/app.js",
            "/static/style.css",
            "/api/tables",
            "/docs",
            "/api/tables/t/picture?row=r'0",
        ):
            assert ask(server, "GET", path) == (200, alone.get(path).content)
    assert ask(server, "GET", "/static/../app.py")[0] == 404


def test_the_gate_the_names_and_the_limits_hold_behind_the_proxy(server: str) -> None:
    for path in ("/", "/api/tables", "/static/app.js", "/docs", "/openapi.json"):
        assert ask(server, "GET", path, headers={})[0] == 401
        assert ask(server, "GET", path, headers={"Authorization": "Bearer wrong"})[0] == 401
    assert ask(server, "GET", f"/?token={TOKEN}&q=x", headers={})[0] == 303
    assert ask(server, "GET", "/", headers={"Host": "evil.example", "Authorization": f"Bearer {TOKEN}"})[0] == 400
    assert ask(server, "POST", "/api/pictures", b"x" * (13 << 20))[0] == 413
    assert ask(server, "POST", "/api/pictures", b"no picture")[0] == 400
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
    connection.request("GET", "/", headers={"Authorization": f"Bearer {TOKEN}"})
    headers = connection.getresponse().headers
    connection.close()
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_proxy_listens_where_it_was_told_alone(server: str) -> None:
    port = urlsplit(server).port
    every = [*psutil.Process().children(recursive=True)]
    listening = {c.laddr.ip for process in every for c in connections(process) if c.laddr.port == port}
    assert listening == {"127.0.0.1"}


def connections(process: psutil.Process) -> list[Any]:
    try:
        return [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []


def test_a_picture_is_found_by_replicas_that_never_saw_it_and_killed_ones_are_replaced(server: str) -> None:
    status, data = ask(server, "POST", "/api/pictures", picture(7))
    assert status == 201
    query = {"images": [json.loads(data)["id"]], "k": 1}

    def first(_: int) -> str:
        return str(search(server, query)["hits"][0]["row_id"])

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(first, range(40))) == {"r'7"}
    born = replicas()
    for pid in born:
        before = replicas()
        os.kill(pid, signal.SIGKILL)
        # No request was in flight, so none is lost.
        for _ in range(20):
            assert first(0) == "r'7"
        wait_for(lambda before=before: len(replicas() - before) == 1 and len(replicas()) == 2, "a replica is replaced")
    assert not replicas() & born
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(first, range(40))) == {"r'7"}, "by replicas to which nobody brought it"


def test_a_store_that_dies_loses_what_it_held_and_takes_pictures_again(server: str) -> None:
    (store,) = replicas("isthmus:Pictures")
    os.kill(store, signal.SIGKILL)
    answers = []

    def is_taken() -> bool:
        answers.append(ask(server, "POST", "/api/pictures", picture(8)))
        assert answers[-1][0] in (201, 502), answers
        return answers[-1][0] == 201

    wait_for(is_taken, "another store takes its place")
    digest = json.loads(answers[-1][1])["id"]
    assert search(server, {"images": [digest], "k": 1})["hits"][0]["row_id"] == "r'8"
    status, data = ask(server, "POST", "/api/search", json.dumps({"table": "t", "images": ["0" * 32]}).encode(), JSON)
    assert (status, b"bring it again" in data) == (400, True)


def wait_for(met: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline, f"not within a minute: {what}"
        time.sleep(0.2)


def test_a_second_server_of_one_cluster_is_refused(server: str, folder: Path) -> None:
    """Serve would let the second command replace the first, or silently listen at the first one's address."""
    for options, message in (
        (["--port", "1"], "Ray Serve already listens at 127.0.0.1:"),
        (["--port", str(urlsplit(server).port)], "already serves an application 'isthmus'"),
    ):
        done = subprocess.run(command(folder, *options), capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 1
        assert message in done.stderr
    assert search(server, QUERIES[0])["hits"], "the first one is still there"


def test_others_are_not_served_without_a_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISTHMUS_TOKEN", raising=False)
    done = subprocess.run(command(folder, "--host", "0.0.0.0"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "set ISTHMUS_TOKEN to a secret, or listen on 127.0.0.1" in done.stderr
    with pytest.raises(ValueError, match="a cluster's proxy: others could search these tables; set ISTHMUS_TOKEN"):
        ray_application({"tables": str(folder / "db" / "t")})


def test_what_keeps_a_replica_from_starting_is_said(server: str, folder: Path) -> None:
    """The command must report what it can check itself before Ray starts."""
    done = subprocess.run(
        [*command(folder), "--port", "0", "--pictures", "http://host/"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "scheme 'http' is not supported" in done.stderr) == (1, True)
    missing = [sys.executable, "-m", "jobs.cli", "serve", str(folder / "db" / "nothing"), "--replicas", "2"]
    done = subprocess.run(missing, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "nothing" in done.stderr


def test_no_log_of_ray_holds_a_secret_or_what_was_searched(server: str) -> None:
    import ray

    ask(server, "GET", f"/?token={TOKEN}&q={ASKED.replace(' ', '+')}", headers={})
    search(server, {"words": ASKED})
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    read = [path for path in logs.rglob("*") if path.is_file()]
    assert any("serve" in path.parts for path in read), "Serve's own logs are among them"
    for path in read:
        text = path.read_bytes()
        for secret in (TOKEN, STORE_SECRET, ASKED, ASKED.replace(" ", "+")):
            assert secret.encode() not in text, path
