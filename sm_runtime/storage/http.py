"""HTTP/1.1 for object storage: answers, and the connections that are kept for the next request."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from sm_runtime.storage.line import (
    TICK_SECONDS,
    Broken,
    Connection,
    Place,
    number,
    reason,
)

if TYPE_CHECKING:
    import ssl

_CONNECT_SECONDS = 10
_CROWDED_SECONDS = 5.0
_IDLE_SECONDS = 8.0  # servers close what is idle for longer, S3 after some 20 s
_MAX_TEXT_BYTES = 1 << 24
_BODILESS = (204, 304)


class Response:
    """The answer to one request; the connection is free for the next when its block ends."""

    def __init__(
        self, pool: Pool, line: Connection, status: int, headers: dict[str, str], *,
        bodiless: bool, keep: bool = True,
    ) -> None:  # fmt: skip
        self.status, self.headers = status, headers
        self._pool, self._line = pool, line
        self._chunked = headers.get("transfer-encoding", "").lower().endswith("chunked")
        self._left: int | None = None  # of the body, or of a chunk; None: until the end
        self._first = True
        self._keep = keep and headers.get("connection", "").lower() != "close"
        if bodiless or status in _BODILESS:
            self._left, self._chunked = 0, False
        elif self._chunked:
            self._left = 0
        elif "content-length" in headers:
            self._left = number(headers["content-length"])
        self._done = self._left == 0 and not self._chunked

    @property
    def length(self) -> int | None:
        """How many bytes are to come, where it is known."""
        return None if self._chunked else self._left

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view``; 0 is the end. Raises Broken where the body is cut."""
        if self._done:
            return 0
        if self._chunked and not self._left and not self._next_chunk():
            return 0
        left = self._left
        count = self._line.readinto(view if left is None or len(view) <= left else view[:left])
        if left is None:
            self._done, self._keep = not count, False
            return count
        if not count:
            raise Broken(f"the connection was closed {left} bytes early")
        self._left = left - count
        self._done = not self._left and not self._chunked
        return count

    def read(self) -> bytes:
        """Return all of a short body."""
        data, view = bytearray(), memoryview(bytearray(1 << 16))
        while count := self.readinto(view):
            data += view[:count]
            if len(data) > _MAX_TEXT_BYTES:
                raise Broken("an answer without an end")
        return bytes(data)

    def __enter__(self) -> Response:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._done and self._keep and kind is None:
            self._pool.take_back(self._line)
        else:
            self._line.close()

    def _next_chunk(self) -> bool:
        if not self._first:
            self._line.readline()  # what ends a chunk
        self._first = False
        try:
            self._left = int(self._line.readline().partition(b";")[0], 16)
        except ValueError:
            raise Broken("a chunk without a length") from None
        if not self._left:
            while self._line.readline():
                pass
            self._done = True
        return not self._done


class Pool:
    """The connections that wait for the next request. Used by any thread."""

    def __init__(self, stall_seconds: float, authorities: str | None = None) -> None:
        self._stall_seconds, self._authorities = stall_seconds, authorities
        self._idle: dict[tuple[str, int, bool], list[Connection]] = {}
        self._tls: ssl.SSLContext | None = None
        self._is_closed = False
        self._crowded_until = 0.0

    @property
    def is_crowded(self) -> bool:
        """Whether the server has let a new connection wait: no more are made than have to be."""
        return time.monotonic() < self._crowded_until

    def crowd(self) -> None:
        """Take note that a new connection waits; it may have been one slow answer."""
        self._crowded_until = time.monotonic() + _CROWDED_SECONDS

    def take_back(self, line: Connection) -> None:
        """Keep a connection for the next request."""
        line.is_used, line.idle_since = True, time.monotonic()
        line.stopped = line.crowded = never
        self._idle.setdefault(line.place.key, []).append(line)
        if self._is_closed:
            self.close()

    def close(self) -> None:
        """Close what is idle, and what is given back from now on."""
        self._is_closed = True
        for lines in list(self._idle.values()):
            while lines:
                lines.pop().close()

    def has_idle(self, place: Place) -> bool:
        """Return whether a connection waits for a request."""
        return bool(self._idle.get(place.key))

    def idle(self, place: Place) -> Connection | None:
        """Return a connection that waits for a request, if there is one."""
        lines = self._idle.get(place.key)
        while lines:
            try:
                line = lines.pop()
            except IndexError:  # another thread was faster
                return None
            if time.monotonic() - line.idle_since < _IDLE_SECONDS:
                return line
            line.close()
        return None

    def connect(self, place: Place, stopped: Callable[[], bool]) -> Connection:
        """Return a new connection."""
        target = place.proxy[:2] if place.proxy else (place.host, place.port)
        try:
            plain = socket.create_connection(target, _CONNECT_SECONDS)
        except (OSError, UnicodeError) as error:
            raise Broken(
                f"Could not connect to the endpoint URL {place.url}: {reason(error)}"
            ) from error
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if place.proxy and place.tls:
                self._tunnel(place, plain, stopped)
            if place.tls:
                return Connection(place, self._encrypted(place, plain), self._stall_seconds)
            # Not settimeout: with it each recv costs a poll as well.
            plain.settimeout(None)
            tick = struct.pack("ll", 0, int(TICK_SECONDS * 1e6))
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
            return Connection(place, plain, self._stall_seconds)
        except OSError as error:
            plain.close()
            raise Broken(f"{place.url}: {reason(error)}") from error
        except BaseException:
            plain.close()
            raise

    def _encrypted(self, place: Place, plain: socket.socket) -> socket.socket:
        import ssl

        try:
            if self._tls is None:
                self._tls = ssl.create_default_context(cafile=self._authorities)
            sock = self._tls.wrap_socket(plain, server_hostname=place.host)
        except (OSError, ValueError) as error:
            raise Broken(
                f"Could not connect to the endpoint URL {place.url}: {reason(error)}"
            ) from error
        sock.settimeout(TICK_SECONDS)
        return sock

    def _tunnel(self, place: Place, plain: socket.socket, stopped: Callable[[], bool]) -> None:
        host, port = place.host, place.port
        known = place.proxy[2] if place.proxy else ""
        known = f"Proxy-Authorization: {known}\r\n" if known else ""
        plain.settimeout(TICK_SECONDS)
        line = Connection(place, plain, self._stall_seconds)
        line.stopped = stopped
        line.send(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{known}\r\n".encode())
        status, _ = line.head()
        if status != 200:
            raise Broken(f"the proxy answers {status} for {place.url}")
        plain.settimeout(_CONNECT_SECONDS)


def content_range(headers: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the first byte and the size of the whole that ``Content-Range`` names."""
    kind, _, rest = headers.get("content-range", "").partition(" ")
    span, _, size = rest.partition("/")
    first = span.partition("-")[0]
    if kind != "bytes" or not first.isdigit() or not size.isdigit():
        return None
    return int(first), int(size)


def never() -> bool:
    """Return False."""
    return False
