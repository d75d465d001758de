"""Slurm's lists of nodes: ``n[1-3,7],m02`` is n1, n2, n3, n7, m02.

As ``scontrol show hostnames`` reads them, which need not be there in a container.
"""

from __future__ import annotations

import math
import re
from itertools import product

LARGEST = 65536
"""The most nodes that a list may have, as for Slurm's own reader."""
_NODES = re.compile(r"(?:[^\s,\[\]]|\[[^\[\]]*\])+")
_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def nodes(text: str) -> tuple[str, ...]:
    """Return the names that a list stands for, in its order.

    Numbers have at least the digits of the first of their range: ``n[08-11]`` is n08 to n11.
    Raises ValueError, with a sentence, for what is no list.
    """
    found: list[str] = []
    for word in re.split(r",(?![^\[]*\])", text):
        word = word.strip()
        if not word:
            continue
        if not _NODES.fullmatch(word):
            raise ValueError(f"{word!r} has brackets or blanks that do not fit")
        parts = [
            _numbers(match[1]) if match[2] is None else (match[2],)
            for match in _PART.finditer(word)
        ]
        if len(found) + math.prod(map(len, parts)) > LARGEST:
            raise ValueError(f"{word!r} stands for more than {LARGEST} nodes")
        found += map("".join, product(*parts))
    return tuple(found)


def _numbers(text: str) -> tuple[str, ...]:
    """Return the numbers of a pair of brackets: ``1-3,7``."""
    found: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        first = match[1] if match else ""
        last = (match[2] or first) if match else ""
        if not match or int(last) < int(first):
            raise ValueError(f"{part!r} is no range of numbers")
        if int(last) - int(first) >= LARGEST:
            raise ValueError(f"{part!r} stands for more than {LARGEST} nodes")
        found += (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    return tuple(found)
