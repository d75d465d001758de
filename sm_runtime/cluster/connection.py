"""A connection between two hosts of a job: JSON messages over one TCP stream.

Each end begins with one line of JSON, its greeting: who it is, and a nonce. With a secret, the
secret and both greetings give a key for each direction, and every message bears the HMAC-SHA256 of
its number and itself: none can be forged, altered, replayed, reflected or left out by who lacks the
secret. Without a secret messages bear nothing, and an end is known by its address alone. Messages
are not encrypted: they hold no secrets.

``Admission`` decides who is admitted to the leader while the job starts: each other host of the
job, once. Anybody may connect. A client has to say who it is in time and in few bytes, and to prove
the secret or, without one, to come from an address to which its host's name resolves. There are few
at once, and the lines of the log that they cause are few.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from sm_runtime.cluster import network
from sm_runtime.cluster.agreement import PORTS
from sm_runtime.job.errors import LaunchError
from sm_runtime.job.model import Json

if TYPE_CHECKING:
    from sm_runtime.cluster.agreement import Message
    from sm_runtime.cluster.link import Link

    Serve: TypeAlias = "Callable[[str, Connection, Message], Coroutine[None, None, None]]"

log = logging.getLogger(__name__)

T = TypeVar("T")

PROTOCOL = "sm-runtime/2"
GREETING_BYTES = 4096
"""The most bytes of a greeting, and of a message before its sender is admitted."""
MESSAGE_BYTES = 2**20
"""The most bytes of a message after that."""
BACKLOG_BYTES = 8 * 2**20
"""What may wait to be sent; more means that the other end does not read."""
READ_SECONDS = 0.1
"""How long what has arrived may take to be read, this process having been suspended."""

_LENGTH = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")
_TAG_BYTES = 32


class PeerError(Exception):
    """The other end is not the expected one, does not follow the protocol, or is gone."""


class FinalError(PeerError):
    """The same, and another attempt would end in the same way."""


class SecretError(FinalError):
    """The other end does not have the same secret."""


class Connection:
    """One end of a connection; only used in the thread of its event loop.

    Raises PeerError whatever is wrong with the connection or with the other end.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes
    ) -> None:
        self._reader, self._writer, self._secret = reader, writer, secret
        self.address = str((writer.get_extra_info("peername") or ("",))[0])
        """The IP address of the other end."""
        self.greeting: Mapping[str, Json] = {}
        """What the other end says of itself."""
        self.limit_bytes = GREETING_BYTES
        """The most bytes of a message that is read."""
        self.opened_at = time.monotonic()
        self._sent = self._received = 0
        self._keys = (b"", b"")
        """The keys of what is sent and of what is received."""

    @classmethod
    async def open(cls, address: str, port: int, secret: bytes, seconds: float) -> Connection:
        """Connect within so many seconds; raises OSError."""
        streams = asyncio.open_connection(address, port, limit=GREETING_BYTES)
        return cls(*await within(streams, seconds), secret)

    async def exchange_greetings(
        self,
        own: Mapping[str, Json],
        examine: Callable[[Mapping[str, Json]], None],
        *,
        leads: bool,
    ) -> None:
        """Send this end's greeting, wait for the other's, and derive the keys from both.

        ``examine`` is given the other's, and raises PeerError where it is not the expected one.
        """
        has_secret = bool(self._secret)
        whole = {**own, "protocol": PROTOCOL, "nonce": secrets.token_hex(16), "secret": has_secret}
        ours = json.dumps(whole).encode() + b"\n"
        self._write(ours)
        theirs = await self._read(self._reader.readuntil(b"\n"))
        self.greeting = _parse(theirs)
        if self.greeting.get("protocol") != PROTOCOL:
            other = str(self.greeting.get("protocol"))[:40]
            raise PeerError(f"it speaks {other!r} and not {PROTOCOL!r}")
        examine(self.greeting)
        if self.greeting.get("secret") is not has_secret:
            has, lacks = ("this host", "the other") if has_secret else ("the other", "this host")
            raise SecretError(f"{has} has an SM_RUNTIME_CLUSTER_SECRET and {lacks} has none")
        both = ours + theirs if leads else theirs + ours
        down, up = (hmac.digest(self._secret, way + both, "sha256") for way in (b"down", b"up"))
        self._keys = (down, up) if leads else (up, down)

    def send(self, message: Mapping[str, Json]) -> None:
        """Send a message, or as much of it as the connection takes now."""
        body = json.dumps(message).encode()
        if len(body) > MESSAGE_BYTES:
            raise PeerError(f"a message of {len(body)} bytes is too long")
        tag = self._tag(self._keys[0], self._sent, body)
        self._sent += 1
        self._write(_LENGTH.pack(len(body)) + tag + body)

    async def receive(self) -> dict[str, Json]:
        """Wait for the next message."""
        (size,) = _LENGTH.unpack(await self._read(self._reader.readexactly(_LENGTH.size)))
        if size > self.limit_bytes:
            raise PeerError("unexpected data")
        tag = await self._read(self._reader.readexactly(_TAG_BYTES if self._secret else 0))
        body = await self._read(self._reader.readexactly(size))
        if not hmac.compare_digest(tag, self._tag(self._keys[1], self._received, body)):
            if self._received:
                raise PeerError("a message is not authentic")
            raise SecretError("it does not have the same SM_RUNTIME_CLUSTER_SECRET")
        self._received += 1
        return _parse(body)

    async def receive_within(self, seconds: float) -> dict[str, Json]:
        """Wait for the next message, and give the other end up when it takes longer."""
        try:
            # Where this process was suspended, what arrived meanwhile has still to be read.
            return await within(self.receive(), seconds, READ_SECONDS)
        except TimeoutError:
            raise PeerError(f"it has been silent for {seconds:g} s") from None

    def close(self) -> None:
        """Close the connection; what is written is sent first, as far as the other end reads."""
        self._writer.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()

    async def _read(self, reading: Awaitable[T]) -> T:
        try:
            return await reading
        except asyncio.IncompleteReadError:
            raise PeerError("the connection was closed") from None
        except asyncio.LimitOverrunError:
            raise PeerError("unexpected data") from None
        except OSError as error:
            raise PeerError(f"the connection broke ({error.strerror})") from None

    def _write(self, data: bytes) -> None:
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > BACKLOG_BYTES:
            raise PeerError("it does not read")

    def _tag(self, key: bytes, number: int, body: bytes) -> bytes:
        if not self._secret:
            return b""
        return hmac.digest(key, _NUMBER.pack(number) + body, "sha256")


def _parse(body: bytes) -> dict[str, Json]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PeerError("malformed message")
    return found


async def within(work: Coroutine[None, None, T], *seconds: float) -> T:
    """Return what ``work`` returns; wait so long, and so long again, else raise TimeoutError.

    ``asyncio.wait_for`` loses a cancellation at times (https://github.com/python/cpython/issues/86296,
    until Python 3.12).
    """
    task = asyncio.ensure_future(work)
    # Looked at in any case, as asyncio logs exceptions that are not.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        for more in seconds:
            if (await asyncio.wait({task}, timeout=more))[0]:
                return task.result()
    finally:
        task.cancel()
    raise TimeoutError(f"no answer within {seconds[0]:g} s")


def resolve(host: str) -> asyncio.Future[tuple[tuple[str, ...], str]]:
    """Look a name up in a daemon thread, as ``network.resolve`` does: a server may take long."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[tuple[str, ...], str]] = loop.create_future()

    def tell(found: tuple[tuple[str, ...], str]) -> None:
        if not future.done():  # it may be cancelled
            future.set_result(found)

    def run() -> None:
        found = network.resolve(host)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=run, name="link-names", daemon=True).start()
    return future


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
