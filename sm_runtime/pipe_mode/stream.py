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
from array import array
from collections.abc import Callable
from queue import SimpleQueue

from sm_runtime.pipe_mode import CorruptedError
from sm_runtime.pipe_mode.framing import framing
from sm_runtime.pipe_mode.records import Fifo, Settings, Stopped, take_epoch

BUFFER_BYTES = 2 * 2**20
"""Grows where one record is larger."""
BUFFERS = 3
ENOUGH_BYTES = 2**20
"""A reader that waits gets so much, and less where nothing more comes for GATHER_SECONDS."""
GATHER_SECONDS = 0.002
LEAD_BYTES = 16
"""Room before the first record, and behind the last, for what is put around the segment."""


class Buffer:
    """Memory that is a file as well."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.file = os.memfd_create("records", os.MFD_CLOEXEC)
        os.ftruncate(self.file, size_bytes)
        self.view = memoryview(mmap.mmap(self.file, size_bytes))

    @property
    def path(self) -> str:
        """A path at which other code of this process finds the file."""
        return f"/proc/self/fd/{self.file}"

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.file)  # by a name of its own: `os` may be gone when the interpreter ends


class Segment:
    """Whole records: ``view[LEAD_BYTES : ends[-1]]``."""

    def __init__(self, buffer: Buffer, offset_bytes: int) -> None:
        self.buffer = buffer
        self.offset_bytes = offset_bytes
        """Where in the epoch the first byte of ``view`` would be."""
        self.ends: array[int] = array("q")
        self.size_bytes = LEAD_BYTES
        """With the beginning of the next record, which belongs to the next segment."""
        self.read_ns = 0
        self.problem: Exception | None = None
        """What is wrong behind the last record."""
        self.last = False

    @property
    def view(self) -> memoryview:
        """The memory; it may be written to."""
        return self.buffer.view

    @property
    def end(self) -> int:
        """Where the last record ends."""
        return self.ends[-1] if self.ends else LEAD_BYTES

    @property
    def path(self) -> str:
        """A path at which other code of this process finds the memory as a file."""
        return self.buffer.path

    def make_room(self, size_bytes: int) -> None:
        """See that the buffer holds ``size_bytes``, or replace it by a larger one."""
        old, size_bytes = self.buffer, size_bytes + LEAD_BYTES
        if size_bytes <= old.size_bytes:
            return
        self.buffer = Buffer(max(size_bytes, 2 * old.size_bytes))
        self.view[: self.size_bytes] = old.view[: self.size_bytes]

    def released(self) -> Buffer:
        """Return the buffer, for use by another segment."""
        buffer = self.buffer
        return buffer if buffer.size_bytes <= BUFFER_BYTES else Buffer(BUFFER_BYTES)


class Stream:
    """One epoch of a channel: take its segments, then close it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.epoch = take_epoch(settings.state_dir, settings.channel)
        self.path = os.path.join(settings.pipe_dir, f"{settings.channel}_{self.epoch}")
        self.read_ns = 0
        self.read_bytes = 0
        self.framing = framing(settings.record_format)
        self._fifo = Fifo(self.path)
        self._full: SimpleQueue[Segment] = SimpleQueue()
        self._free: SimpleQueue[Buffer | None] = SimpleQueue()
        self._taken: Segment | None = None
        self._thread = threading.Thread(target=self._read_all, name=self.path, daemon=True)

    def __enter__(self) -> Stream:
        for _ in range(BUFFERS):
            self._free.put(Buffer(BUFFER_BYTES))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._fifo.stop()
        self._free.put(None)
        self._thread.join()
        self._fifo.close()

    def take(self, seconds: float | None = None) -> Segment | None:
        """Return the next segment, or None at the end; it is valid until the next one is asked for.

        Raises ``queue.Empty`` where there is none after ``seconds``, CorruptedError at the place
        where the bytes are no records, TimeoutError where no writer came, ValueError where there
        is no FIFO, and OSError.
        """
        before = self._taken
        if before and not (before.problem or before.last):
            self._taken = None
            self._free.put(before.released())
            before = None
        if before is None:
            before = self._taken = self._full.get(timeout=seconds)
            if before.ends:
                return before
        if before.problem:
            raise before.problem
        return None if before.last else self.take(seconds)

    def _read_all(self) -> None:
        carried, offset, opened = b"", -LEAD_BYTES, False
        while (buffer := self._free.get()) is not None:
            segment = Segment(buffer, offset)
            try:
                if not opened:
                    self._fifo.open(self._settings.timeout_seconds)
                    opened = True
                self._fill(segment, carried)
            except Stopped:
                return
            except Exception as error:  # it is raised where the records are asked for
                segment.problem = error
            carried = bytes(segment.view[segment.end : segment.size_bytes])
            offset += segment.end - LEAD_BYTES
            ended = segment.last or segment.problem is not None
            self._full.put(segment)
            if ended:
                return

    def _fill(self, segment: Segment, carried: bytes) -> None:
        segment.make_room(LEAD_BYTES + len(carried) + 1)
        segment.view[LEAD_BYTES : LEAD_BYTES + len(carried)] = carried
        segment.size_bytes += len(carried)
        need = self._scan(segment) if carried else 0
        while not (segment.last or self._is_enough(segment)):
            segment.make_room(max(segment.end + need, segment.size_bytes + 1))
            began = time.perf_counter_ns()
            seconds = GATHER_SECONDS if segment.ends else None
            room = segment.view[segment.size_bytes : -LEAD_BYTES]
            got = self._fifo.readinto(room, seconds)
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
            if got:
                need = self._scan(segment)
        if segment.last:
            self._finish(segment)

    def _is_enough(self, segment: Segment) -> bool:
        if not segment.ends:
            return False
        wanted = ENOUGH_BYTES if self._full.empty() else segment.buffer.size_bytes * 3 // 4
        return segment.size_bytes >= wanted

    def _scan(self, segment: Segment) -> int:
        try:
            data = segment.view[: segment.size_bytes]
            return self.framing.scan(data, segment.end, segment.ends)
        except CorruptedError as error:
            at = segment.offset_bytes + error.offset_bytes
            raise CorruptedError(error.reason, at) from None

    def _finish(self, segment: Segment) -> None:
        left = segment.size_bytes - segment.end
        if left and self._settings.record_format == "TextLine":
            segment.make_room(segment.size_bytes + 1)
            segment.view[segment.size_bytes] = ord("\n")
            segment.size_bytes += 1
            segment.ends.append(segment.size_bytes)
        elif left:
            at = segment.offset_bytes + segment.end
            raise CorruptedError(
                f"Truncated record: the epoch ends {left} bytes after its start.", at
            )
