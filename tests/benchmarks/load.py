"""Loads a server over connections that each ask again as soon as they are answered.

``wrk`` does it where it is installed, and costs next to nothing. Where each failure counts this
module does it itself, in a process of its own: sockets and a selector, no HTTP library, about
15 microseconds of a core for a request.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
LAST_SECONDS = 70.0
"""How long the last answers may take."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_SCRIPT = """
local file = io.open({body!r}, "rb")
wrk.method = "POST"
wrk.headers["Content-Type"] = {kind!r}
wrk.body = file:read("*a")
done = function(summary, latency)
    local failed = summary.errors
    io.write(string.format("RESULT %d %d %d %d %f %f\\n", summary.requests, summary.duration,
        failed.status, failed.connect + failed.read + failed.write + failed.timeout,
        latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What is sent to ``/invocations``; the answer is asked for in the same form."""

    kind: str
    """The content type."""
    data: bytes

    @property
    def request(self) -> bytes:
        """The whole request."""
        head = (
            f"POST /invocations HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: {self.kind}\r\n"
            f"accept: {self.kind}\r\ncontent-length: {len(self.data)}\r\n\r\n"
        )
        return head.encode() + self.data


@dataclass(slots=True, kw_only=True)
class Load:
    """What came of a load; times are those of ``time.monotonic``, which processes share."""

    seconds: float
    answers: int = 0
    """With status 200."""
    errors: dict[str, int] = field(default_factory=dict)
    """Other statuses, by the sentence of the answer."""
    broken: int = 0
    """Requests that were sent and not answered."""
    refused: int = 0
    """Connections that were not taken."""
    median: float = 0.0
    p99: float = 0.0
    gap: tuple[float, float] = (0.0, 0.0)
    """The longest time without an answer 200: from the last one before to the first one after."""

    @property
    def failed(self) -> int:
        return self.broken + sum(self.errors.values())


def with_wrk(port: int, body: Body, connections: int, seconds: int) -> Load:
    """Return what ``wrk`` measures, or this module where it is not installed."""
    if shutil.which("wrk") is None:
        return start(port, body, connections, seconds).result()
    with tempfile.TemporaryDirectory() as folder:
        data, script = Path(folder, "body"), Path(folder, "load.lua")
        data.write_bytes(body.data)
        accept = f'wrk.headers["Accept"] = {body.kind!r}\n'
        script.write_text(_SCRIPT.format(body=str(data), kind=body.kind) + accept)
        words = ("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s")
        url = f"http://{HOST}:{port}/invocations"
        done = subprocess.run(
            (*words, "-s", script, url), check=True, capture_output=True, text=True
        )
    numbers = [float(part) for part in done.stdout.rpartition("RESULT ")[2].split()]
    requests, duration, statuses, broken, median, p99 = numbers
    return Load(
        seconds=duration / 1e6,
        answers=int(requests - statuses),
        errors={"not 2xx": int(statuses)} if statuses else {},
        broken=int(broken),
        median=median / 1e6,
        p99=p99 / 1e6,
    )


class Started:
    """A load that another process makes."""

    def __init__(self, process: subprocess.Popen[str], body: Any) -> None:
        self._process, self._body = process, body

    def result(self) -> Load:
        """Wait for its end."""
        out, _ = self._process.communicate()
        self._body.close()
        if self._process.returncode:
            raise RuntimeError(f"the load generator ended with {self._process.returncode}")
        return Load(**json.loads(out))


def start(port: int, body: Body, connections: int, seconds: float) -> Started:
    """Begin to load a server from another process, until ``seconds`` are over or it is gone."""
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115  (closed with the process)
    file.write(body.request)
    file.flush()
    words = (file.name, str(port), str(connections), str(seconds))
    process = subprocess.Popen(
        (sys.executable, "-m", "tests.benchmarks.load", *words), stdout=subprocess.PIPE, text=True
    )
    return Started(process, file)


class _Client:
    """One process's connections."""

    def __init__(self, port: int, request: bytes, seconds: float) -> None:
        self._port, self._request = port, request
        self._selector = selectors.DefaultSelector()
        self._times: list[float] = []
        self._errors: Counter[str] = Counter()
        self._began = self._last = time.monotonic()
        self._end = self._began + seconds
        self._gap = (self._began, self._began)
        self.load = Load(seconds=seconds)

    def open(self) -> None:
        """Connect and ask; a server that listens no longer is left alone."""
        try:
            connection = socket.create_connection((HOST, self._port), 60)
        except ConnectionRefusedError:
            self.load.refused += 1
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        state = [bytearray(), 0.0]
        self._selector.register(connection, selectors.EVENT_READ, state)
        self._ask(connection, state)

    def run(self) -> Load:
        """Go on until the time is over and all is answered."""
        while self._selector.get_map():
            events = self._selector.select(1)
            if not events and time.monotonic() > self._end + LAST_SECONDS:
                self.load.broken += len(self._selector.get_map())
                break
            for key, _ in events:
                self._read(key.fileobj, key.data)
        times = sorted(self._times)
        if times:
            self.load.median = times[len(times) // 2]
            self.load.p99 = times[min(len(times) - 1, len(times) * 99 // 100)]
        self.load.seconds = time.monotonic() - self._began
        self.load.errors, self.load.gap = dict(self._errors), self._gap
        return self.load

    def _ask(self, connection: socket.socket, state: list[Any]) -> None:
        state[0].clear()
        state[1] = time.monotonic()
        try:
            connection.sendall(self._request)
        except OSError:
            self._lost(connection)

    def _read(self, connection: Any, state: list[Any]) -> None:
        buffer: bytearray = state[0]
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._lost(connection)
            return
        buffer += data
        end = buffer.find(b"\r\n\r\n")
        length = _LENGTH.search(buffer, 0, end) if end >= 0 else None
        if length is None or len(buffer) < end + 4 + int(length[1]):
            return
        now = time.monotonic()
        self._count(buffer, end, now, state[1])
        if now >= self._end:
            self._close(connection)
        elif _CLOSE.search(buffer, 0, end):
            self._close(connection)
            self.open()
        else:
            self._ask(connection, state)

    def _count(self, answer: bytearray, end: int, now: float, asked: float) -> None:
        if answer.startswith(b"HTTP/1.1 200"):
            self.load.answers += 1
            self._times.append(now - asked)
            if now - self._last > self._gap[1] - self._gap[0]:
                self._gap = (self._last, now)
            self._last = now
        else:
            text = answer[9:12] + b" " + answer[end + 4 :][:200]
            self._errors[text.decode("latin-1")] += 1

    def _lost(self, connection: Any) -> None:
        """Count a request that gets no answer, and begin another connection."""
        self._close(connection)
        self.load.broken += 1
        if time.monotonic() < self._end:
            self.open()

    def _close(self, connection: Any) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        connection.close()


def main() -> None:
    """Load a server; print what came of it as JSON."""
    file, port, connections, seconds = sys.argv[1:]
    client = _Client(int(port), Path(file).read_bytes(), float(seconds))
    for _ in range(int(connections)):
        client.open()
    load = client.run()
    print(json.dumps({name: getattr(load, name) for name in Load.__dataclass_fields__}))


if __name__ == "__main__":
    main()
