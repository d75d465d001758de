"""Writes one epoch of a Pipe channel into its FIFO."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sm_runtime.channels.coding import Buffer, coding
from sm_runtime.channels.epoch_fifos import EpochFifo
from sm_runtime.channels.objects import OriginOf
from sm_runtime.channels.read_ahead import ClosedError, ReadAhead

if TYPE_CHECKING:
    from sm_runtime.channels.epochs import Piece
    from sm_runtime.channels.ranks import Ranks

log = logging.getLogger(__name__)

_GATHERED_BYTES = 1 << 20
_GATHERED = 256  # buffers for one writev; the kernel takes 1024


class Pipe:
    """The writing end of a FIFO; ``wakeup`` becomes readable when all has to end."""

    def __init__(self, fd: int, wakeup: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._poll.register(wakeup, select.POLLIN)
        self._wakeup = wakeup
        self.sent_bytes = 0

    def write(self, buffers: Iterable[Buffer]) -> None:
        """Write all of ``buffers``, however long that takes.

        Raises BrokenPipeError when the reader has gone, ClosedError.
        """
        gathered: list[Buffer] = []
        total = 0
        for buffer in buffers:
            gathered.append(buffer)
            total += len(buffer)
            if total >= _GATHERED_BYTES or len(gathered) >= _GATHERED:
                self._write(gathered)
                gathered, total = [], 0
        self._write(gathered)

    def end(self) -> None:
        """Do what is to be done after the last byte: nothing."""

    def _write(self, buffers: list[Buffer]) -> None:
        first = 0
        while first < len(buffers):
            try:
                count = os.writev(self._fd, buffers[first:] if first else buffers)
            except BlockingIOError:
                self._wait()
                continue
            self.sent_bytes += count
            while first < len(buffers) and count >= len(buffers[first]):
                count -= len(buffers[first])
                first += 1
            if count:
                buffers[first] = memoryview(buffers[first])[count:]

    def _wait(self) -> None:
        if any(fd == self._wakeup for fd, _ in self._poll.poll()):
            raise ClosedError


class Feed:
    """One epoch on its way from its objects to whoever has opened its FIFO."""

    def __init__(
        self,
        door: EpochFifo,
        pieces: Iterator[Piece],
        origin_of: OriginOf,
        allowed_bytes: Callable[[], int],
        wakeup: int,
    ) -> None:
        self.door = door
        self.name = f"{door.channel.name}_{door.epoch}"
        self.sent_bytes = 0
        self._wakeup = wakeup
        self._ahead = ReadAhead(pieces, origin_of, allowed_bytes)

    def run(self) -> bool:
        """Feed the epoch to its end, or until its reader has gone; return whether that was early.

        Raises DataError where the source fails, ClosedError.
        """
        channel, began = self.door.channel, time.monotonic()
        out = self._out()
        try:
            with ExitStack() as undo:
                code = coding(channel, undo)
                while parts := self._ahead.ready(_GATHERED_BYTES):
                    out.write(code(parts))
                    self._ahead.release(parts)
                out.end()
        except BrokenPipeError:
            return True
        finally:
            self.sent_bytes = out.sent_bytes
        rate = out.sent_bytes / max(time.monotonic() - began, 1e-6) / 1e6
        log.debug("%s: %d bytes at %.1f MB/s", self.name, out.sent_bytes, rate)
        return False

    def close(self) -> None:
        """Have ``run`` end soon, from any thread."""
        self._ahead.close()

    def join(self, until: float) -> bool:
        """Wait for the threads after ``close``; return whether all have ended."""
        return self._ahead.join(max(0.0, until - time.monotonic()))

    def _out(self) -> Pipe | Ranks:
        door = self.door
        if not door.is_ranked:
            return Pipe(door.fds[0], self._wakeup)
        from sm_runtime.channels.ranks import Ranks

        return Ranks(door, self._wakeup)
