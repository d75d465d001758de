"""Reads an epoch ahead in a thread, and hands it over in segments that end where a record ends.

A segment lies in a memory file, so that TensorFlow's own readers of files can read it. It is handed
over when it is large enough, or when the reader waits and nothing more comes at once: the first
record does not wait for the last.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue

from sm_runtime.pipe_mode.epochs import take_epoch
from sm_runtime.pipe_mode.errors import BrokenRecord
from sm_runtime.pipe_mode.fifo import Fifo, Stopped
from sm_runtime.pipe_mode.framing import FRAMINGS, Ends
from sm_runtime.pipe_mode.settings import Settings

BUFFER_BYTES = 2 * 2**20
"""Grows where one record is larger."""
BUFFERS = 3
ENOUGH_BYTES = 2**19
"""A reader that waits gets so much, and less where nothing more comes for GATHER_SECONDS."""
GATHER_SECONDS = 0.002


class Buffer:
    """Memory that is a file as well."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.file = os.memfd_create("records", os.MFD_CLOEXEC)
        os.ftruncate(self.file, size_bytes)
        self.view = memoryview(mmap.mmap(self.file, size_bytes))

    def __del__(self) -> None:
        os.close(self.file)


class Segment:
    """Whole records: ``data[:ends[-1]]``."""

    def __init__(self, record_format: str, buffer: Buffer, offset_bytes: int) -> None:
        self.framing = FRAMINGS[record_format]
        self.buffer = buffer
        self.offset_bytes = offset_bytes
        """Where in the epoch its first byte was."""
        self.ends: Ends = []
        self.size_bytes = 0
        """With the beginning of the next record, which belongs to the next segment."""
        self.read_ns = 0
        self.problem: Exception | None = None
        """What is wrong behind the last record."""
        self.last = False

    @property
    def data(self) -> memoryview:
        """The bytes of its records."""
        return self.buffer.view[: self.ends[-1]]

    def records(self) -> list[bytes]:
        """Return the payloads of the records."""
        return self.framing.cut(self.data, 0, self.ends)

    def path(self) -> str:
        """Return a path at which other code of this process finds ``data``, and bytes behind it."""
        return f"/proc/self/fd/{self.buffer.file}"

    def released(self) -> Buffer:
        """Return the buffer, for use by another segment."""
        buffer = self.buffer
        if buffer.size_bytes > BUFFER_BYTES:
            return Buffer(BUFFER_BYTES)
        return buffer


class Stream:
    """One epoch of a channel: iterate over it once, then close it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.epoch = take_epoch(settings.state_dir, settings.channel)
        self.path = os.path.join(settings.pipe_dir, f"{settings.channel}_{self.epoch}")
        self.read_ns = 0
        self.read_bytes = 0
        self._fifo = Fifo(self.path)
        self._full: SimpleQueue[Segment] = SimpleQueue()
        self._free: SimpleQueue[Buffer | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._read_all, name=self.path, daemon=True)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._fifo.stop()
        self._free.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        self._fifo.close()

    def segments(self) -> Iterator[Segment]:
        """Yield the segments; each is valid until the next one is asked for.

        Raises BrokenRecord at the place where the bytes are no records, TimeoutError where no
        writer came, ValueError where there is no FIFO, and OSError.
        """
        for _ in range(BUFFERS):
            self._free.put(Buffer(BUFFER_BYTES))
        self._thread.start()
        while True:
            segment = self._full.get()
            if segment.ends:
                yield segment
            if segment.problem:
                raise segment.problem
            if segment.last:
                return
            self._free.put(segment.released())

    def _read_all(self) -> None:
        carried, offset, opened = b"", 0, False
        while (buffer := self._free.get()) is not None:
            segment = Segment(self._settings.record_format, buffer, offset)
            try:
                if not opened:
                    self._fifo.open(self._settings.timeout_seconds)
                    opened = True
                self._fill(segment, carried)
            except Stopped:
                return
            except Exception as error:  # it is raised where the records are asked for
                segment.problem = error
            end = segment.ends[-1] if segment.ends else 0
            carried = bytes(segment.buffer.view[end : segment.size_bytes])
            offset += end
            self._full.put(segment)
            if segment.problem or segment.last:
                return

    def _fill(self, segment: Segment, carried: bytes) -> None:
        need = len(carried) + 1
        _make_room(segment, need)
        segment.buffer.view[: len(carried)] = carried
        segment.size_bytes = len(carried)
        while not (segment.last or self._is_enough(segment)):
            start = segment.ends[-1] if segment.ends else 0
            _make_room(segment, max(start + need, segment.size_bytes + 1))
            began = time.perf_counter_ns()
            seconds = GATHER_SECONDS if segment.ends else None
            got = self._fifo.readinto(segment.buffer.view[segment.size_bytes :], seconds)
            spent = time.perf_counter_ns() - began
            segment.read_ns += spent
            self.read_ns += spent
            if got is None:
                if segment.ends and self._full.empty():
                    return
                continue
            self.read_bytes += got
            segment.size_bytes += got
            segment.last = not got
            need = self._scan(segment, start)
        if segment.last:
            self._finish(segment)

    def _is_enough(self, segment: Segment) -> bool:
        if not segment.ends:
            return False
        wanted = ENOUGH_BYTES if self._full.empty() else segment.buffer.size_bytes * 3 // 4
        return segment.size_bytes >= wanted

    def _scan(self, segment: Segment, start: int) -> int:
        try:
            data = segment.buffer.view[: segment.size_bytes]
            return segment.framing.scan(data, start, segment.ends)
        except BrokenRecord as error:
            at = segment.offset_bytes + error.offset_bytes
            raise BrokenRecord(error.reason, at) from None

    def _finish(self, segment: Segment) -> None:
        start = segment.ends[-1] if segment.ends else 0
        left = segment.size_bytes - start
        if left and self._settings.record_format == "TextLine":
            _make_room(segment, segment.size_bytes + 1)
            segment.buffer.view[segment.size_bytes] = ord("\n")
            segment.size_bytes += 1
            segment.ends.append(segment.size_bytes)
        elif left:
            at = segment.offset_bytes + start
            raise BrokenRecord(
                f"Truncated record: the epoch ends {left} bytes after its start.", at
            )


def _make_room(segment: Segment, size_bytes: int) -> None:
    """See that the buffer holds ``size_bytes``: one that does not is replaced by a larger one."""
    old = segment.buffer
    if size_bytes <= old.size_bytes:
        return
    segment.buffer = Buffer(max(size_bytes, 2 * old.size_bytes))
    segment.buffer.view[: segment.size_bytes] = old.view[: segment.size_bytes]
