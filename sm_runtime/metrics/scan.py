"""Finds the values of metrics in a script's output, in a process of its own.

Standard input begins with a line of JSON (``MetricsReader``), then come blocks: the number of a
stream, when its bytes arrived (seconds since 1970) and how many they are, then the bytes. What is
found is appended to a file, an object on a line for each value; at the end a summary is printed.

A regular expression that takes too long on a line is interrupted by SIGVTALRM, which Python's
``re`` looks at while it matches: that is why a scan belongs to the main thread of a process.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import struct
import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, BinaryIO

from sm_runtime.job.secrets import Mask

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


BLOCK = struct.Struct("=IdI")
"""The head of a block: stream, time, size in bytes."""
SHOWN_CHARACTERS = 500
"""How much of its line a value is written with."""
NICENESS = 10


def main() -> None:
    """Read until the end of standard input."""
    interrupt_what_is_slow()
    os.nice(NICENESS)
    source = sys.stdin.buffer
    config = json.loads(source.readline())
    mask = Mask()
    mask.learn(config["secrets"])
    definitions = [Definition(name, regex) for name, regex in config["definitions"]]
    with open(config["path"], "a", encoding="utf-8") as file:
        held: dict[int, tuple[float, bytes]] = {}
        while block := _block(source):
            stream, time, data = block
            data = held.pop(stream, (time, b""))[1] + data
            cut = data.rfind(b"\n") + 1 or (len(data) if len(data) > LINE_CHARACTERS else 0)
            if data[cut:]:
                held[stream] = time, data[cut:]
            if cut:
                _search(definitions, data[:cut], time, config["host"], mask, file)
        for time, data in held.values():
            _search(definitions, data, time, config["host"], mask, file)
    print(json.dumps([definition.summary() for definition in definitions]))


def _block(source: BinaryIO) -> tuple[int, float, bytes] | None:
    head = source.read(BLOCK.size)
    if len(head) < BLOCK.size:
        return None
    stream, time, size = BLOCK.unpack(head)
    data = source.read(size)
    return (stream, time, data) if len(data) == size else None


def _search(
    definitions: list[Definition], data: bytes, time: float, host: str, mask: Mask, file: Any
) -> None:
    """Write the values in some lines that arrived at one time."""
    text = data.decode("utf-8", "replace")
    for definition in definitions:
        for value, line in definition.find(text):
            found = {
                "name": definition.name,
                "value": value if math.isfinite(value) else str(value),  # JSON has no NaN
                "time": round(time, 3),
                "host": host,
                "line": mask(line[:SHOWN_CHARACTERS].rstrip("\r")),
            }
            file.write(json.dumps(found) + "\n")
    file.flush()
