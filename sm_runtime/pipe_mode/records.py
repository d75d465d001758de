"""A plain reader of the records of a Pipe channel, with the arguments of ``PipeModeDataset``.

``Fifo`` waits with a deadline, and can be stopped from another thread; a regular file in the place
of a FIFO is read to its end.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sm_runtime.pipe_mode import PipeModeDatasetException
from sm_runtime.pipe_mode.framing import framing, records

if TYPE_CHECKING:
    from sm_runtime.job.model import Json

FORMATS = ("RecordIO", "TFRecord", "TextLine")
CHANNELS = "SM_INPUT_DATA_CONFIG"
"""The variable of a job that describes its channels, as ``inputdataconfig.json`` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A Pipe channel, and how it is to be read."""

    channel: str
    record_format: str
    """``RecordIO``, ``TFRecord`` or ``TextLine``."""
    state_dir: str
    """Where the number of the next epoch is kept; it is made with the first record."""
    pipe_dir: str
    """Where ``<channel>_<epoch>`` is, a FIFO or a file."""
    timeout_seconds: float
    """How long that may take to appear, and a FIFO to be written to."""


def read_records(
    channel: str,
    record_format: str = "RecordIO",
    *,
    state_dir: str | None = None,
    pipe_dir: str | None = None,
    config_dir: str | None = None,
    timeout_seconds: float = 120.0,
) -> Iterator[bytes]:
    """Return an iterator over the records of the channel's next epoch.

    The arguments and the state are those of ``PipeModeDataset``: both can be used in turns. The
    epoch is taken with the first record; to close the iterator early ends it. Of TFRecords the
    CRCs of the data are not checked. Raises PipeModeDatasetException and FileNotFoundError at
    once; with the records come CorruptedError, TimeoutError, ValueError and OSError.
    """
    if record_format not in FORMATS:
        raise PipeModeDatasetException(f"Invalid record format: {record_format}")
    settings = find(
        channel,
        record_format,
        state_dir=state_dir,
        pipe_dir=pipe_dir,
        config_dir=config_dir,
        timeout_seconds=timeout_seconds,
    )
    return _records(settings)


def _records(settings: Settings) -> Iterator[bytes]:
    epoch = take_epoch(settings.state_dir, settings.channel)
    fifo = Fifo(os.path.join(settings.pipe_dir, f"{settings.channel}_{epoch}"))
    try:
        fifo.open(settings.timeout_seconds)
        yield from records(fifo, framing(settings.record_format))
    finally:
        fifo.close()


def find(
    channel: str,
    record_format: str,
    *,
    state_dir: str | os.PathLike[str] | None,
    pipe_dir: str | os.PathLike[str] | None,
    config_dir: str | os.PathLike[str] | None,
    timeout_seconds: float,
) -> Settings:
    """Return the settings of a channel that exists and is in Pipe mode; nothing is changed.

    Folders that are None are those of the job: below ``$SAGEMAKER_BASE_DIR``, else ``/opt/ml``.
    Without ``config_dir`` the channels are those of ``$SM_INPUT_DATA_CONFIG``, else of the file.
    Raises FileNotFoundError where there is no ``inputdataconfig.json``, and
    PipeModeDatasetException.
    """
    base = os.path.abspath(os.environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml")
    folder = os.fspath(config_dir) if config_dir else os.path.join(base, "input", "config")
    path = os.path.join(folder, "inputdataconfig.json")
    text = None if config_dir else os.environ.get(CHANNELS)
    channels = _described(text, CHANNELS) if text else _read(path)
    found = Settings(
        channel=channel,
        record_format=record_format,
        state_dir=os.fspath(state_dir) if state_dir else os.path.join(base, "pipe_state"),
        pipe_dir=os.fspath(pipe_dir) if pipe_dir else os.path.join(base, "input", "data"),
        timeout_seconds=timeout_seconds,
    )
    _check(found, channels, CHANNELS if text else path)
    return found


def _read(path: str) -> Mapping[str, Json]:
    with open(path, encoding="utf-8") as file:
        return _described(file.read(), path)


def _described(text: str, origin: str) -> Mapping[str, Json]:
    try:
        channels = json.loads(text)
    except ValueError as error:
        raise PipeModeDatasetException(f"{origin} is not JSON: {error}") from None
    if not isinstance(channels, dict):
        raise PipeModeDatasetException(f"{origin} is not a JSON object")
    return channels


def _check(settings: Settings, channels: Mapping[str, Json], origin: str) -> None:
    name = settings.channel
    if name not in channels:
        known = ", ".join(sorted(channels)) or "none"
        raise PipeModeDatasetException(
            f"Channel {name} not found in Training Job InputDataConfig"
            f" ({origin} has these channels: {known})"
        )
    described = channels[name]
    mode = described.get("TrainingInputMode", "") if isinstance(described, dict) else ""
    if str(mode).lower() != "pipe":
        raise PipeModeDatasetException(
            f"Channel {name} is not a PipeMode channel (its TrainingInputMode is {mode!r} in"
            f" {origin}; read the files in {os.path.join(settings.pipe_dir, name)} instead)"
        )


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
