"""Reads records from Pipe channels, and from files, without TensorFlow.

    from sm_runtime.records import open_channel, tfrecord

    with open_channel("train", epoch=0) as stream:
        for record in tfrecord(stream):
            ...

``tfrecord``, ``recordio`` and ``lines`` yield each record as ``bytes``. Their ``..._batches`` yield
lists of ``memoryview``, as many records as have arrived: nothing is copied, and a list is valid
until the next one is asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import select
import struct
import time
from collections.abc import Iterator, Mapping

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from typing import Protocol

    class Stream(Protocol):
        """What is read from: an unbuffered stream, as ``open_channel`` returns."""

        def readinto(self, buffer: memoryview, /) -> int | None:
            """Fill the start of ``buffer`` and return how many bytes, 0 at the end."""


__all__ = [
    "CorruptedError", "PipeError", "lines", "lines_batches", "open_channel", "recordio",
    "recordio_batches", "tfrecord", "tfrecord_batches",
]  # fmt: skip

WAIT_SECONDS = 600.0
BUFFER_BYTES = 1 << 20
_POLL_SECONDS = 0.02
_MAGIC = 0xCED7230A
_CRC_CACHE = 4096


class PipeError(Exception):
    """A channel cannot be read in Pipe mode: ``str()`` says why."""


class CorruptedError(Exception):
    """The data is not what its format says; ``str()`` has the position."""


def open_channel(
    name: str,
    epoch: int = 0,
    *,
    rank: int | None = None,
    timeout_seconds: float = WAIT_SECONDS,
    environ: Mapping[str, str] | None = None,
) -> io.FileIO:
    """Open epoch ``epoch`` of a Pipe channel; ``rank`` where each local rank has its own FIFO.

    Returns when there is something to read, unbuffered. Raises PipeError at once for an unknown
    channel or one in another mode, and TimeoutError when nothing comes for ``timeout_seconds``.
    """
    environ = os.environ if environ is None else environ
    folder = _check(name, environ)
    path = os.path.join(folder, f"{name}_{epoch}" + ("" if rank is None else f".rank{rank}"))
    until = time.monotonic() + timeout_seconds
    descriptor = _appear(path, until, timeout_seconds)
    try:
        # Data, or the end of a writer: without one there is neither.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError(f"{path}: no data came for {timeout_seconds:g} s")
        os.set_blocking(descriptor, True)
        with contextlib.suppress(OSError):  # over an ordinary user's limit
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, BUFFER_BYTES)
        return io.FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def tfrecord(stream: Stream, *, check_data: bool = False) -> Iterator[bytes]:
    """Yield the records of a TFRecord stream; raise CorruptedError where it is damaged.

    The checksums of the lengths are checked; ``check_data`` checks those of the data as well, in
    plain Python, which is slow.
    """
    for batch in tfrecord_batches(stream, check_data=check_data):
        for record in batch:
            yield bytes(record)


def recordio(stream: Stream, *, join: bytes = b"") -> Iterator[bytes]:
    """Yield the records of a RecordIO stream; raise CorruptedError where it is damaged.

    The parts of a split record are put together with ``join`` between them: nothing, as SageMaker
    splits long ones; the magic number (``bytes.fromhex("0a23d7ce")``) in files of dmlc's writers.
    """
    for batch in recordio_batches(stream, join=join):
        for record in batch:
            yield bytes(record)


def lines(stream: Stream) -> Iterator[bytes]:
    r"""Yield the lines of a stream without their ``\n``; a ``\r`` stays."""
    for batch in lines_batches(stream):
        yield from batch


def tfrecord_batches(stream: Stream, *, check_data: bool = False) -> Iterator[list[memoryview]]:
    """Yield lists of the records of a TFRecord stream; see ``tfrecord``."""
    window = _Window(stream)
    head = struct.Struct("<QI").unpack_from
    sums: dict[int, int] = {}
    known = sums.get
    while window.more():
        view, position, end = window.view, window.start, window.end
        batch: list[memoryview] = []
        append = batch.append
        while end - position >= 12:
            length, checksum = head(view, position)
            if known(length) != checksum:
                _check_length(sums, length, checksum, window.offset + position)
            after = position + length + 16
            if after > end:
                window.want(after - position)
                break
            record = view[position + 12 : after - 4]
            if (
                check_data
                and masked_checksum(record).to_bytes(4, "little") != view[after - 4 : after]
            ):
                raise CorruptedError(
                    f"byte {window.offset + position}: the checksum of a TFRecord is wrong"
                )
            append(record)
            position = after
        window.start = position
        if batch:
            yield batch
    window.check_end("TFRecord")


def recordio_batches(stream: Stream, *, join: bytes = b"") -> Iterator[list[memoryview]]:
    """Yield lists of the records of a RecordIO stream; see ``recordio``."""
    window = _Window(stream)
    head = struct.Struct("<II").unpack_from
    parts: list[bytes] = []
    while window.more():
        view, position, end = window.view, window.start, window.end
        batch: list[memoryview] = []
        while end - position >= 8:
            magic, word = head(view, position)
            if magic != _MAGIC:
                raise CorruptedError(
                    f"byte {window.offset + position}: the magic number is {magic:#x}, not"
                    f" {_MAGIC:#x}"
                )
            length, flag = word & 0x1FFFFFFF, word >> 29
            after = position + 8 + length + (-length & 3)
            if after > end:
                window.want(after - position)
                break
            payload = view[position + 8 : position + 8 + length]
            if (flag in (2, 3)) != bool(parts) or flag > 3:
                raise CorruptedError(
                    f"byte {window.offset + position}: part {flag} of a record is out of order"
                )
            if not flag:
                batch.append(payload)
            else:
                parts.append(bytes(payload))
                if flag == 3:
                    batch.append(memoryview(join.join(parts)))
                    parts = []
            position = after
        window.start = position
        if batch:
            yield batch
    window.check_end("RecordIO")
    if parts:
        raise CorruptedError(f"byte {window.offset}: the last part of a RecordIO record is missing")


def lines_batches(stream: Stream) -> Iterator[list[bytes]]:
    r"""Yield lists of the lines of a stream without their ``\n``."""
    rest = b""
    view = memoryview(bytearray(BUFFER_BYTES))
    while count := stream.readinto(view) or 0:
        *batch, rest = (rest + view[:count]).split(b"\n")
        if batch:
            yield batch
    if rest:
        yield [rest]


class _Window:
    """What of a stream is in memory: ``view[start:end]``, from byte ``offset + start`` on.

    What is left of a record at the end of the buffer moves to the start of it.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.view = memoryview(bytearray(BUFFER_BYTES))
        self.start = self.end = self.offset = 0
        self._wanted = 0

    def want(self, count: int) -> None:
        """Have ``more`` return with at least ``count`` bytes."""
        self._wanted = count

    def more(self) -> bool:
        """Read on; return False at the end of the stream."""
        left = self.end - self.start
        old, view = self.view, self.view
        if self._wanted > len(old):
            view = self.view = memoryview(bytearray(self._wanted))
        if self.start or view is not old:
            view[:left] = old[self.start : self.end]
        self.offset += self.start
        self.start, self.end = 0, left
        count = 0
        while self.end == left or self.end < self._wanted:
            count = self._stream.readinto(view[self.end :]) or 0
            if not count:
                break
            self.end += count
        self._wanted = 0
        return count > 0

    def check_end(self, kind: str) -> None:
        """Raise CorruptedError where the stream has ended inside a record."""
        if self.end > self.start:
            raise CorruptedError(
                f"byte {self.offset + self.start}: the stream ends inside a {kind} record"
            )


