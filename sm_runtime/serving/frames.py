"""How the front process and its workers talk: frames of a JSON header and a body on a socket.

A frame is two lengths (32 bits of the header's, 64 of the body's, big-endian), the header, the
body. Both ends are ours, on a pair of sockets that nothing else can reach.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

import orjson

PREFIX = struct.Struct("!IQ")
_READ_BYTES = 2**18


def prefix(header: dict[str, Any], body: bytes | memoryview) -> bytes:
    """Return what stands before ``body``."""
    try:
        text = orjson.dumps(header)
    except TypeError:  # text that is not UTF-8: names of files
        text = json.dumps(header).encode()
    return PREFIX.pack(len(text), len(body)) + text


def _header(text: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = json.loads(text)
    return found


class Reader:
    """Cuts a stream into frames, and hands each to ``take`` when it is complete."""

    def __init__(self, take: Callable[[dict[str, Any], bytes], None]) -> None:
        self._take = take
        self._kept = bytearray()
        self._needed = PREFIX.size

    def feed(self, data: bytes) -> None:
        """Take what came next."""
        self._kept += data
        while len(self._kept) >= self._needed:
            header, body = PREFIX.unpack_from(self._kept)
            start = PREFIX.size + header
            if len(self._kept) < start + body:
                self._needed = start + body
                return
            text = bytes(memoryview(self._kept)[PREFIX.size : start])
            content = bytes(memoryview(self._kept)[start : start + body])
            del self._kept[: start + body]
            self._needed = PREFIX.size
            self._take(_header(text), content)


def read_all(connection: socket.socket, take: Callable[[dict[str, Any], bytes], None]) -> None:
    """Hand frames to ``take`` until the other end is closed; large bodies are not copied."""
    with connection.makefile("rb", _READ_BYTES) as stream:
        while len(lengths := stream.read(PREFIX.size)) == PREFIX.size:
            header, body = PREFIX.unpack(lengths)
            take(_header(stream.read(header)), stream.read(body))


def send(connection: socket.socket, header: dict[str, Any], body: bytes | memoryview) -> None:
    """Write one frame; the caller holds off other writers."""
    head = prefix(header, body)
    if len(body) < 2**16:
        connection.sendall(head + bytes(body))
    else:
        connection.sendall(head)
        connection.sendall(body)
