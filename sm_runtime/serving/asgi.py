"""HTTP as uvicorn speaks it, with the limits that it lacks: time and size of headers, bodies.

``Bodies`` and ``send_answer`` are what the rest of the server sees of ASGI.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import math
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sm_runtime.serving.values import Answer, RequestError

HEADER_SECONDS = 30.0
"""How long a client may take for the headers of a request."""
HEADER_BYTES = 2**16
READ_AHEAD_BYTES = 2**20
"""How much of a body may wait to be taken before its client is held back."""
BODY_SECONDS = 60.0
"""How long a body may stand still, and how long it may take beside a second for each 128 KiB."""
_BYTES_PER_SECOND = 2**17
SO_ATTACH_FILTER = 26
"""Of Linux; Python has no name for it. See socket(7)."""
SETTLE_SECONDS = 0.1
"""How long connections that have begun may take to be accepted."""
KEEP_ALIVE_SECONDS = 75
"""How long a connection may be idle: nginx's time, which clients' pools expect."""
BUFFERED_BYTES = 2**30
"""How much of bodies may be held at a time, beside one of the largest."""
_NAME = re.compile("[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS = ("content-length", "transfer-encoding", "connection")


class Protocol(HttpToolsProtocol):
    """One connection; a client that does not end its headers is given up."""

    _deadline: asyncio.TimerHandle | None = None
    _header_bytes = 0
    """What came since headers began that are not complete yet, or since the last part of a body."""
    _in_headers = False
    _headers_size = 0
    """The names and values that were parsed."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(_Gathered(transport, self.loop))  # type: ignore[arg-type]
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def connection_lost(self, error: Exception | None) -> None:
        """Wait no longer."""
        self._heard()
        super().connection_lost(error)
        # uvicorn 0.54 leaves it running after a reset, and with it all of the connection in memory.
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Take what came; what is not yet a whole header is counted."""
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_slow)
            self._header_bytes = self._header_bytes if self._in_headers else 0
        self._header_bytes += len(data)
        super().data_received(data)
        if self._header_bytes <= HEADER_BYTES or self.transport.is_closing():
            return
        if self._deadline is not None:
            self._refuse(431, f"the headers are longer than {HEADER_BYTES} bytes")
        elif self._in_headers:  # refused when the request before them is answered
            self.flow.pause_reading()
        elif self.cycle is not None and self.cycle.more_body:
            self._refuse(
                431, f"what is between parts of the body is longer than {HEADER_BYTES} bytes"
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the headers, which may come in one piece."""
        self._headers_size += len(name) + len(value) + 4
        if self._headers_size > HEADER_BYTES:
            raise ValueError("the headers are too long")
        super().on_header(name, value)

    def on_message_begin(self) -> None:
        """Count anew."""
        self._headers_size = self._header_bytes = 0
        self._in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop the clock; the body has one of its own."""
        self._heard()
        self._in_headers = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body; uvicorn would stop reading at 64 KiB, and start anew each time."""
        self._header_bytes = 0
        if not self.cycle.response_complete:
            self.cycle.body += body
            if len(self.cycle.body) > READ_AHEAD_BYTES:
                self.flow.pause_reading()
            self.cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as all other errors are."""
        if self._headers_size > HEADER_BYTES:
            self._refuse(431, f"the headers are longer than {HEADER_BYTES} bytes")
        else:
            self._refuse(400, "this is not an HTTP request")

    def _heard(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline, self._header_bytes = None, 0

    def _too_slow(self) -> None:
        self._deadline = None
        if self._in_headers and not self.transport.is_closing():
            self._refuse(408, f"the headers were not complete in {HEADER_SECONDS:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\nconnection: close\r\ncontent-length: "
            + str(len(body)).encode()
            + b"\r\n\r\n"
            + body
        )
        self.transport.close()


class _Gathered:
    """A transport that sends at once what is written in one turn of the loop.

    uvicorn writes headers and body one by one, and each costs a system call.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._unsent: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send ``data``, with what follows it."""
        if len(data) >= 2**16:  # not copied
            self._send()
            self._transport.write(data)
            return
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(data)

    def close(self) -> None:
        """Close the connection once all is sent."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            self._transport.write(b"".join(unsent))


class Server(uvicorn.Server):
    """A server on sockets that are open already; signals are not its business."""

    def __init__(self, app: Any, sockets: list[socket.socket]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=2048,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        self.sockets = sockets

    def capture_signals(self) -> Any:
        """Leave signals alone."""
        return contextlib.nullcontext()

    async def run_until_closed(self) -> None:
        """Answer connections until ``should_exit`` is set."""
        await self.serve(self.sockets)

    async def close_listeners(self) -> None:
        """Take the connections that clients have begun, then listen no longer.

        To close alone would reset those that the kernel has accepted and we have not; so it is told
        to begin no others, first. The last socket stays: handlers of requests under way may ask
        there.
        """
        for listener in self.sockets[:-1]:
            with contextlib.suppress(OSError):  # a sandbox may have no filters
                _drop_new_connections(listener)
        await asyncio.sleep(SETTLE_SECONDS)
        for server in self.servers[:-1]:
            server.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return not self.server_state.tasks


def _drop_new_connections(listener: socket.socket) -> None:
    """Have the kernel drop what would begin a connection: packets with SYN, of TCP's flags."""
    load, skip_unless, answer = 0x30, 0x45, 0x06  # BPF_LD+B+ABS, BPF_JMP+JSET, BPF_RET
    program = ((load, 0, 0, 13), (skip_unless, 0, 1, 2), (answer, 0, 0, 0), (answer, 0, 0, 2**18))
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    filter_ = struct.pack("HL", len(program), ctypes.addressof(buffer))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)


