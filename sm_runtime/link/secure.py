"""Messages that only the two ends of a connection can have written, over any byte stream.

Each end sends one greeting in the clear: a nonce and the public half of a fresh Diffie-Hellman pair
(group 14 of RFC 3526). Both halves, both greetings and the secret of the cluster, if there is one,
give a key for each direction; every message after that carries its number's and its own HMAC, so
none can be forged, altered, replayed, left out or sent back. Whoever lacks the secret cannot make
the first of them. Messages are not encrypted: they hold no secrets.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sm_runtime.model import Json

GREETING_BYTES = 4096
"""The most bytes of a greeting, and of a message of somebody unknown."""
MESSAGE_BYTES = 2**20
"""The most bytes of a message of somebody known."""
PROTOCOL = "sm-runtime/1"

_TAG_BYTES = 32
_LENGTH = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")
_EXPONENT_BITS = 320  # twice what group 14 resists, as RFC 3526 section 8 has it
_PRIME = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AACAA68FFFFFFFFFFFFFFFF",
    16,
)


class PeerError(Exception):
    """The other end does not follow the protocol, or cannot prove that it knows the secret."""


class SecretError(PeerError):
    """The other end does not have the same secret."""


def new_pair() -> tuple[int, int]:
    """Return the private and the public half of a fresh Diffie-Hellman pair."""
    private = secrets.randbits(_EXPONENT_BITS) | 1
    return private, pow(2, private, _PRIME)


class Conversation:
    """One end of a connection, without the connection: bytes in, messages out, and back.

    ``greeting`` is what this end says of itself; ``secret`` is empty where there is none.
    ``examine`` is given the other end's greeting, and raises PeerError where it is not the one that
    is expected, before anything is computed for it. ``pair`` may serve many conversations, as a
    flood of greetings would cost a power each: the nonces make the keys differ.
    """

    def __init__(
        self,
        greeting: dict[str, Json],
        secret: bytes,
        *,
        leads: bool,
        examine: Callable[[dict[str, Json]], None] | None = None,
        pair: tuple[int, int] | None = None,
    ) -> None:
        self._secret, self._leads, self._examine = secret, leads, examine
        self._private, public = pair or new_pair()
        own = {
            **greeting,
            "protocol": PROTOCOL,
            "nonce": secrets.token_hex(16),
            "key": f"{public:x}",
            "secret": bool(secret),
        }
        self.opening = json.dumps(own).encode()
        self.agreed = False
        """Whether both greetings are here and fit, so that messages can be written."""
        self.limit = GREETING_BYTES
        """The most bytes of a message that is read."""
        self.peer: dict[str, Json] | None = None
        """The greeting of the other end, once it is here."""
        self.proven = False
        """Whether a message has come that only an end with the same secret can have made."""
        self._received = bytearray()
        self._sent = self._taken = 0
        self._keys = (b"", b"")

    def greet(self) -> bytes:
        """Return the bytes that begin the conversation."""
        return _LENGTH.pack(len(self.opening)) + self.opening

    def write(self, message: dict[str, Json]) -> bytes:
        """Return the bytes of a message; the other end's greeting must be here already."""
        body = json.dumps(message).encode()
        if not self.agreed:
            raise PeerError("nothing can be said before the greetings")
        if len(body) > MESSAGE_BYTES:
            raise PeerError(f"a message of {len(body)} bytes is too long")
        tag = _tag(self._keys[not self._leads], self._sent, body)
        self._sent += 1
        return _LENGTH.pack(len(body)) + tag + body

    def read(self, data: bytes) -> list[dict[str, Json]]:
        """Take bytes from the other end; return the messages that are complete by now.

        Raises PeerError, after which nothing more may be read.
        """
        self._received += data
        messages = []
        while (body := self._next()) is not None:
            messages.append(_object(body))
            if self.peer is None:
                self.peer = messages.pop()
                self._agree(body)
        return messages

    def _next(self) -> bytes | None:
        """Return the next whole and genuine body, if it is here."""
        if len(self._received) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._received)
        greeting = self.peer is None
        if size > self.limit:
            raise PeerError("what it sends is no message of this protocol")
        head = _LENGTH.size + (0 if greeting else _TAG_BYTES)
        if len(self._received) < head + size:
            return None
        body = bytes(self._received[head : head + size])
        tag = bytes(self._received[_LENGTH.size : head])
        del self._received[: head + size]
        if greeting:
            return body
        if not hmac.compare_digest(tag, _tag(self._keys[self._leads], self._taken, body)):
            if self.proven or not self._secret:
                raise PeerError("a message is not genuine")
            raise SecretError("it does not have the same SM_RUNTIME_CLUSTER_SECRET")
        self._taken += 1
        self.proven = True
        return body

    def _agree(self, greeting: bytes) -> None:
        """Derive the keys from both greetings."""
        assert self.peer is not None
        if self.peer.get("protocol") != PROTOCOL:
            theirs = str(self.peer.get("protocol"))[:40]
            raise PeerError(f"it speaks {theirs!r} and not {PROTOCOL!r}")
        if self._examine:
            self._examine(self.peer)
        try:
            public = int(str(self.peer["key"]), 16)
        except (KeyError, ValueError):
            raise PeerError("what it sends is no greeting of this protocol") from None
        if not 1 < public < _PRIME - 1:
            raise PeerError("its key is none")
        if self.peer.get("secret") is not bool(self._secret):
            has, lacks = ("this host", "the other") if self._secret else ("the other", "this host")
            raise SecretError(f"{has} has an SM_RUNTIME_CLUSTER_SECRET and {lacks} has none")
        shared = pow(public, self._private, _PRIME).to_bytes(_PRIME.bit_length() // 8, "big")
        pair = (self.opening, greeting) if self._leads else (greeting, self.opening)
        transcript = b"".join(_LENGTH.pack(len(part)) + part for part in pair)
        root = hmac.digest(self._secret or b"none", shared + transcript, hashlib.sha256)
        self._keys = (
            hmac.digest(root, b"leader to worker", hashlib.sha256),
            hmac.digest(root, b"worker to leader", hashlib.sha256),
        )
        self.agreed = True


def _tag(key: bytes, number: int, body: bytes) -> bytes:
    return hmac.digest(key, _NUMBER.pack(number) + body, hashlib.sha256)


def _object(body: bytes) -> dict[str, Json]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PeerError("what it sends is no message of this protocol")
    return found
