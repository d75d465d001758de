"""The FIFOs of Pipe channels: which ones there are, whether one has been opened, how it is written.

Where each rank of a host has a FIFO of its own, rank r of n gets the records r, r + n, r + 2n, ...:
all records once, and counts that differ by one at most, so that ranks which train in step end
together. The framing is told by the first bytes: RecordIO by its magic number, TFRecord by the
checksum of its first length, anything else is lines.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import select
import stat
import threading
import time
from array import array
from collections.abc import Iterable, Iterator

from sm_runtime.channels.coding import Buffer
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel
from sm_runtime.pipe_mode import CorruptedError
from sm_runtime.pipe_mode.framing import MAGIC, Framing, Lines, RecordIO, TFRecords, masked_crc32c
from sm_runtime.storage.threads import Stopped

log = logging.getLogger(__name__)

EPOCHS_AHEAD = 32
"""How many epochs after the last one that was opened have a FIFO already."""
_MOST_FIFOS = 256  # of one channel; the oldest that nobody has opened go first
_PIPE_BYTES = 1 << 20  # the most that /proc/sys/fs/pipe-max-size allows by default
_NAME = re.compile(r"(\d{1,9})(?:\.rank\d{1,9})?", re.ASCII)
GATHERED_BYTES = 1 << 20
_GATHERED = 256  # buffers for one writev; the kernel takes 1024
_QUEUED_BYTES = 4 << 20
"""How far one rank may be behind the others before they wait for it."""
_HEAD_BYTES = 12
_TICK_SECONDS = 0.02
_PATIENCE_SECONDS = 30.0


class EpochFifo:
    """The FIFO of one epoch, or one for each rank of this host; we hold the writing ends."""

    def __init__(self, channel: Channel, epoch: int, ranks: int | None) -> None:
        self.channel, self.epoch, self.is_ranked = channel, epoch, ranks is not None
        path = f"{channel.path}_{epoch}"
        self.paths = [path] if ranks is None else [f"{path}.rank{n}" for n in range(ranks)]
        self._made: dict[str, int] = {}
        try:
            for each in self.paths:
                self._make(each)
        except OSError as error:
            self.close()
            raise DataError(f"channel {channel.name}: {path}: {error.strerror}") from None
        self.fds = tuple(self._made.values())

    def _make(self, path: str) -> None:
        try:
            os.mkfifo(path)
        except FileExistsError:
            if not stat.S_ISFIFO(os.lstat(path).st_mode):
                raise
        # A writer alone may not open a FIFO without waiting for a reader: we are both for a moment.
        both = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._made[path] = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(both)

    def widen(self) -> None:
        """Give the FIFOs more room than the default of 64 KiB, where that is allowed."""
        for fd in self.fds:
            with contextlib.suppress(OSError):  # over an ordinary user's limit
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def shut(self, path: str) -> None:
        """Take a FIFO away, then let its reader see the end: none opens it again after that."""
        if (fd := self._made.pop(path, -1)) >= 0:
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(fd)

    def close(self) -> None:
        """Shut all that are left."""
        for path in list(self._made):
            self.shut(path)


class EpochFifos:
    """All FIFOs that wait for a reader. Used by one thread, but for ``ended``.

    One that another process makes is fed, too: ``mkfifo train_500`` is how to get an epoch that is
    far ahead.
    """

    def __init__(self, channels: Iterable[Channel], ranks: int | None) -> None:
        self._ranks = ranks
        self._channels = tuple(channels)
        self._waiting: dict[str, dict[int, EpochFifo]] = {c.name: {} for c in self._channels}
        self._by_fd: dict[int, EpochFifo] = {}
        self._open: set[tuple[str, int]] = set()
        self._poll = select.poll()
        self._stamps: dict[str, int] = {}
        self._lock = threading.Lock()
        try:
            for channel in self._channels:
                self._sweep(channel)
                self._extend(channel, 0)
        except BaseException:
            self.close()
            raise

    def opened(self) -> list[EpochFifo]:
        """Return the FIFOs that were opened since the last call; see ``ended``."""
        self._adopt()
        # Asked for no event, the poll reports those in error only: they have no reader.
        unread = self._poll.poll(0)
        if len(unread) == len(self._by_fd):
            return []
        silent = {fd for fd, _ in unread}
        fifos = {id(fifo): fifo for fd, fifo in self._by_fd.items() if fd not in silent}
        for fifo in fifos.values():
            self._forget(fifo)
            self._open.add((fifo.channel.name, fifo.epoch))
            self._extend(fifo.channel, fifo.epoch + 1)
            fifo.widen()
        return list(fifos.values())

    def ended(self, fifo: EpochFifo) -> None:
        """Close one that was opened."""
        with self._lock:
            fifo.close()
            self._open.discard((fifo.channel.name, fifo.epoch))

    def close(self) -> None:
        """Take all FIFOs away that nobody has opened."""
        for fifos in self._waiting.values():
            for fifo in list(fifos.values()):
                self._forget(fifo)
                fifo.close()

    def _extend(self, channel: Channel, first: int) -> None:
        """Have the FIFOs of the epochs from ``first`` on."""
        for epoch in range(first, first + EPOCHS_AHEAD):
            self._add(channel, epoch, needed=epoch == 0)
        waiting = self._waiting[channel.name]
        for epoch in sorted(waiting)[: max(0, len(waiting) - _MOST_FIFOS)]:
            fifo = waiting[epoch]
            self._forget(fifo)
            fifo.close()

    def _add(self, channel: Channel, epoch: int, *, needed: bool) -> None:
        waiting = self._waiting[channel.name]
        if epoch in waiting or (channel.name, epoch) in self._open:
            return
        try:
            fifo = waiting[epoch] = EpochFifo(channel, epoch, self._ranks)
        except DataError as error:
            if needed:
                raise
            log.debug("%s: this epoch cannot be read", error)  # 'train_1' may be a channel as well
            return
        for fd in fifo.fds:
            self._by_fd[fd] = fifo
            self._poll.register(fd, 0)

    def _forget(self, fifo: EpochFifo) -> None:
        for fd in fifo.fds:
            del self._by_fd[fd]
            self._poll.unregister(fd)
        del self._waiting[fifo.channel.name][fifo.epoch]

    def _sweep(self, channel: Channel) -> None:
        """Take away what an earlier job in the same folder left."""
        os.makedirs(os.path.dirname(channel.path), exist_ok=True)
        for _, path in self._fifos(channel):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _adopt(self) -> None:
        """Take on the FIFOs that another process has made."""
        for folder in {os.path.dirname(channel.path) for channel in self._channels}:
            try:
                stamp = os.stat(folder).st_mtime_ns
            except OSError:
                continue
            if self._stamps.get(folder) == stamp:
                continue
            self._stamps[folder] = stamp
            with self._lock:  # a FIFO whose epoch ends just now is not made again
                for channel in self._channels:
                    for epoch in {epoch for epoch, _ in self._fifos(channel)}:
                        self._add(channel, epoch, needed=False)

    def _fifos(self, channel: Channel) -> Iterator[tuple[int, str]]:
        folder, name = os.path.split(channel.path)
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(name + "_"):
                    match = _NAME.fullmatch(entry.name, len(name) + 1)
                    if match and stat.S_ISFIFO(entry.stat(follow_symlinks=False).st_mode):
                        yield int(match[1]), entry.path


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

        Raises BrokenPipeError when the reader has gone, Stopped.
        """
        gathered: list[Buffer] = []
        total = 0
        for buffer in buffers:
            gathered.append(buffer)
            total += len(buffer)
            if total >= GATHERED_BYTES or len(gathered) >= _GATHERED:
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
            raise Stopped