class _Pace:
    """Cancels the task that receives a body where it stands still, or comes too slowly.

    Not a task of its own: most bodies are there already.
    """

    def __init__(self, receive: Any) -> None:
        self.is_kept = True
        self._receive, self._task = receive, asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._began = self._heard = self._loop.time()
        self._size = 0
        self._timer = self._loop.call_at(self._end, self._look)

    @property
    def text(self) -> str:
        """What came, and in which time."""
        return f"{self._size} bytes in {self._loop.time() - self._began:.0f} s"

    async def receive(self) -> Any:
        """Return the next message."""
        message = await self._receive()
        self._heard = self._loop.time()
        self._size += len(message.get("body", b""))
        return message

    def stop(self) -> None:
        """Look no longer."""
        self._timer.cancel()

    @property
    def _end(self) -> float:
        return min(self._heard, self._began + self._size / _BYTES_PER_SECOND) + BODY_SECONDS

    def _look(self) -> None:
        if self._loop.time() < self._end:
            self._timer = self._loop.call_at(self._end, self._look)
        elif self._task is not None:
            self.is_kept = False
            self._task.cancel()


class Bodies:
    """The bodies that are received or wait: how long each may be, and all of them together."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._held = 0
        self._most = max(BUFFERED_BYTES, 2 * (limit or 0)) if limit is not None else math.inf

    @contextlib.contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Count a body that was read until it is answered."""
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    async def read(self, scope: Any, receive: Any) -> bytes | memoryview:
        """Return the body of a request.

        Raises RequestError: 413 where it is too long, 408 where it comes too slowly, 503 where too
        much is being received, 400 where the client has gone.
        """
        length = _length(scope)
        try:
            self._check(length or 0)
            self._check_held(length or 0)
        except RequestError:
            if not _has(scope, b"expect"):  # a client that asks first has not begun to send
                await self._discard(receive)
            raise
        pace = _Pace(receive)
        try:
            return await self._read(pace.receive)
        except asyncio.CancelledError:
            if pace.is_kept:
                raise
            raise RequestError(f"the body came too slowly: {pace.text}", 408) from None
        finally:
            pace.stop()

    async def _read(self, receive: Any) -> bytes | memoryview:
        message = await receive()
        body: bytes = message.get("body", b"")
        if message["type"] == "http.request" and not message["more_body"]:
            self._check(len(body))
            self._check_held(len(body))
            return body
        whole, size = bytearray(body), len(body)
        self._held += size
        try:
            while message["type"] == "http.request" and message["more_body"]:
                self._check(size)
                self._check_held(0)
                message = await receive()
                body = message.get("body", b"")
                whole += body
                size += len(body)
                self._held += len(body)
            if message["type"] != "http.request":
                raise RequestError("the client has gone before the end of its request", 400)
            self._check(size)
            self._check_held(0)
            return memoryview(whole)  # not copied once more
        except RequestError as error:
            if error.status in (413, 503):
                whole.clear()
                self._held, size = self._held - size, 0
                await self._discard(receive)
            raise
        finally:
            self._held -= size

    def _check(self, length: int) -> None:
        if self.limit is not None and length > self.limit:
            raise RequestError(
                f"the body has {length} bytes or more, and {self.limit} are allowed"
                " (SAGEMAKER_MAX_PAYLOAD_IN_MB)",
                413,
            )

    def _check_held(self, more: int) -> None:
        if self._held + more > self._most:
            raise RequestError("too many large requests at a time", 503)

    async def _discard(self, receive: Any) -> None:
        """Read on for a while: clients that are still sending do not look for an answer."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._drain(receive), BODY_SECONDS / 6)

    async def _drain(self, receive: Any) -> None:
        while True:
            message = await receive()
            if message["type"] != "http.request" or not message["more_body"]:
                return


def has_body(scope: Any) -> bool:
    """Return whether a request has a body, read or not."""
    return _has(scope, b"transfer-encoding") or bool(_length(scope))


def _has(scope: Any, wanted: bytes) -> bool:
    return any(name == wanted for name, _ in scope["headers"])


def _length(scope: Any) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return None


async def send_answer(scope: Any, send: Any, answer: Answer, *, close: bool = False) -> None:
    """Send ``answer``; ``close``: the connection takes no further request."""
    status, body = answer.status, answer.body
    if not 200 <= status < 600:
        status, body = 500, json.dumps({"error": f"the answer has the status {status}"}).encode()
    if status in (204, 304):
        body = b""
    headers = [] if status in (204, 304) else [(b"content-length", str(len(body)).encode())]
    for name, value in answer.headers.items():
        if _NAME.fullmatch(name) and name not in _OWN_HEADERS:
            headers.append((name.encode("latin-1"), _header_value(value)))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _header_value(value: str) -> bytes:
    """Return a header's value, characters that would end it left out."""
    if not value.isprintable():
        value = "".join(char for char in value if char >= " " and char != "\x7f")
    return value.encode("latin-1", "replace")
