"""The FIFOs of Pipe channels: which ones there are, and whether one has been opened."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import select
import stat
import threading
from collections.abc import Iterable, Iterator

from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel

log = logging.getLogger(__name__)

EPOCHS_AHEAD = 32
"""How many epochs after the last one that was opened have a FIFO already."""
_MOST_DOORS = 256  # of one channel; the oldest that nobody has opened go first
_PIPE_BYTES = 1 << 20  # the most that /proc/sys/fs/pipe-max-size allows by default
_NAME = re.compile(r"(\d{1,9})(?:\.rank\d{1,9})?", re.ASCII)


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
        """Return the doors that were opened since the last call; whoever gets one closes it."""
        self._adopt()
        # Asked for no event, the poll reports those in error only: they have no reader.
        unread = self._poll.poll(0)
        if len(unread) == len(self._by_fd):
            return []
        silent = {fd for fd, _ in unread}
        doors = {id(door): door for fd, door in self._by_fd.items() if fd not in silent}
        for door in doors.values():
            self._forget(door)
            self._open.add((door.channel.name, door.epoch))
            self._extend(door.channel, door.epoch + 1)
            door.widen()
        return list(doors.values())

    def ended(self, door: EpochFifo) -> None:
        """Close a door that was opened."""
        with self._lock:
            door.close()
            self._open.discard((door.channel.name, door.epoch))

    def close(self) -> None:
        """Take all FIFOs away that nobody has opened."""
        for doors in self._waiting.values():
            for door in list(doors.values()):
                self._forget(door)
                door.close()

    def _extend(self, channel: Channel, first: int) -> None:
        """Have the FIFOs of the epochs from ``first`` on."""
        for epoch in range(first, first + EPOCHS_AHEAD):
            self._add(channel, epoch, needed=epoch == 0)
        waiting = self._waiting[channel.name]
        for epoch in sorted(waiting)[: max(0, len(waiting) - _MOST_DOORS)]:
            door = waiting[epoch]
            self._forget(door)
            door.close()

    def _add(self, channel: Channel, epoch: int, *, needed: bool) -> None:
        waiting = self._waiting[channel.name]
        if epoch in waiting or (channel.name, epoch) in self._open:
            return
        try:
            door = waiting[epoch] = EpochFifo(channel, epoch, self._ranks)
        except DataError as error:
            if needed:
                raise
            log.debug("%s: this epoch cannot be read", error)  # 'train_1' may be a channel as well
            return
        for fd in door.fds:
            self._by_fd[fd] = door
            self._poll.register(fd, 0)

    def _forget(self, door: EpochFifo) -> None:
        for fd in door.fds:
            del self._by_fd[fd]
            self._poll.unregister(fd)
        del self._waiting[door.channel.name][door.epoch]

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
