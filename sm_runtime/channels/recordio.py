"""Frames objects as RecordIO records, as Apache MXNet and SageMaker's Pipe mode have them.

Each part of a record is a magic number, a word with its length (29 bits) and its place in the
record (3 bits), the payload, and zero bytes up to a multiple of 4; all numbers little-endian.
"""

from __future__ import annotations

from collections.abc import Iterator

MAGIC = 0xCED7230A
MAX_PART_BYTES = 2**29 - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)


def header(length_bytes: int, flag: int = WHOLE) -> bytes:
    """Return the 8 bytes before the payload of a part."""
    return MAGIC.to_bytes(4, "little") + (flag << 29 | length_bytes).to_bytes(4, "little")


def padding(length_bytes: int) -> bytes:
    """Return the zero bytes after the payload of a part."""
    return bytes(-length_bytes % 4)


class Framer:
    """Frames one record of ``size_bytes`` whose payload comes in pieces, none of them copied.

    A record of more than ``max_part_bytes`` is split into parts, which readers concatenate.
    """

    def __init__(self, size_bytes: int, max_part_bytes: int = MAX_PART_BYTES) -> None:
        self._max = max_part_bytes
        self._left = size_bytes  # of the record, from the next part on
        self._part = 0  # the length of the part that is being sent, and what is left of it
        self._part_left = 0
        self._first = True

    def frame(self, data: memoryview) -> Iterator[bytes | memoryview]:
        """Yield what is to be sent for ``data``, the next bytes of the payload."""
        while data or (self._first and not self._left):
            if not self._part_left:
                yield self._begin()
            piece = data[: self._part_left]
            data = data[len(piece) :]
            self._part_left -= len(piece)
            if piece:
                yield piece
            if not self._part_left and self._part % 4:
                yield padding(self._part)

    def _begin(self) -> bytes:
        self._part = self._part_left = min(self._left, self._max)
        self._left -= self._part
        flags = (WHOLE, FIRST) if self._first else (LAST, MIDDLE)
        self._first = False
        return header(self._part, flags[self._left > 0])
