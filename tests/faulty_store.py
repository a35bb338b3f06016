"""A faulty store: an HTTP proxy in front of an S3 server that throttles, stalls, resets, cuts short and refuses.

It forwards the Host header that the client signed, so that the server behind it can verify the signatures.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# The faults that a client may retry, and that a job must therefore survive.
TRANSIENT = (
    "slow_down", "internal_error", "stall", "reset_before", "reset_after", "reset_in_body", "short_body", "not_found",
)  # fmt: skip
REFUSALS = ("expired", "read_only")
STALL_S = 1.5
_ERRORS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "not_found": (404, "NoSuchKey", "The specified key does not exist."),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
    "read_only": (403, "AccessDenied", "Access Denied"),
}
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class FaultyStore:
    """What the proxy does to requests: the chance of each kind of fault, and the number of faults so far.

    Attributes:
        rates: chance per request of each kind of fault that can happen to it; tests change the rates as they go.
        faults: number of faults of each kind.
        requests: number of requests, by method.
    """

    def __init__(self, upstream: str, rates: dict[str, float], seed: int) -> None:
        unknown = set(rates) - {*TRANSIENT, *REFUSALS}
        assert not unknown, unknown
        self.upstream = urlsplit(upstream).netloc
        self.rates = dict(rates)
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.endpoint = ""
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._rule: _Rule | None = None

    def __str__(self) -> str:
        return f"{sum(self.requests.values())} requests, {dict(self.faults)}"

    def begin(self, kind: str, *, after: int = 0, path: str = "/", method: str = "", times: int | None = None) -> None:
        """Inject this fault into each request of the method with `path` in its path, after `after` of them succeeded.

        With `times` only that many requests fail, else all of them from then on.
        """
        with self._lock:
            self._rule = _Rule(kind, after, path, method, times)

    def choose(self, method: str, path: str) -> str | None:
        """The fault of a request; None for none."""
        with self._lock:
            self.requests[method] += 1
            if self._rule is not None and (kind := self._rule.choose(method, path)):
                self.faults[kind] += 1
                return kind
            for kind, rate in self.rates.items():
                if _can(kind, method, path) and self._rng.random() < rate:
                    self.faults[kind] += 1
                    return kind
        return None


@dataclass
class _Rule:
    """The faults that a test asked for, as opposed to random ones."""

    kind: str
    after: int
    path: str
    method: str
    times: int | None

    def choose(self, method: str, path: str) -> str | None:
        fits = self.path in path and method == (self.method or method)
        if self.times is None and self.after <= 0:
            return self.kind if _can(self.kind, method, path) else None
        if not fits or self.times == 0:
            return None
        if self.after > 0:
            self.after -= 1
            return None
        self.times = self.times and self.times - 1
        return self.kind


def _can(kind: str, method: str, path: str) -> bool:
    parts = urlsplit(path)
    is_object = parts.path.strip("/").count("/") > 0 and "list-type" not in parts.query
    if kind == "not_found":
        return method == "GET" and is_object
    if kind in ("reset_in_body", "short_body"):
        return method == "GET"
    if kind == "read_only":
        return method in ("PUT", "POST", "DELETE")
    return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: FaultyStore

    def _serve(self) -> None:
        fault = self.store.choose(self.command, self.path)
        body = self._body()
        if fault in _ERRORS:
            return self._refuse(*_ERRORS[fault])
        if fault == "stall":
            time.sleep(STALL_S)
        if fault in ("stall", "reset_before"):
            return self._reset()
        status, reason, headers, data = self._forward(body)
        if fault == "reset_after":
            return self._reset()
        size = len(data)
        if fault in ("reset_in_body", "short_body"):
            data = data[: size // 2]
        self._answer(status, reason, headers, data, size)
        if fault == "reset_in_body":
            self._reset()
        elif fault == "short_body":
            self.close_connection = True
        return None

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _forward(self, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        server = http.client.HTTPConnection(self.store.upstream, timeout=60)
        try:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in (*_HOP_HEADERS, "expect"):
                    server.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                server.putheader("Content-Length", str(len(body)))
            server.endheaders(body)
            answer = server.getresponse()
            data = answer.read()
            headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in _HOP_HEADERS]
            if self.command == "HEAD":
                headers.append(("Content-Length", answer.getheader("Content-Length") or "0"))
            return answer.status, answer.reason, headers, data
        finally:
            server.close()

    def _answer(self, status: int, reason: str, headers: list[tuple[str, str]], data: bytes, size: int) -> None:
        self.send_response_only(status, reason)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _refuse(self, status: int, code: str, message: str) -> None:
        xml = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        data = b"" if self.command == "HEAD" else xml.encode()
        self._answer(status, code, [("Content-Type", "application/xml")], data, len(data))

    def _reset(self) -> None:
        """End the connection with an RST; unsent data is lost."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Silent: the counts are more useful."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Silent: clients that went away and reset connections are expected."""


@contextmanager
def faulty(upstream: str, rates: dict[str, float] | None = None, *, seed: int = 0) -> Iterator[FaultyStore]:
    """A proxy in front of the S3 server at `upstream`; clients connect to its `endpoint`."""
    store = FaultyStore(upstream, rates or {}, seed)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    store.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
