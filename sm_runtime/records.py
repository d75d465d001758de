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
import time
from collections.abc import Iterator, Mapping

from sm_runtime.pipe_mode import CorruptedError, PipeError
from sm_runtime.pipe_mode.framing import Lines, Readable, RecordIO, TFRecords, batches, records
from sm_runtime.pipe_mode.framing import masked_crc32c as masked_checksum

__all__ = [
    "CorruptedError", "PipeError", "lines", "lines_batches", "masked_checksum", "open_channel",
    "recordio", "recordio_batches", "tfrecord", "tfrecord_batches",
]  # fmt: skip

WAIT_SECONDS = 600.0
PIPE_BYTES = 1 << 20
_POLL_SECONDS = 0.02


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
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return io.FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def tfrecord(stream: Readable, *, check_data: bool = False) -> Iterator[bytes]:
    """Yield the records of a TFRecord stream; raise CorruptedError where it is damaged.

    The checksums of the lengths are checked; ``check_data`` checks those of the data as well, in
    plain Python, which is slow.
    """
    return records(stream, TFRecords(check_data=check_data))


def recordio(stream: Readable, *, join: bytes = b"") -> Iterator[bytes]:
    """Yield the records of a RecordIO stream; raise CorruptedError where it is damaged.

    The parts of a split record are put together with ``join`` between them: nothing, as SageMaker
    splits long ones; the magic number (``bytes.fromhex("0a23d7ce")``) in files of dmlc's writers.
    """
    return records(stream, RecordIO(join))


def lines(stream: Readable) -> Iterator[bytes]:
    r"""Yield the lines of a stream without their ``\n``; a ``\r`` stays."""
    return records(stream, Lines())


def tfrecord_batches(stream: Readable, *, check_data: bool = False) -> Iterator[list[memoryview]]:
    """Yield lists of the records of a TFRecord stream; see ``tfrecord``."""
    framing = TFRecords(check_data=check_data)
    for data, ends in batches(stream, framing):
        yield framing.cut(data, 0, ends)


def recordio_batches(stream: Readable, *, join: bytes = b"") -> Iterator[list[memoryview]]:
    """Yield lists of the records of a RecordIO stream; see ``recordio``."""
    framing = RecordIO(join)
    for data, ends in batches(stream, framing):
        yield framing.cut(data, 0, ends)


def lines_batches(stream: Readable) -> Iterator[list[bytes]]:
    r"""Yield lists of the lines of a stream without their ``\n``."""
    framing = Lines()
    for data, ends in batches(stream, framing):
        yield framing.cut(data, 0, ends)


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
