"""Unpacks gzip objects while they arrive: what is compressed is never on the disk."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress

from sm_runtime.channels.objects import OriginOf
from sm_runtime.job.errors import DataError
from sm_runtime.storage import Blob, Body
from sm_runtime.storage.parts import part_of

_BUFFER_BYTES = 1 << 18
_OUTPUT_BYTES = 1 << 20
_GZIP = 31
"""zlib's name for the gzip format with the largest window."""
_AT_ONCE = 16


def fetch(
    wanted: Iterable[tuple[Blob, str]],
    origin_of: OriginOf,
    progress: Callable[[int], None],
    stopped: Callable[[], bool],
) -> None:
    """Unpack each object to its path, many at once; no path is there before it is complete.

    ``progress`` is told of the compressed bytes. Raises DataError naming the object.
    """

    def one(blob: Blob, path: str) -> None:
        if not failed:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _unpack(blob, path, origin_of, progress, lambda: failed or stopped())

    running: set[Future[None]] = set()
    failed = False
    with ThreadPoolExecutor(_AT_ONCE, "gunzip") as pool:
        try:
            for blob, path in wanted:
                if len(running) >= 2 * _AT_ONCE:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    _raise_first(done)
                running.add(pool.submit(one, blob, path))
            _raise_first(running)
        except BaseException:
            failed = True
            raise


def _raise_first(done: Iterable[Future[None]]) -> None:
    for future in done:
        future.result()


def _unpack(
    blob: Blob,
    path: str,
    origin_of: OriginOf,
    progress: Callable[[int], None],
    stopped: Callable[[], bool],
) -> None:
    part = part_of(path)
    try:
        with origin_of(blob.uri).open(blob) as body, open(part, "wb", buffering=0) as file:
            for piece in pieces(_arriving(body, blob, progress, stopped), blob.uri):
                rest = memoryview(piece)
                while rest:
                    rest = rest[file.write(rest) :]
                if stopped():  # little that arrives may be much that is written
                    raise DataError(f"{blob.uri}: the download was stopped")
        os.rename(part, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(part)
        more = " (how much a compressed object unpacks to is not known before)"
        reason = f"{error.strerror}{more if error.errno == errno.ENOSPC else ''}"
        raise DataError(f"{blob.uri} cannot be unpacked to {path}: {reason}") from None
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def _arriving(
    body: Body, blob: Blob, progress: Callable[[int], None], stopped: Callable[[], bool]
) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while count := body.readinto(buffer):
        if stopped():
            raise DataError(f"{blob.uri}: the download was stopped")
        yield buffer[:count]
        progress(count)


def pieces(compressed: Iterable[bytes | memoryview], where: str) -> Iterator[bytes]:
    """Yield what gzip data holds, all its members, a MiB at a time.

    Raises DataError, which ``where`` begins, for what is no gzip data or ends too early.
    """
    unpacker = zlib.decompressobj(_GZIP)
    begun = False
    for piece in compressed:
        data: bytes | memoryview = piece
        while True:
            if unpacker.eof:  # another member follows, or zeros that fill up a block
                data = bytes(data).lstrip(b"\0")
                if not data:
                    break
                unpacker = zlib.decompressobj(_GZIP)
            try:
                output = unpacker.decompress(data, _OUTPUT_BYTES)
            except zlib.error as error:
                what = "is damaged" if begun else "is not compressed with gzip"
                raise DataError(f"{where} {what}: {error}") from None
            begun = True
            if output:
                yield output
            data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            # All may have been taken in and not all given out.
            if not data and (unpacker.eof or len(output) < _OUTPUT_BYTES):
                break
    if not unpacker.eof:
        raise DataError(f"{where} ends in the middle of its gzip data")
