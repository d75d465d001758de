"""Deals the records of one epoch out to the ranks of a host, each of which has a FIFO of its own.

Rank r of n gets the records r, r + n, r + 2n, ...: all records once, and counts that differ by one
at most, so that ranks which train in step end together. The framing is told by the first bytes:
RecordIO by its magic number, TFRecord by the checksum of its first length, anything else is lines.
"""

from __future__ import annotations

import logging
import os
import select
import struct
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sm_runtime.channels.read_ahead import ClosedError
from sm_runtime.channels.recordio import FIRST, MAGIC, MIDDLE
from sm_runtime.job.errors import DataError
from sm_runtime.records import masked_checksum

if TYPE_CHECKING:
    from sm_runtime.channels.coding import Buffer
    from sm_runtime.channels.epoch_fifos import EpochFifo

log = logging.getLogger(__name__)

_QUEUED_BYTES = 4 << 20
"""How far one rank may be behind the others before they wait for it."""
_HEAD_BYTES = 12
_TICK_SECONDS = 0.02
_PATIENCE_SECONDS = 30.0


class Rank:
    """The FIFO of one rank, and what is on its way to it."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd, self.path = fd, path
        self.queue = bytearray()
        self.is_open = self.is_gone = False
        self._poll = select.poll()
        self._poll.register(fd, 0)

    def send(self) -> None:
        """Write what the FIFO takes now."""
        if not self.is_open:
            self.is_open = not self._poll.poll(0)  # an error is reported as long as nobody reads
        if self.is_gone:
            self.queue.clear()
        if self.is_gone or not self.is_open:
            return
        sent = 0
        try:
            with memoryview(self.queue) as view:
                while sent < len(view):
                    sent += os.write(self.fd, view[sent:])
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.is_gone = True
            sent = len(self.queue)
        del self.queue[:sent]


class Ranks:
    """Writes records to the FIFOs in turn; ``wakeup`` is readable when all has to end."""

    def __init__(self, door: EpochFifo, wakeup: int) -> None:
        self._name, self._wakeup = f"channel {door.channel.name}", wakeup
        self._ranks = [Rank(fd, path) for fd, path in zip(door.fds, door.paths, strict=True)]
        self._shut = door.shut
        self._turn = 0
        self._rest = bytearray()
        self._needed = _HEAD_BYTES
        self._split: Callable[[], None] | None = None
        self.sent_bytes = 0

    def write(self, buffers: Iterable[Buffer]) -> None:
        """Deal the records of ``buffers``, the next bytes of the epoch, out.

        Raises BrokenPipeError when all ranks have gone, ClosedError.
        """
        for buffer in buffers:
            self._rest += buffer
            self.sent_bytes += len(buffer)
            if len(self._rest) >= self._needed:
                self._deal()
                self._send(_QUEUED_BYTES)

    def end(self) -> None:
        """Send what is left; raise DataError where the data ends inside a record."""
        if self._rest:
            self._deal()
        if self._rest and self._split != self._lines:
            raise DataError(f"{self._name}: the data ends inside a record")
        self._ranks[self._turn].queue += self._rest  # a last line without its end
        self._send(0, is_end=True)

    def _deal(self) -> None:
        if self._split is None:
            self._split = self._framing()
        self._split()

    def _framing(self) -> Callable[[], None]:
        head = bytes(self._rest[:_HEAD_BYTES])
        if head[:4] == MAGIC.to_bytes(4, "little"):
            return self._recordio
        if len(head) == _HEAD_BYTES and masked_checksum(head[:8]).to_bytes(4, "little") == head[8:]:
            return self._tfrecord
        return self._lines

    def _lines(self) -> None:
        self._needed = 1
        *lines, rest = self._rest.split(b"\n")
        count = len(self._ranks)
        for offset in range(min(count, len(lines))):
            mine = lines[offset::count]
            self._ranks[(self._turn + offset) % count].queue += b"\n".join(mine) + b"\n"
        self._turn = (self._turn + len(lines)) % count
        self._rest = rest

    def _tfrecord(self) -> None:
        head = struct.Struct("<Q").unpack_from
        start, total = 0, len(self._rest)
        with memoryview(self._rest) as data:
            while start + _HEAD_BYTES <= total:
                end = start + head(data, start)[0] + 16
                if end > total:
                    break
                self._ranks[self._turn].queue += data[start:end]
                self._turn = (self._turn + 1) % len(self._ranks)
                start = end
            else:
                end = start + _HEAD_BYTES
        self._keep(start, end - start)

    def _recordio(self) -> None:
        head = struct.Struct("<II").unpack_from
        start, total = 0, len(self._rest)
        with memoryview(self._rest) as data:
            while start + 8 <= total:
                magic, word = head(data, start)
                if magic != MAGIC:
                    raise DataError(f"{self._name}: a RecordIO record without its magic number")
                length = word & 0x1FFFFFFF
                end = start + 8 + length + (-length & 3)
                if end > total:
                    break
                self._ranks[self._turn].queue += data[start:end]
                if word >> 29 not in (FIRST, MIDDLE):
                    self._turn = (self._turn + 1) % len(self._ranks)
                start = end
            else:
                end = start + 8
        self._keep(start, end - start)

    def _keep(self, start: int, needed: int) -> None:
        """Keep the beginning of a record until all of it is there."""
        del self._rest[:start]
        self._needed = needed

    def _send(self, allowed_bytes: int, *, is_end: bool = False) -> None:
        """Write until no rank has more than ``allowed_bytes`` to come; at the end each sees it."""
        began, warned = time.monotonic(), False
        late = self._ranks
        while late:
            for rank in late:
                rank.send()
            if all(rank.is_gone for rank in self._ranks):
                raise BrokenPipeError
            if is_end:
                for rank in late:
                    if rank.is_gone or (rank.is_open and not rank.queue):
                        self._shut(rank.path)
                        rank.is_gone = True
                late = [rank for rank in late if not rank.is_gone]
            else:
                late = [rank for rank in late if len(rank.queue) > allowed_bytes]
            closed = [rank.path for rank in late if not rank.is_open]
            if closed and not warned and time.monotonic() - began > _PATIENCE_SECONDS:
                warned = True
                log.warning("%s: nobody has opened %s", self._name, ", ".join(closed))
            if late:
                self._wait(late, ticks=bool(closed))

    def _wait(self, late: list[Rank], *, ticks: bool) -> None:
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        for rank in late:
            if rank.is_open:
                poll.register(rank.fd, select.POLLOUT)
        for fd, _ in poll.poll(_TICK_SECONDS * 1000 if ticks else None):
            if fd == self._wakeup:
                raise ClosedError
