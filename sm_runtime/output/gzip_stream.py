"""A gzip stream: compressed by all CPUs where the package isal is installed, else by one.

The bytes depend on the data and on the sizes of the writes alone, not on the time or the number of
threads.
"""

from __future__ import annotations

import gzip
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

BLOCK_BYTES = 1 << 20
MAX_THREADS = 16
"""Beyond these the thread that reads and writes is what everything waits for."""
_GZIP_LEVEL = 6
_ISAL_LEVEL = 2

Bytes = bytes | bytearray | memoryview


class Sink(Protocol):
    """Where compressed bytes go."""

    def write(self, data: Bytes, /) -> object:
        """Take all of ``data``."""


class GzipWriter:
    """Compresses what is written into ``sink``.

    ``close`` ends the stream; leaving the context without it ends the threads, and writes no more.
    """

    def __init__(self, sink: Sink, *, threads: int, with_isal: bool = True) -> None:
        self._output = _Output(sink)
        self._file = _open(self._output, max(1, min(threads, MAX_THREADS)), with_isal)
        self._is_closed = False

    def __enter__(self) -> GzipWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_closed:
            self._output.is_abandoned = True
            with suppress(Exception):  # what went wrong is known already
                self._file.close()

    @property
    def written_bytes(self) -> int:
        """How many compressed bytes the sink was given."""
        return self._output.written_bytes

    def write(self, data: Bytes) -> None:
        """Add ``data`` to the stream; it may be reused at once."""
        rest = memoryview(data).cast("B")
        for start in range(0, len(rest), BLOCK_BYTES):
            self._file.write(bytes(rest[start : start + BLOCK_BYTES]))

    def close(self) -> None:
        """Compress what is left and end the stream."""
        self._file.close()
        self._is_closed = True


class _Output:
    """A sink as a file that can be written to."""

    closed = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.written_bytes = 0
        self.is_abandoned = False

    def write(self, data: Bytes, /) -> int:
        if not self.is_abandoned:
            self._sink.write(data)
            self.written_bytes += len(data)
        return len(data)

    def writable(self) -> bool:
        return True

    def flush(self) -> None: ...

    def close(self) -> None: ...


def has_isal() -> bool:
    """Whether the package isal is installed."""
    from importlib.util import find_spec

    return find_spec("isal") is not None


def _open(output: _Output, threads: int, with_isal: bool) -> Any:
    if not (with_isal and has_isal()):
        return gzip.GzipFile("", "wb", _GZIP_LEVEL, output, mtime=0)
    from importlib import import_module

    return import_module("isal.igzip_threaded").open(
        output, "wb", compresslevel=_ISAL_LEVEL, threads=threads, block_size=BLOCK_BYTES
    )
