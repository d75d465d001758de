"""A connection between two hosts of a job: JSON messages over one TCP stream.

Each end begins with one line of JSON, its greeting: who it is, and a nonce. With a secret, the
secret and both greetings give a key for each direction, and every message bears the HMAC-SHA256 of
its number and itself: none can be forged, altered, replayed, reflected or left out by who lacks the
secret. Without a secret messages bear nothing, and an end is known by its address alone. Messages
are not encrypted: they hold no secrets.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import socket
import struct
import time
from collections.abc import Mapping

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from sm_runtime.model import Json

PROTOCOL = "sm-runtime/2"
GREETING_BYTES = 4096
"""The most bytes of a greeting, and of a message before its sender is admitted."""
MESSAGE_BYTES = 2**20
"""The most bytes of a message after that."""
BACKLOG_BYTES = 8 * 2**20
"""What may wait to be sent; more means that the other end does not read."""

_LENGTH = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")
_TAG_BYTES = hashlib.sha256().digest_size


class PeerError(Exception):
    """The other end is not the expected one, does not follow the protocol, or is gone."""


class SecretError(PeerError):
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
        self.heard_at = time.monotonic()
        self._sent = self._received = 0
        self._keys = (b"", b"")
        """The keys of what is sent and of what is received."""
        if (stream := writer.get_extra_info("socket")) is not None:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    async def open(cls, address: str, port: int, secret: bytes, seconds: float) -> Connection:
        """Connect within so many seconds; raises OSError."""
        try:
            streams = asyncio.open_connection(address, port, limit=GREETING_BYTES)
            reader, writer = await asyncio.wait_for(streams, seconds)
        except asyncio.TimeoutError:  # which is no OSError before Python 3.11
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        return cls(reader, writer, secret)

    async def exchange_greetings(self, own: Mapping[str, Json], *, leads: bool) -> None:
        """Send this end's greeting and wait for the other's; ``agree`` on keys is next."""
        self._leads = leads
        whole = {**own, "protocol": PROTOCOL, "nonce": secrets.token_hex(16)}
        self._own = json.dumps({**whole, "secret": bool(self._secret)}).encode()
        self._write(self._own + b"\n")
        try:
            self._theirs = (await self._reader.readuntil(b"\n"))[:-1]
        except (asyncio.LimitOverrunError, asyncio.IncompleteReadError) as error:
            raise _unexpected(error) from None
        except OSError as error:
            raise PeerError(f"the connection broke ({error.strerror})") from None
        self.greeting = _parse(self._theirs)
        if self.greeting.get("protocol") != PROTOCOL:
            theirs = str(self.greeting.get("protocol"))[:40]
            raise PeerError(f"it speaks {theirs!r} and not {PROTOCOL!r}")

    def agree(self) -> None:
        """Derive the keys; raises SecretError where one end has a secret and the other has none."""
        if self.greeting.get("secret") is not bool(self._secret):
            has, lacks = ("this host", "the other") if self._secret else ("the other", "this host")
            raise SecretError(f"{has} has an SM_RUNTIME_CLUSTER_SECRET and {lacks} has none")
        if self._secret:
            pair = (self._own, self._theirs) if self._leads else (self._theirs, self._own)
            transcript = b"".join(_LENGTH.pack(len(part)) + part for part in pair)
            down, up = (
                hmac.digest(self._secret, way + transcript, "sha256") for way in (b"down", b"up")
            )
            self._keys = (down, up) if self._leads else (up, down)

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
        try:
            (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if size > self.limit_bytes:
                raise PeerError("unexpected data")
            tag = await self._reader.readexactly(_TAG_BYTES if self._secret else 0)
            body = await self._reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise PeerError("the connection was closed") from None
        except OSError as error:
            raise PeerError(f"the connection broke ({error.strerror})") from None
        if not hmac.compare_digest(tag, self._tag(self._keys[1], self._received, body)):
            if self._received:
                raise PeerError("a message is not authentic")
            raise SecretError("it does not have the same SM_RUNTIME_CLUSTER_SECRET")
        self._received += 1
        self.heard_at = time.monotonic()
        return _parse(body)

    def is_silent(self, seconds: float) -> bool:
        """Return whether nothing has been received for so long."""
        return time.monotonic() - self.heard_at > seconds

    def close(self) -> None:
        """Close the connection; what is written is sent first, as far as the other end reads."""
        self._writer.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()

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


def _unexpected(error: Exception) -> PeerError:
    is_closed = isinstance(error, asyncio.IncompleteReadError) and not error.partial
    return PeerError("the connection was closed" if is_closed else "unexpected data")
