"""Finds the values of metrics in lines, whatever the regular expressions are.

Pure but for the time limit: a regular expression that takes too long on a line is interrupted by
SIGVTALRM, which Python's ``re`` looks at while it matches; so a scan belongs to the main thread of
a process of its own (``metrics/process.py``).
"""

from __future__ import annotations

import math
import re
import signal
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

BLOCK_SECONDS = 0.5
"""How long, in CPU time, a regular expression may search a block of lines until it is interrupted:
the line that it is at counts as one without a value."""
STRIKES = 3
"""A regular expression that was interrupted so often is given up."""
LINE_CHARACTERS = 2**20
"""What is longer without an end is taken for a line."""

_SPECIAL = frozenset(".^$*+?{}[]()|\\")
_OPTIONAL = frozenset("*?{")


class _TooSlowError(Exception):
    """A regular expression was interrupted."""


def required_text(regex: str) -> str:
    """Return the longest text that every match of ``regex`` holds, as far as is easily seen.

    Empty where there is none: with alternatives, flags or lookarounds.
    """
    if "|" in regex or "(?" in regex:
        return ""
    runs, run, depth, index = [""], "", 0, 0
    while index < len(regex):
        char = regex[index]
        escaped = char == "\\"
        if escaped:
            index += 1
            char = regex[index : index + 1]
        if char == "[" and not escaped:
            index = _after_class(regex, index)
            char = ""
        is_plain = _is_punctuation(char) if escaped else char not in _SPECIAL
        is_text = bool(char) and depth == 0 and is_plain
        depth += 0 if escaped else {"(": 1, ")": -1}.get(char, 0)
        is_required = regex[index + 1 : index + 2] not in _OPTIONAL
        if is_text and is_required:
            run += char
        if not is_text or not is_required or regex[index + 1 : index + 2] == "+":
            runs.append(run)
            run = ""
        index += 1
    return max([*runs, run], key=len)


def _is_punctuation(char: str) -> bool:
    return not (char.isalnum() or char.isspace())


def _after_class(regex: str, index: int) -> int:
    """Return the index of the bracket that ends a class of characters."""
    end = index + 1 + (regex[index + 1 : index + 2] == "^")
    end += 1  # a bracket that comes first is one of the characters
    while end < len(regex) and regex[end] != "]":
        end += 1 + (regex[end] == "\\")
    return end


@dataclass(slots=True)
class Definition:
    """A metric: its name, how it is found, and what was found so far."""

    name: str
    regex: str
    pattern: re.Pattern[str] = field(init=False)
    text: str = field(init=False)
    count: int = 0
    last: float = 0.0
    least: float = math.nan
    greatest: float = math.nan
    strikes: int = 0

    def __post_init__(self) -> None:
        self.pattern, self.text = re.compile(self.regex), required_text(self.regex)

    @property
    def is_given_up(self) -> bool:
        """Whether it was too slow too often."""
        return self.strikes >= STRIKES

    def add(self, value: float) -> None:
        """Take a value; one that is not finite is neither the least nor the greatest."""
        self.last, self.count = value, self.count + 1
        if math.isfinite(value):
            self.least = value if math.isnan(self.least) else min(value, self.least)
            self.greatest = value if math.isnan(self.greatest) else max(value, self.greatest)

    def summary(self) -> dict[str, Any]:
        """Return what was found, as JSON has it."""
        return {
            "name": self.name,
            "count": self.count,
            "last": self.last,
            "least": self.least,
            "greatest": self.greatest,
            "given_up": self.is_given_up,
        }

    def find(self, block: str) -> list[tuple[float, str]]:
        """Return the value of each line that has one, with the line; ``block`` is whole lines.

        The first group of the first match counts; what is no number is none.
        """
        position, found = 0, []
        while not self.is_given_up and position < len(block):
            signal.setitimer(signal.ITIMER_VIRTUAL, BLOCK_SECONDS)
            try:
                while (bounds := self._next(block, position)) is not None:
                    start, end = bounds
                    position = end + 1
                    line = block[start:end]
                    match = self.pattern.search(line)
                    if match and (value := _number(match[1])) is not None:
                        self.add(value)
                        found.append((value, line))
                break
            except _TooSlowError:
                self.strikes += 1
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        return found

    def _next(self, block: str, position: int) -> tuple[int, int] | None:
        """Return where the next line that may have a value begins and ends."""
        if position >= len(block):
            return None
        start = position
        if self.text:
            found = block.find(self.text, position)
            if found < 0:
                return None
            start = block.rfind("\n", 0, found) + 1
        end = block.find("\n", start)
        return start, len(block) if end < 0 else end


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def interrupt_what_is_slow() -> None:
    """Have SIGVTALRM interrupt a search."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise _TooSlowError

    signal.signal(signal.SIGVTALRM, interrupt)