class _Rank:
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

    def __init__(self, fifo: EpochFifo, wakeup: int) -> None:
        self._name, self._wakeup = f"channel {fifo.channel.name}", wakeup
        self._ranks = [_Rank(fd, path) for fd, path in zip(fifo.fds, fifo.paths, strict=True)]
        self._shut = fifo.shut
        self._turn = 0
        self._rest = bytearray()
        self._needed = _HEAD_BYTES
        self._framing: Framing | None = None
        self.sent_bytes = 0

    def write(self, buffers: Iterable[Buffer]) -> None:
        """Deal the records of ``buffers``, the next bytes of the epoch, out.

        Raises BrokenPipeError when all ranks have gone, Stopped, and DataError where the bytes
        are no records.
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
        if self._rest and not isinstance(self._framing, Lines):
            raise DataError(f"{self._name}: the data ends inside a record")
        self._ranks[self._turn].queue += self._rest  # a last line without its end
        self._send(0, is_end=True)

    def _deal(self) -> None:
        framing = self._framing = self._framing or _framing_of(bytes(self._rest[:_HEAD_BYTES]))
        ends = array("q")
        try:
            with memoryview(self._rest) as data:
                # The beginning of a record is kept until all of it is there.
                self._needed = framing.scan(data, 0, ends)
                if not ends:
                    return
                if isinstance(framing, Lines):
                    self._deal_lines(framing.cut(data, 0, ends))
                else:
                    self._deal_records(data, ends)
        except CorruptedError as error:
            raise DataError(
                f"{self._name}: a damaged {framing.name} record: {error.reason}"
            ) from None
        del self._rest[: ends[-1]]

    def _deal_records(self, data: memoryview, ends: Iterable[int]) -> None:
        start = 0
        for end in ends:
            self._ranks[self._turn].queue += data[start:end]
            self._turn = (self._turn + 1) % len(self._ranks)
            start = end

    def _deal_lines(self, lines: list[bytes]) -> None:
        count = len(self._ranks)
        for offset in range(min(count, len(lines))):
            mine = lines[offset::count]
            self._ranks[(self._turn + offset) % count].queue += b"\n".join(mine) + b"\n"
        self._turn = (self._turn + len(lines)) % count

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

    def _wait(self, late: list[_Rank], *, ticks: bool) -> None:
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        for rank in late:
            if rank.is_open:
                poll.register(rank.fd, select.POLLOUT)
        for fd, _ in poll.poll(_TICK_SECONDS * 1000 if ticks else None):
            if fd == self._wakeup:
                raise Stopped


def _framing_of(head: bytes) -> Framing:
    """Return the framing of a stream that begins so."""
    if head[:4] == MAGIC.to_bytes(4, "little"):
        return RecordIO()
    if len(head) == _HEAD_BYTES and masked_crc32c(head[:8]).to_bytes(4, "little") == head[8:]:
        return TFRecords()
    return Lines()
