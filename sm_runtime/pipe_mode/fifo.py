"""Which FIFO of a channel is next, and its reading end.

It waits with a deadline, and can be stopped from another thread. A regular file in the place of a
FIFO is read to its end.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import time
from contextlib import suppress

PIPE_BYTES = 2**20
"""The most that an unprivileged process may ask for (``/proc/sys/fs/pipe-max-size``)."""
F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ is there on some builds of Python only
LOOK_SECONDS = 0.02


class Stopped(Exception):
    """``stop`` was called."""


class Fifo:
    """One epoch's FIFO, or a file in its place, opened for reading."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = -1
        self._first = b""
        self._stopped = False
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._stop, select.POLLIN)

    def open(self, timeout_seconds: float) -> None:
        """Wait until the FIFO is there and has a writer, or the file is there.

        Raises TimeoutError, Stopped, OSError, and ValueError where it is something else.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._opened():
            self._look_again(deadline, f"File does not exist: {self.path}", timeout_seconds)
        mode = os.fstat(self._file).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
            raise ValueError(f"{self.path} is neither a FIFO nor a file")
        self._poll.register(self._file, select.POLLIN)
        if stat.S_ISREG(mode):
            return
        while not self._has_writer():
            self._look_again(deadline, f"No process writes to {self.path}", timeout_seconds)
        with suppress(OSError):  # more than this user may have: the reads are just smaller
            fcntl.fcntl(self._file, F_SETPIPE_SZ, PIPE_BYTES)

    def _opened(self) -> bool:
        with suppress(FileNotFoundError):
            self._file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return self._file >= 0

    def _has_writer(self) -> bool:
        # Without a writer a read says "end of file", as it does after the last one has gone; poll
        # tells these two apart: its POLLHUP stays off until a writer has come and gone.
        if dict(self._poll.poll(0)).get(self._file):
            return True
        try:
            self._first = os.read(self._file, 1)  # poll saw nothing, but it may have come since
        except BlockingIOError:
            return True
        return bool(self._first)

    def _look_again(self, deadline: float, what: str, timeout_seconds: float) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} (waited {timeout_seconds:g} s)")
        self.wait(LOOK_SECONDS)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for bytes, or the end; return whether there is something. Raises Stopped."""
        ready = dict(self._poll.poll(None if seconds is None else seconds * 1000))
        if self._stop in ready:
            raise Stopped
        return bool(ready)

    def readinto(self, buffer: memoryview, seconds: float | None = None) -> int | None:
        """Fill the start of ``buffer``; return how many bytes, 0 at the end of the epoch.

        None: nothing came within ``seconds``. Raises Stopped and OSError.
        """
        if self._stopped:
            raise Stopped
        if self._first:
            buffer[:1], self._first = self._first, b""
            return 1
        try:
            return os.readv(self._file, [buffer])
        except BlockingIOError:
            if not self.wait(seconds):
                return None
        try:
            return os.readv(self._file, [buffer])
        except BlockingIOError:
            return None

    def stop(self) -> None:
        """Make a read in another thread raise Stopped."""
        self._stopped = True
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Close the FIFO: its writer is told that this epoch is done with."""
        for file in (self._file, self._stop):
            if file >= 0:
                os.close(file)
        self._file = self._stop = -1


def take_epoch(state_dir: str, channel: str) -> int:
    """Return the number of the next epoch of ``channel`` and count it as taken, under a lock.

    The files are those of ``sagemaker_tensorflow``; the folder is made if it is missing. Raises
    ValueError where the state is no number, and OSError.
    """
    os.makedirs(state_dir, exist_ok=True)
    state = _state(state_dir, channel)
    with open(os.path.join(state_dir, f".{channel}-pipe_mode-lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with open(state, encoding="ascii") as file:
                text = file.read().strip()
        except FileNotFoundError:
            text = "0"
        if not text.isdecimal():
            raise ValueError(f"{state}: {text!r} is no number of an epoch")
        # Renamed into place: a process that is killed here leaves the old number or the new one.
        with open(f"{state}.new", "w", encoding="ascii") as file:
            file.write(str(int(text) + 1))
        os.replace(f"{state}.new", state)
    return int(text)


def forget_epochs(state_dir: str, channel: str) -> None:
    """Begin anew at epoch 0; raises OSError. Nothing may be reading the channel."""
    with suppress(FileNotFoundError):
        os.unlink(_state(state_dir, channel))


def _state(state_dir: str, channel: str) -> str:
    return os.path.join(state_dir, f".{channel}-pipe_mode-state")
