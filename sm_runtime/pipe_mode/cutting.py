"""Cuts a stream into records where it is read, without a thread and without TensorFlow."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from sm_runtime.pipe_mode.errors import CorruptedError

if TYPE_CHECKING:
    from sm_runtime.pipe_mode.framing import Ends, Framing


class Readable(Protocol):
    """What is read from: an unbuffered stream, as ``open_channel`` returns."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the start of ``buffer`` and return how many bytes, 0 at the end."""


BUFFER_BYTES = 2**20


def records(stream: Readable, framing: Framing) -> Iterator[bytes]:
    """Yield the payload of one record after the other; raise CorruptedError."""
    for data, ends in batches(stream, framing):
        yield from framing.cut(bytes(data[: ends[-1]]), 0, ends)


def batches(stream: Readable, framing: Framing) -> Iterator[tuple[memoryview, Ends]]:
    """Yield what has arrived, and where its records end; valid until the next is asked for.

    Raises CorruptedError behind the records that are good.
    """
    view = memoryview(bytearray(BUFFER_BYTES))
    size = offset = need = 0
    while True:
        if need > len(view):
            grown = memoryview(bytearray(need))
            grown[:size] = view[:size]
            view = grown
        elif size == len(view):
            grown = memoryview(bytearray(2 * size))
            grown[:size] = view
            view = grown
        count = stream.readinto(view[size:]) or 0
        size += count
        if not count and (size := _ended(view, size, offset, framing)) == 0:
            return
        ends: Ends = array("q")
        problem = None
        try:
            need = framing.scan(view[:size], 0, ends)
        except CorruptedError as error:
            problem = CorruptedError(error.reason, offset + error.offset_bytes)
        if ends:
            yield view, ends
            end = ends[-1]
            view[: size - end] = view[end:size]
            size, offset = size - end, offset + end
        if problem:
            raise problem


def _ended(view: memoryview, size: int, offset: int, framing: Framing) -> int:
    """Return how many bytes are in ``view`` when the last line has its end, else 0."""
    if size and framing.name != "TextLine":
        raise CorruptedError(f"the stream ends inside a {framing.name} record", offset)
    if size:
        view[size] = ord("\n")
        return size + 1
    return 0
