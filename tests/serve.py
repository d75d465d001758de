"""Runs the command ``serve`` on a base folder, and asks it."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import RUNTIME, Base, Result, Running, eventually


@dataclass(frozen=True)
class Reply:
    """What came back for a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an answer that is an error."""
        assert self.headers["content-type"] == "application/json", self
        message: str = self.json()["error"]
        return message


class Client:
    """Asks a server."""

    host = "127.0.0.1"
    port: int
    rest_port: int

    def ping(self) -> int:
        try:
            return self.get("/ping").status
        except OSError:
            return 0

    def get(self, path: str, port: int = 0) -> Reply:
        return self.ask(path, method="GET", port=port)

    def ask(
        self,
        path: str = "/invocations",
        body: bytes | str = b"",
        content_type: str = "application/json",
        *,
        method: str = "POST",
        port: int = 0,
        seconds: float = 60.0,
        **headers: str,
    ) -> Reply:
        """Send a request; header names are written with ``_``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if content_type:
            named["content-type"] = content_type
        data = body.encode() if isinstance(body, str) else body
        connection = http.client.HTTPConnection(self.host, port or self.port, timeout=seconds)
        try:
            connection.request(method, path, data if method != "GET" else None, named)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())
        finally:
            connection.close()

    def predict(self, value: Any, **options: Any) -> Any:
        """Return the JSON of an answer that has to be one."""
        reply = self.ask(body=json.dumps(value), **options)
        assert reply.status == 200, reply
        return reply.json()

    def send(self, data: bytes) -> bytes:
        """Send bytes as they are, and return all that comes back."""
        with socket.create_connection((self.host, self.port), 30) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            return b"".join(parts)


class Serving(Client):
    """A server that a test has started."""

    def __init__(self, base: Base, *, prefix: tuple[str, ...] = (), **environ: str) -> None:
        self.port = _free_ports(3)
        ports = {
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            "SAGEMAKER_SAFE_PORT_RANGE": f"{self.port + 1}-{self.port + 2}",
        }
        self.rest_port = self.port + 2
        command = (*RUNTIME, "serve")
        self.running: Running = base.start(command=command, prefix=prefix, **{**ports, **environ})

    @property
    def log(self) -> str:
        return self.running.err.decode("utf-8", "replace")

    def wait_until_ready(self, seconds: float = 60.0) -> Serving:
        done = self.running.process.poll
        eventually(lambda: self.ping() == 200 or done() is not None, "ready", seconds)
        assert self.ping() == 200, self.log
        return self

    def workers(self) -> list[int]:
        """The processes that hold the model."""
        return children(self.running.pid)

    def end(self) -> Result:
        """Return how a server ended that ends by itself."""
        return self.running.wait()


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, or has been left, zombies too."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in found.split()]


@contextmanager
def serving(
    base: Base, *, ready: bool = True, prefix: tuple[str, ...] = (), **environ: str
) -> Iterator[Serving]:
    """Yield a server, ready to answer; it is killed at the end of the block.

    ``prefix``: the command that starts it.
    """
    found = Serving(base, prefix=prefix, **environ)
    try:
        yield found.wait_until_ready() if ready else found
    finally:
        if found.running.process.poll() is None:
            found.running.process.kill()
        found.running.wait()


class Clients:
    """Threads that ask again and again, and note what comes back."""

    def __init__(self, server: Client, count: int, body: str, **options: str) -> None:
        self._stop = threading.Event()
        self._options: Any = options
        self.statuses: list[int] = []
        self.refused: list[OSError] = []
        self.broken: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(server, body), daemon=True)
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, server: Client, body: str) -> None:
        while not self._stop.is_set():
            try:
                self.statuses.append(server.ask(body=body, **self._options).status)
            except ConnectionRefusedError as error:  # it listens no longer
                self.refused.append(error)
                return
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(error)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def _free_ports(count: int) -> int:
    """Return the first of some ports in a row that nothing listens on, below the ephemeral ones."""
    first = random.SystemRandom().randrange(10000, 29000)  # workers of one run must not meet
    for port in range(first, 30000, count):
        held = []
        try:
            for number in range(port, port + count):
                probe = socket.socket(socket.AF_INET6)
                held.append(probe)
                probe.bind(("::", number))
            return port
        except OSError:
            continue
        finally:
            for probe in held:
                probe.close()
    raise AssertionError("no free ports")
