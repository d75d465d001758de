"""One connection to a server that speaks HTTP/1.1: bytes are read straight into given memory.

``http.client`` took 0.25 ms of the interpreter for each small object and a copy of each byte; with
one lock for all threads that, not the network, was what a download waited for.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

TICK_SECONDS = 0.5
"""How often a thread that waits for bytes looks up."""
_HEADERS = re.compile(r"\r\n([^:\r\n]*):[ \t]*([^\r\n]*)")
_SEND_BYTES = 1 << 18
_HEAD_BYTES = 1 << 15
_MAX_HEAD_BYTES = 1 << 18


class Broken(Exception):
    """An exchange broke; it may work if it is tried once more."""


class Stalled(Broken):
    """Nothing moved for long."""


class Stopped(Exception):
    """Whoever waits was asked to stop."""


class Lost(Exception):
    """An answer that is better asked for once more, on a new connection or a kept one."""

    def __init__(self, *, kept: bool) -> None:
        super().__init__()
        self.kept = kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a server listens."""

    host: str
    port: int
    url: str
    """For messages."""
    tls: bool
    proxy: tuple[str, int, str] | None = None
    """Host, port and the value of ``Proxy-Authorization`` of what is asked to connect."""

    @property
    def key(self) -> tuple[str, int, bool]:
        """What tells places apart."""
        return self.host, self.port, self.tls


class Connection:
    """One connection; used by one thread at a time."""

    def __init__(self, place: Place, sock: socket.socket, stall_seconds: float) -> None:
        self._place, self._socket, self._stall_seconds = place, sock, stall_seconds
        self._buffer = bytearray(_HEAD_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        # Not a system call for each segment that comes; TLS takes no flags.
        self._flags = 0 if place.tls else socket.MSG_WAITALL
        self.place = place
        self.stopped: Callable[[], bool] = lambda: False
        self.crowded: Callable[[], bool] = lambda: False
        """Asked now and then while nothing comes: whether to ask elsewhere."""
        self.sent_at = 0.0
        self.is_used = False
        self.idle_since = 0.0

    @property
    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it, whatever its state."""
        self._socket.close()

    def is_silent(self) -> bool:
        """Return whether nothing has come that was not read."""
        found = select.poll()
        found.register(self._socket, select.POLLIN)
        return not found.poll(0)

    def send(self, data: bytes | memoryview) -> None:
        """Send all of ``data``."""
        view = memoryview(data)
        began = self.sent_at = time.monotonic()
        while view:
            if self.stopped():
                raise Stopped
            try:
                count = self._socket.send(view[:_SEND_BYTES])  # TLS sends all or nothing
            except (BlockingIOError, TimeoutError):
                self._lose_patience(began)
                continue
            except OSError as error:
                raise Broken(reason(error)) from error
            view, began = view[count:], time.monotonic()

    def head(self) -> tuple[int, dict[str, str]]:
        """Read the status and the headers of an answer, names in lower case."""
        while True:
            while (end := self._buffer.find(b"\r\n\r\n", self._start, self._end)) < 0:
                self._fill()
            text = str(self._view[self._start : end], "latin-1")
            self._start = end + 4
            status = number(text[9:12])
            if not text.startswith("HTTP/1.") or status < 100:
                raise Broken("an answer that is not HTTP/1.1")
            if status >= 200:
                return status, {
                    name.lower(): value.rstrip() for name, value in _HEADERS.findall(text)
                }

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` with what came already, else with what comes next.

        No more than a tick is waited for the rest where something came.
        """
        if self._start == self._end:
            return self._receive(view, self._flags)
        count = min(len(view), self._end - self._start)
        view[:count] = self._view[self._start : self._start + count]
        self._start += count
        return count

    def readline(self) -> bytes:
        """Return a line without its end."""
        while (end := self._buffer.find(b"\n", self._start, self._end)) < 0:
            self._fill()
        line = bytes(self._view[self._start : end]).rstrip(b"\r")
        self._start = end + 1
        return line

    def _fill(self) -> None:
        """Receive more of a head or a line."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._buffer):
            if self._end - self._start >= _MAX_HEAD_BYTES:
                raise Broken("headers without an end")
            rest = bytes(self._view[self._start :])
            self._buffer = bytearray(max(2 * len(rest), _HEAD_BYTES))
            self._view = memoryview(self._buffer)
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        count = self._receive(self._view[self._end :])
        if not count:
            raise Broken("the server closed the connection")
        self._end += count

    def _receive(self, view: memoryview, flags: int = 0) -> int:
        began = 0.0
        while True:
            if self.stopped():
                raise Stopped
            try:
                return self._socket.recv_into(view, 0, flags)
            except (BlockingIOError, TimeoutError):
                began = began or time.monotonic() - TICK_SECONDS
                self._lose_patience(began)
            except OSError as error:
                raise Broken(reason(error)) from error

    def _lose_patience(self, began: float) -> None:
        if self.stopped():
            raise Stopped
        waited = time.monotonic() - began
        if self.crowded():
            raise Lost(kept=True)
        if waited >= self._stall_seconds:
            raise Stalled(f"nothing moved for {self._stall_seconds:g} s")


def number(text: str) -> int:
    """Return a decimal number of an answer; raises Broken where it is none."""
    if text.isascii() and text.isdigit():
        return int(text)
    raise Broken(f"{text[:40]!r} where a number belongs")


def reason(error: Exception) -> str:
    """Return why something failed, as a phrase."""
    code = getattr(error, "errno", None)
    if isinstance(code, int) and code > 0 and type(error).__module__ == "builtins":
        return os.strerror(code)
    return " ".join(str(error).split()) or type(error).__name__
