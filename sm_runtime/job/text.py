"""Output of processes as text: its last bytes kept, made fit for files and terminals; numbers for
people.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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


_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?"
)
"""What a terminal takes for commands (ECMA-48): colours, titles, movements of the cursor."""
_HIDDEN = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)))
_HIDDEN |= dict.fromkeys((0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F)))
_HIDDEN |= dict.fromkeys((*range(0x2066, 0x206A), 0xFEFF))
_SPELT = {code: ascii(chr(code))[1:-1] for code in _HIDDEN if code not in (0x09, 0x0A)}


def printable(text: str) -> str:
    """Return ``text`` without escape sequences, other control characters as ``\\x07``.

    Tabs and line feeds stay. Marks that turn the direction of text are written out, too: they would
    make it look like another.
    """
    if "\x1b" in text:
        text = _ESCAPE.sub("", text)
    return text.translate(_SPELT)


def lines(text: str) -> list[str]:
    """Return the lines of what was written to a terminal, printable each.

    Of a line that was written over, as progress is shown, the first and the last state are left.
    """
    found: list[str] = []
    for line in text.removesuffix("\n").split("\n"):
        states = [state for state in line.split("\r") if state] or [""]
        found += map(printable, states[:1] + states[1:][-1:])
    return found


def some(names: Sequence[str], most: int) -> str:
    """Return the first ``most`` of ``names`` in a row, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def human_size(count: int) -> str:
    """Return a number of bytes as one reads it."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def human_duration(seconds: float) -> str:
    """Return a time as one reads it: ``0.3 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole >= 10 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
