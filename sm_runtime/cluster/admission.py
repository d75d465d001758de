"""Who is admitted to the leader while the job starts: each other host of the job, once.

Anybody may connect. A client has to say who it is in time and in few bytes, and to prove the secret
or, without one, to come from an address to which its host's name resolves. There are few at once,
and the lines of the log that they cause are few.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, TypeAlias

from sm_runtime.cluster import network
from sm_runtime.cluster.config import PORTS
from sm_runtime.cluster.connection import (
    GREETING_BYTES,
    MESSAGE_BYTES,
    Connection,
    PeerError,
    SecretError,
    resolve,
)
from sm_runtime.job.errors import LaunchError

if TYPE_CHECKING:
    from sm_runtime.cluster.agreement import Message
    from sm_runtime.cluster.link import Link
    from sm_runtime.job.model import Json

    Serve: TypeAlias = Callable[[str, Connection, Message], Coroutine[None, None, None]]

log = logging.getLogger(__name__)

MAX_CLIENTS = 64
"""How many clients that are not admitted may be connected; the oldest silent one is dropped."""
MAX_LINES = 20
"""How many lines of the log clients that are not admitted may cause."""


class Admission:
    """A listening socket, and the clients that have not been admitted.

    ``serve`` is given each host with its connection and its first message, and ``blame`` a host
    that has another secret, with a sentence that says so.
    """

    def __init__(
        self, link: Link, address: str, serve: Serve, blame: Callable[[str, str], None]
    ) -> None:
        self._link, self._config = link, link.config
        self._host_serve, self._blame = serve, blame
        self.missing = list(self._config.hosts[1:])
        """The hosts that have not been admitted."""
        self._socket = _listen(address, self._config.port) if self.missing else None
        self._server: asyncio.Server | None = None
        self._clients: dict[Connection, asyncio.Task[None]] = {}
        """Connections that are not admitted, with the task that serves each."""
        self._causes: dict[str, str] = {}
        """Why a client that said that it is a missing host was turned away."""
        self._lookups: dict[str, asyncio.Future[tuple[tuple[str, ...], str]]] = {}
        self._lines = 0

    async def start(self) -> None:
        """Begin to accept connections."""
        self._server = await asyncio.start_server(
            self._accept, sock=self._socket, limit=GREETING_BYTES
        )

    def expire(self, now: float) -> None:
        """Turn away the clients that have not said in time who they are."""
        opened_before = now - self._config.greeting_seconds
        for client in [client for client in self._clients if client.opened_at < opened_before]:
            self._turn_away(self._drop(client), PeerError("it does not say who it is"))

    def close(self) -> None:
        """Close every socket."""
        self._close_server()
        for client in list(self._clients):
            self._drop(client).close()

    async def cause(self, host: str) -> str:
        """Return, in words, why a host has not been admitted."""
        if turned_away := self._causes.get(host):
            return turned_away
        addresses, cause = await self._resolve(host)
        return cause or f"has not connected (resolved {', '.join(addresses)})"

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
        elif self._socket is not None:
            self._socket.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client in a task of its own."""
        connection = Connection(reader, writer, self._config.secret)
        if len(self._clients) >= MAX_CLIENTS:
            silent = [client for client in self._clients if not client.greeting]
            self._drop((silent or list(self._clients))[0]).abort()
        self._clients[connection] = self._link.spawn(self._serve(connection))

    async def _serve(self, connection: Connection) -> None:
        """Admit a client, and serve it until the connection ends."""
        try:
            hello = await self._admit(connection)
        except PeerError as error:
            del self._clients[connection]
            self._turn_away(connection, error)
        else:
            await self._host_serve(_claimed(connection), connection, hello)

    async def _admit(self, connection: Connection) -> Message:
        """Return the first message of a missing host; raises PeerError where a client is none."""
        config = self._config
        await connection.exchange_greetings(config.greeting(), self._examine, leads=True)
        host = _claimed(connection)
        self._check_missing(host)
        hello = await connection.receive()
        if hello.get("type") != "hello":
            raise PeerError("unexpected message before admission")
        if not config.secret:
            addresses, cause = await self._resolve(host)
            if connection.address not in addresses:
                known = f"resolves to {', '.join(addresses)}" if addresses else f"fails: {cause}"
                raise PeerError(f"it is not at the address of {host}, whose name {known}")
        self._check_missing(host)  # another client may have been faster
        self.missing.remove(host)
        del self._clients[connection]
        connection.limit_bytes = MESSAGE_BYTES
        if not self.missing:
            self._close_server()
        return hello

    def _drop(self, connection: Connection) -> Connection:
        self._clients.pop(connection).cancel()
        return connection

    def _examine(self, greeting: Mapping[str, Json]) -> None:
        if text := self._config.other_job(greeting):
            raise PeerError(f"it belongs to another job: {text}")

    def _check_missing(self, host: str) -> None:
        if host not in self._config.hosts:
            leader = self._config.leader
            text = f"{host[:80]} is not in the list of hosts of {leader}: their lists differ"
            raise PeerError(text)
        if host not in self.missing:
            raise PeerError(f"{host} is already connected")

    def _turn_away(self, connection: Connection, error: PeerError) -> None:
        """Close a connection, and say why: to the client, and in the log."""
        host = _claimed(connection)
        is_missing = host in self.missing
        if connection.greeting:
            with contextlib.suppress(PeerError):
                refused = {"type": "refused", "reason": str(error), "final": not is_missing}
                connection.send(refused)
        connection.close()
        if is_missing:
            self._causes[host] = f"{connection.address} was turned away: {error}"
            is_alike = not self._config.other_job(connection.greeting)
            if isinstance(error, SecretError) and is_alike:
                self._link.spawn(self._check_secret(host, connection.address, str(error)))
        self._lines += 1
        if self._lines <= MAX_LINES:
            log.warning("a connection from %s was closed: %s", connection.address, error)
        if self._lines == MAX_LINES:
            log.warning("no more connections that are closed are logged")

    async def _check_secret(self, host: str, address: str, why: str) -> None:
        """Fail where a host has another secret; from another address it means nothing."""
        addresses, _ = await self._resolve(host)
        if address in addresses and host in self.missing:
            self._blame(host, f"{host} ({address}): {why}")

    async def _resolve(self, host: str) -> tuple[tuple[str, ...], str]:
        """Look up the name of a host, once for all that ask meanwhile."""
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = resolve(host)
            lookup.add_done_callback(lambda _: self._lookups.pop(host))
        return await asyncio.shield(lookup)


def _claimed(connection: Connection) -> str:
    return str(connection.greeting.get("host", ""))


def _listen(address: str, first: int) -> socket.socket:
    """Return a socket that listens at ``address``, on the first of ten ports that is free."""
    problem = ""
    for port in range(first, first + PORTS):
        try:
            return socket.create_server(
                (address, port), family=network.family_of(address), backlog=128
            )
        except (OSError, OverflowError) as error:  # 65535 is the last
            problem = getattr(error, "strerror", None) or str(error)
    raise LaunchError(
        f"{address}: cannot listen on ports {first} to {first + PORTS - 1}: {problem}"
    )
