"""What can be wrong with a Pipe channel, seen from the script."""

from __future__ import annotations


class PipeModeDatasetException(Exception):
    """A channel cannot be read in Pipe mode, or an argument says something impossible."""


class BrokenRecord(Exception):
    """The bytes of an epoch are no records; ``offset_bytes`` counts from the epoch's start."""

    def __init__(self, reason: str, offset_bytes: int) -> None:
        self.reason = reason
        self.offset_bytes = offset_bytes
        super().__init__(f"{reason} (byte {offset_bytes} of the epoch)")
