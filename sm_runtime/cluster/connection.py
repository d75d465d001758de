"""A connection between two hosts of a job: JSON messages over one TCP stream.

Each end begins with one line of JSON, its greeting: who it is, and a nonce. With a secret, the
secret and both greetings give a key for each direction, and every message bears the HMAC-SHA256 of
its number and itself: none can be forged, altered, replayed, reflected or left out by who lacks the
secret. Without a secret messages bear nothing, and an end is known by its address alone. Messages
are not encrypted: they hold no secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TypeVar

from sm_runtime.cluster import network
from sm_runtime.job.model import Json

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