def _check(name: str, environ: Mapping[str, str]) -> str:
    """Return the folder of the FIFOs; raise PipeError where ``name`` is no Pipe channel."""
    base = os.path.abspath(environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml")
    channels = _described(environ, os.path.join(base, "input/config/inputdataconfig.json"))
    if channels is not None:
        if name not in channels:
            known = ", ".join(sorted(channels)) or "none"
            raise PipeError(f"there is no channel {name!r}; the channels are: {known}")
        described = channels[name]
        mode = described.get("TrainingInputMode") if isinstance(described, dict) else None
        if isinstance(mode, str) and mode.lower() != "pipe":
            where = environ.get(
                f"SM_CHANNEL_{name.upper()}", os.path.join(base, "input/data", name)
            )
            raise PipeError(
                f"channel {name!r} is in {mode} mode, not Pipe: its files are in {where}"
            )
    return os.path.join(environ.get("SM_INPUT_DIR") or os.path.join(base, "input"), "data")


def _described(environ: Mapping[str, str], path: str) -> Mapping[str, object] | None:
    """Return what is known about the channels: from variables, else from the file."""
    try:
        text = environ.get("SM_INPUT_DATA_CONFIG")
        if text:
            config = json.loads(text)
        else:
            with open(path, encoding="utf-8") as file:
                config = json.load(file)
        names = json.loads(environ.get("SM_CHANNELS") or "[]")
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or not isinstance(names, list):
        return None
    return {**{str(name): {} for name in names}, **config}


def _appear(path: str, until: float, seconds: float) -> int:
    """Return the FIFO at ``path`` opened for reading, as soon as it is there."""
    bell = select.poll()
    while True:
        try:
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{path} did not appear for {seconds:g} s") from None
            bell.poll(min(left, _POLL_SECONDS) * 1000)


def _check_length(sums: dict[int, int], length: int, checksum: int, position: int) -> None:
    """Compare the checksum of a length, and remember it: most records are of a few lengths."""
    if masked_checksum(length.to_bytes(8, "little")) != checksum:
        raise CorruptedError(f"byte {position}: the checksum of a TFRecord's length is wrong")
    if len(sums) >= _CRC_CACHE:
        sums.clear()
    sums[length] = checksum


_TABLE: list[int] = []


def masked_checksum(data: bytes | memoryview) -> int:
    """Return the masked CRC-32C of TFRecord files."""
    if not _TABLE:
        for byte in range(256):
            for _ in range(8):
                byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
            _TABLE.append(byte)
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return (crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF
