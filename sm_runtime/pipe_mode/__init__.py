"""Reads the FIFOs of a Pipe channel; TensorFlow is not needed here (see ``sagemaker_tensorflow``).

``framing`` knows where records begin and end; ``records`` which FIFO is next, and reads it for
scripts (``sm_runtime.records`` does not count epochs), ``stream`` for TensorFlow. Here is what can
be wrong with a channel, seen from the script.
"""

from __future__ import annotations


class PipeError(Exception):
    """A channel cannot be read in Pipe mode: ``str()`` says why."""


class PipeModeDatasetException(PipeError):
    """The same, or an argument says something impossible, told by ``PipeModeDataset``'s rules."""


class CorruptedError(Exception):
    """The bytes are no records; ``offset_bytes`` counts from the start of what was read."""

    def __init__(self, reason: str, offset_bytes: int) -> None:
        self.reason = reason
        self.offset_bytes = offset_bytes
        super().__init__(f"byte {offset_bytes}: {reason}")
