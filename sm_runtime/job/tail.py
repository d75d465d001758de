"""Keeps the last bytes of a stream, and the beginning of a line that is longer than these."""

from __future__ import annotations

import re

HEAD_BYTES = 2**13
"""How much is kept of the beginning of a long line, and of what comes before that line."""
GAP = b" [...] "
"""Stands for the middle of a long line."""
_WORD_BYTES = 2**12
"""A cut moves by so much at the most to leave no part of a word: it may be one of a secret."""
_BREAK = re.compile(rb"[\s'\",;]")


class Tail:
    """The last ``size`` bytes of a stream, or a little more, in whole lines.

    Of a line that is longer, the beginning stays: it names the exception whose message it is.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept = bytearray()

    def add(self, data: bytes | memoryview) -> None:
        """Take what came next."""
        # Replaced and not cut, as another thread may be reading.
        if len(data) > self._size + HEAD_BYTES:
            last = bytes(data[-self._size - HEAD_BYTES :])
            if line := last.find(b"\n", 0, HEAD_BYTES) + 1:  # nothing from before is needed
                self._kept = bytearray(last[line:])
                return
        self._kept += data
        if len(self._kept) > 4 * self._size:
            self._kept = bytearray(_shortened(bytes(self._kept), self._size))

    def read(self) -> bytes:
        """Return what is kept."""
        return _shortened(bytes(self._kept), self._size)


def _shortened(kept: bytes, size: int) -> bytes:
    start = len(kept) - size
    if start <= 0:
        return kept
    line = kept.rfind(b"\n", 0, start) + 1
    if start - line <= HEAD_BYTES:
        return kept[line:]
    before = max(0, line - HEAD_BYTES)
    if before:
        before = kept.find(b"\n", before, line) + 1 or line
    head, rest = kept[line : line + HEAD_BYTES], kept[start:]
    breaks = [found.start() for found in _BREAK.finditer(head, HEAD_BYTES - _WORD_BYTES)]
    resumed = _BREAK.search(rest, 0, _WORD_BYTES)
    head = head[: breaks[-1]] if breaks else head
    rest = rest[resumed.start() :] if resumed else rest
    return kept[before:line] + head + GAP + rest
