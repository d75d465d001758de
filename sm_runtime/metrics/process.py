"""Reads metrics off the output of a script, in a process of its own.

Standard input begins with a line of JSON (``MetricsReader``), then come blocks: the number of a
stream, when its bytes arrived (seconds since 1970) and how many they are, then the bytes. What is
found is appended to a file, an object on a line for each value; at the end a summary is printed.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from typing import Any, BinaryIO

from sm_runtime.job.secrets import Mask
from sm_runtime.metrics.scan import LINE_CHARACTERS, Definition, interrupt_what_is_slow

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
