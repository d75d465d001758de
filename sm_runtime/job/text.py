"""Makes text fit for files and terminals: without colours, control characters and tricks."""

from __future__ import annotations

import re

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
