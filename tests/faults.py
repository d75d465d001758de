"""A proxy in front of a real S3 server that does to answers what networks and stores do to them."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

PIECE = 1 << 16
Readable = http.client.HTTPResponse | io.BytesIO


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asked for; ``number`` counts the requests that look alike from 1."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    number: int

    @property
    def is_object(self) -> bool:
        """Whether the content of an object is wanted."""
        return (
            self.method == "GET" and self.path.count("/") > 1 and bool(self.path.split("/", 2)[2])
        )


Plan = Callable[[Request], str | None]
"""Says what is done to an answer, by the name of a method of ``_Handler``; None: nothing."""


@dataclass
class Proxy:
    """What a proxy does, and has seen."""

    plan: Plan
    url: str = ""
    sent_bytes: int = 0
    """Of the bodies of answers."""
    requests: list[Request] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What was done, in order."""
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def seen(self, fault: str) -> int:
        """Return how often something was done."""
        with self.lock:
            return self.faults.count(fault)


def every(number: int, fault: str, *, only: str = "") -> Plan:
    """Do something to every ``number``-th object whose path holds ``only``."""
    count = 0
    lock = threading.Lock()

    def plan(request: Request) -> str | None:
        nonlocal count
        if not request.is_object or only not in request.path:
            return None
        with lock:
            count += 1
            return fault if count % number == 0 else None

    return plan


def first(times: int, fault: str, *, only: str = "") -> Plan:
    """Do something to the first requests for an object whose path holds ``only``."""
    left = times
    lock = threading.Lock()

    def plan(request: Request) -> str | None:
        nonlocal left
        if not request.is_object or only not in request.path:
            return None
        with lock:
            left -= 1
            return fault if left >= 0 else None

    return plan


def always(fault: str, *, only: str = "") -> Plan:
    """Do something to each request for an object whose path holds ``only``."""
    return lambda request: fault if request.is_object and only in request.path else None


@contextmanager
def proxying(upstream: str, plan: Plan) -> Iterator[Proxy]:
    """Answer for the server at ``upstream`` until the block ends."""
    proxy = Proxy(plan)
    open_sockets: set[socket.socket] = set()

    class Handler(_Handler):
        def setup(self) -> None:
            self.proxy, self.upstream = proxy, urlsplit(upstream).netloc
            open_sockets.add(self.request)
            super().setup()

        def finish(self) -> None:
            with contextlib.suppress(OSError):
                super().finish()
            open_sockets.discard(self.request)

    class Server(ThreadingHTTPServer):
        daemon_threads = False
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """Say nothing: clients that go away are what is tested."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        server.shutdown()
        for one in list(open_sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy
    upstream: str

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the client has gone, and the server would wait for the rest
            self.close_connection = True
            return
        with self.proxy.lock:
            alike = sum(r.path == path and r.method == self.command for r in self.proxy.requests)
            request = Request(
                method=self.command, path=unquote(path), query=query, number=alike + 1,
                headers={name.lower(): value for name, value in self.headers.items()},
            )  # fmt: skip
            self.proxy.requests.append(request)
        fault = self.proxy.plan(request)
        with self.proxy.lock:
            self.proxy.faults += [fault] if fault else []
        if fault in _ANSWERS:
            self._answer(*_ANSWERS[fault])
            return
        if fault == "mute":
            self.proxy.ended.wait(60)
            self.close_connection = True
            return
        if fault == "slow":
            self.proxy.ended.wait(1)
        headers = dict(self.headers.items())
        if fault == "whole":
            headers = {n: v for n, v in headers.items() if n.lower() != "range"}
        line = http.client.HTTPConnection(self.upstream, timeout=60)
        with contextlib.closing(line):
            line.request(self.command, self.path, body, headers)
            self._forward(line.getresponse(), fault)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def _answer(self, status: int, code: str, *headers: tuple[str, str]) -> None:
        body = f"<Error><Code>{code}</Code><Message>of a test</Message></Error>".encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _forward(self, answer: http.client.HTTPResponse, fault: str | None) -> None:
        length = int(answer.headers.get("content-length") or 0)
        stream: Readable = answer
        if answer.chunked:  # a listing of some length
            data = answer.read()
            stream, length = io.BytesIO(data), len(data)
        if fault == "short":
            length //= 2
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() == "etag" and fault == "changed":
                value = '"0123456789abcdef0123456789abcdef-2"'
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self._body(stream, length, fault)

    def _body(self, answer: Readable, length: int, fault: str | None) -> None:
        left = length // 2 if fault in ("cut", "stall") else length
        while left:
            piece = answer.read(min(PIECE, left))
            if not piece:
                break
            left -= len(piece)
            with self.proxy.lock:
                self.proxy.sent_bytes += len(piece)
            self.wfile.write(piece)
        if fault == "stall":
            self.proxy.ended.wait(60)
        if fault in ("cut", "stall"):
            self.close_connection = True


_ANSWERS: dict[str, tuple[int, str] | tuple[int, str, tuple[str, str]]] = {
    "busy": (503, "SlowDown"),
    "broken": (500, "InternalError"),
    "expired": (403, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
    "gone": (404, "NoSuchKey"),
    "elsewhere": (301, "PermanentRedirect", ("x-amz-bucket-region", "eu-central-1")),
    "constrained": (
        400,
        "IllegalLocationConstraintException",
        ("x-amz-bucket-region", "eu-central-1"),
    ),
}
