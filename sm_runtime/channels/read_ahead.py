"""Reads objects in order, many at once and large ones in ranges, into a bounded amount of memory.

The threads fetch what comes next while the parts before it are being sent, so that the store is
never idle; what they fetch is held until it is taken.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

from sm_runtime.channels.objects import OriginOf
from sm_runtime.job.errors import DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.threads import Stopped, Workers

Piece: TypeAlias = Blob | str | bytes
"""An object, the URI of one that is still to be looked up, or bytes to send as they are."""

THREADS = 16
FIRST_PART_BYTES = 1 << 18
"""The first part is small so that it is there soon; each further one is twice as large."""
PART_BYTES = 4 << 20
_REUSED_BYTES = 1 << 20
_KEPT_BUFFERS = 4
_MAX_PARTS = 512
_LOOKUPS = 64


class Part:
    """A part of an object, or all of it; ``data`` is there when ``is_done``."""

    __slots__ = ("blob", "data", "error", "is_done", "is_first", "is_last", "size_bytes")

    def __init__(self, blob: Blob | None, size_bytes: int, is_first: bool, is_last: bool) -> None:
        self.blob = blob
        self.size_bytes = size_bytes
        """The size of the whole object."""
        self.is_first, self.is_last = is_first, is_last
        self.data = memoryview(b"")
        self.is_done = False
        self.error: Exception | None = None


class Lookup:
    """An object that was asked for."""

    __slots__ = ("blob", "error", "is_done")

    def __init__(self) -> None:
        self.blob: Blob | None = None
        self.is_done = False
        self.error: Exception | None = None


class ReadAhead:
    """The parts of ``pieces`` in order; ``allowed_bytes()`` says how much memory they may take.

    One thread takes the parts with ``ready`` and gives them back with ``release``.
    """

    def __init__(
        self,
        pieces: Iterable[Piece],
        origin_of: OriginOf,
        allowed_bytes: Callable[[], int],
    ) -> None:
        self._origin_of, self._allowed_bytes = origin_of, allowed_bytes
        self._parts: deque[Part] = deque()
        self._coming = self._split(self._found(iter(pieces)))
        self._next: tuple[Part, int, int] | None = None  # what there was no room for
        self._held_bytes = 0
        self._free: list[bytearray] = []
        self._done = threading.Condition()
        self._workers = Workers(THREADS, self._stopped)
        self._is_closed = False
        self._failed: Exception | None = None

    def ready(self, most_bytes: int) -> list[Part]:
        """Wait for the next part; return it and those after it that are there, too.

        An empty list is the end. Raises DataError where the next part cannot be read, Stopped.
        """
        self._fill()
        if not self._parts:
            if self._failed:
                raise self._failed
            return []
        self._wait(self._parts[0])
        taken: list[Part] = []
        total = 0
        while self._parts and self._parts[0].is_done and total < most_bytes:
            part = self._parts[0]
            if part.error is not None:
                if taken:
                    break  # what came before it is sent first
                raise part.error
            taken.append(self._parts.popleft())
            total += len(part.data)
        return taken

    def release(self, parts: Iterable[Part]) -> None:
        """Give back what ``ready`` returned: its memory is used again."""
        for part in parts:
            buffer = part.data.obj
            part.data.release()
            if not isinstance(buffer, bytearray):
                continue
            if len(buffer) > _REUSED_BYTES and len(self._free) < _KEPT_BUFFERS:
                self._free.append(buffer)  # as good as in use
            else:
                self._held_bytes -= len(buffer)

    def close(self) -> None:
        """Stop: who waits gets Stopped; a thread that still reads ends by itself."""
        with self._done:
            self._is_closed = True
            self._done.notify_all()
        self._workers.close()

    def join(self, seconds: float) -> bool:
        """Wait for the threads after ``close``; return whether they have ended."""
        return self._workers.join(seconds)

    def _fill(self) -> None:
        """Have parts fetched as long as there is room for them."""
        while not self._failed and len(self._parts) < _MAX_PARTS:
            try:
                coming = self._next or next(self._coming, None)
            except DataError as error:
                self._failed = error  # told when the parts before it have been taken
                return
            if coming is None:
                return
            part, offset, length = self._next = coming
            if part.blob is not None:
                buffer = self._buffer(length)
                if buffer is None:
                    return
                part.data = memoryview(buffer)[:length]
                self._workers.submit(partial(self._fetch, part, offset))
            self._parts.append(part)
            self._next = None

    def _buffer(self, length: int) -> bytearray | None:
        """Return memory for a part, or None while too much is in use."""
        if length > _REUSED_BYTES and self._free and len(self._free[-1]) >= length:
            return self._free.pop()
        while self._free:
            self._held_bytes -= len(self._free.pop())
        size = length if length <= _REUSED_BYTES else max(length, self._part_bytes())
        if self._parts and self._held_bytes + size > self._allowed_bytes():
            return None
        self._held_bytes += size
        return bytearray(size)

    def _part_bytes(self) -> int:
        return max(FIRST_PART_BYTES, min(PART_BYTES, self._allowed_bytes() // 8))

    def _split(
        self, found: Iterator[Blob | bytes | None]
    ) -> Iterator[tuple[Part, int, int] | None]:
        """Yield the parts of each object, with offset and length; None where it would wait."""
        size = FIRST_PART_BYTES
        for piece in found:
            if piece is None:
                yield None
            elif isinstance(piece, bytes):
                part = Part(None, len(piece), True, True)
                part.data, part.is_done = memoryview(piece), True
                yield part, 0, len(piece)
            else:
                offset, total = 0, piece.size_bytes
                while not offset or offset < total:
                    length = min(size, total - offset)
                    end = offset + length
                    yield Part(piece, total, not offset, end == total), offset, length
                    if not total:
                        break
                    offset = end
                    size = min(2 * size, self._part_bytes())

    def _found(self, pieces: Iterator[Piece]) -> Iterator[Blob | bytes | None]:
        """Yield the pieces, URIs as the objects they name; many are looked up at once."""
        ahead: deque[Blob | bytes | Lookup] = deque()
        lookups = 0
        while True:
            while not ahead or 0 < lookups < _LOOKUPS:
                piece = next(pieces, None)
                if piece is None:
                    break
                lookups += isinstance(piece, str)
                ahead.append(self._look_up(piece) if isinstance(piece, str) else piece)
            if not ahead:
                return
            first = ahead.popleft()
            if isinstance(first, Lookup):
                while not first.is_done and self._parts:
                    yield None  # there are parts to take meanwhile
                lookups -= 1
                self._wait(first)
                if first.error is not None:
                    raise first.error
                assert first.blob is not None
                yield first.blob
            else:
                yield first

    def _look_up(self, uri: str) -> Lookup:
        lookup = Lookup()

        def ask() -> None:
            try:
                lookup.blob = self._origin_of(uri).stat(uri)
            except Exception as error:
                lookup.error = error
            self._finish(lookup)

        self._workers.submit(ask)
        return lookup

    def _fetch(self, part: Part, offset: int) -> None:
        try:
            assert part.blob is not None
            view, filled = part.data, 0
            if view:
                origin = self._origin_of(part.blob.uri)
                stopped = self._stopped
                with origin.open(part.blob, offset, len(view), stopped=stopped) as body:
                    while filled < len(view):
                        count = body.readinto(view[filled:])
                        if not count:
                            raise DataError(
                                f"{part.blob.uri} ends after {offset + filled} of"
                                f" {part.blob.size_bytes} bytes"
                            )
                        filled += count
        except Exception as error:
            part.error = error
        self._finish(part)

    def _stopped(self) -> bool:
        return self._is_closed

    def _finish(self, what: Part | Lookup) -> None:
        with self._done:
            what.is_done = True
            self._done.notify()

    def _wait(self, what: Part | Lookup) -> None:
        with self._done:
            while not what.is_done and not self._is_closed:
                self._done.wait()
            if self._is_closed:
                raise Stopped
