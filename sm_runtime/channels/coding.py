"""Turns the bytes of objects into those that a channel gives: unpacked, framed, or as they are."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import IO, TypeAlias

from sm_runtime.channels.read_ahead import Part
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel
from sm_runtime.pipe_mode.framing import MAGIC

Buffer: TypeAlias = bytes | memoryview
Coding: TypeAlias = Callable[[Iterable[Part]], Iterator[Buffer]]

_OUTPUT_BYTES = 1 << 20
_INPUT_BYTES = 1 << 18
_GZIP = 31
"""zlib's name for the gzip format with the largest window."""
_MAX_PART_BYTES = 2**29 - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


def coding(channel: Channel, undo: ExitStack) -> Coding:
    """Return what an epoch of ``channel`` passes its parts through, in order, a few at a time.

    ``undo`` is closed after the last of them.
    """
    is_record = channel.record_wrapper == "RecordIO"
    if channel.source is not None and channel.source.compression == "Gzip":
        return _Inflater(is_record, undo).code
    return _Wrapper().code if is_record else _plain


def _plain(parts: Iterable[Part]) -> Iterator[Buffer]:
    return (part.data for part in parts)


class _Wrapper:
    """Makes each object one RecordIO record."""

    def __init__(self) -> None:
        self._framer = Framer(0)

    def code(self, parts: Iterable[Part]) -> Iterator[Buffer]:
        """Yield the bytes of ``parts`` with what belongs between them."""
        for part in parts:
            if part.is_first:
                self._framer = Framer(part.size_bytes)
            yield from self._framer.frame(part.data)


class _Inflater:
    """Inflates each object, and may make it one record."""

    def __init__(self, is_record: bool, undo: ExitStack) -> None:
        self._is_record, self._undo = is_record, undo
        self._gunzip = Gunzip("")
        self._kept: IO[bytes] | None = None

    def code(self, parts: Iterable[Part]) -> Iterator[Buffer]:
        """Yield what the objects hold; raises DataError where one is damaged or ends early."""
        for part in parts:
            if not self._is_record:
                yield from self._inflated(part)
                continue
            if self._kept is None:
                # The length comes before the payload; a gzip stream tells it at its end, if at all.
                self._kept = self._undo.enter_context(scratch("RecordIO around gzip"))
            for data in self._inflated(part):
                self._kept.write(data)
            if part.is_last:
                yield from _record(self._kept)

    def _inflated(self, part: Part) -> Iterator[Buffer]:
        if part.blob is None:  # a text of an augmented manifest
            yield part.data
            return
        if part.is_first:
            self._gunzip = Gunzip(part.blob.uri)
        for start in range(0, len(part.data), _INPUT_BYTES):
            yield from self._gunzip.unpack(part.data[start : start + _INPUT_BYTES])
        if part.is_last:
            self._gunzip.end(may_be_empty=True)


def _record(kept: IO[bytes]) -> Iterator[Buffer]:
    """Yield what a file holds as one record; then it is empty again."""
    framer = Framer(kept.tell())
    kept.seek(0)
    while data := kept.read(_OUTPUT_BYTES):
        yield from framer.frame(memoryview(data))
    yield from framer.frame(memoryview(b""))
    kept.seek(0)
    kept.truncate()


class Gunzip:
    """Unpacks one object, a gzip stream of one or more members, as its bytes arrive.

    ``where`` begins the sentence of each DataError.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._member: zlib._Decompress | None = None
        self._has_begun = False

    def unpack(self, data: Buffer) -> Iterator[bytes]:
        """Yield what the next bytes hold, a MiB at most at a time; raise DataError."""
        while data:
            if self._member is None:
                if self._has_begun and not (data := bytes(data).lstrip(b"\0")):
                    return  # zeros that fill up a block
                self._member = zlib.decompressobj(_GZIP)
            while True:
                try:
                    piece = self._member.decompress(data, _OUTPUT_BYTES)
                except zlib.error as error:
                    what = "is damaged" if self._has_begun else "is not compressed with gzip"
                    raise DataError(f"{self._where} {what}: {error}") from None
                self._has_begun = True
                if piece:
                    yield piece
                data = self._member.unconsumed_tail
                # All may have been taken in and not all given out.
                if self._member.eof or (not data and len(piece) < _OUTPUT_BYTES):
                    break
            if self._member.eof:
                data, self._member = self._member.unused_data, None

    def end(self, *, may_be_empty: bool) -> None:
        """Raise DataError if the bytes end inside a member."""
        if self._member is not None or not (self._has_begun or may_be_empty):
            raise DataError(f"{self._where} ends in the middle of its gzip data")


def gunzipped(compressed: Iterable[Buffer], where: str) -> Iterator[bytes]:
    """Yield what one object holds whose bytes are ``compressed``; see ``Gunzip``."""
    gunzip = Gunzip(where)
    for data in compressed:
        yield from gunzip.unpack(data)
    gunzip.end(may_be_empty=False)


def scratch(purpose: str) -> IO[bytes]:
    """Return a file without a name, for what is too large for memory.

    Raises DataError where there is no folder for temporary files.
    """
    from tempfile import mkstemp

    try:
        descriptor, path = mkstemp(prefix="sm-runtime-")
        os.unlink(path)
    except OSError as error:
        raise DataError(f"{purpose} needs a temporary file: {error}") from None
    return os.fdopen(descriptor, "r+b", 1 << 20)


class Framer:
    """Frames one RecordIO record of ``size_bytes``; its payload comes in pieces, none is copied.

    A record of more than ``max_part_bytes`` is split into parts, which readers concatenate. See
    ``pipe_mode.framing`` for the format.
    """

    def __init__(self, size_bytes: int, max_part_bytes: int = _MAX_PART_BYTES) -> None:
        self._max = max_part_bytes
        self._left = size_bytes  # of the record, from the next part on
        self._part = 0  # the length of the part that is being sent, and what is left of it
        self._part_left = 0
        self._first = True

    def frame(self, data: memoryview) -> Iterator[Buffer]:
        """Yield what is to be sent for ``data``, the next bytes of the payload."""
        while data or (self._first and not self._left):
            if not self._part_left:
                yield self._begin()
            piece = data[: self._part_left]
            data = data[len(piece) :]
            self._part_left -= len(piece)
            if piece:
                yield piece
            if not self._part_left and self._part % 4:
                yield bytes(-self._part % 4)

    def _begin(self) -> bytes:
        self._part = self._part_left = min(self._left, self._max)
        self._left -= self._part
        flags = (_WHOLE, _FIRST) if self._first else (_LAST, _MIDDLE)
        self._first = False
        word = flags[self._left > 0] << 29 | self._part
        return MAGIC.to_bytes(4, "little") + word.to_bytes(4, "little")
