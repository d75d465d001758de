"""Turns the bytes of objects into those that a Pipe channel gives: inflated, framed, or as is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, TypeAlias

from sm_runtime.channels.read_ahead import Part
from sm_runtime.channels.recordio import Framer
from sm_runtime.channels.scratch import scratch
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel

if TYPE_CHECKING:
    import zlib

Buffer: TypeAlias = bytes | memoryview
Coding: TypeAlias = Callable[[Iterable[Part]], Iterator[Buffer]]

_OUTPUT_BYTES = 1 << 20
_INPUT_BYTES = 1 << 18


def coding(channel: Channel, undo: ExitStack) -> Coding:
    """Return what an epoch of ``channel`` passes its parts through, in order, a few at a time.

    ``undo`` is closed after the last of them.
    """
    is_record = channel.record_wrapper == "RecordIO"
    if channel.source is not None and channel.source.compression == "Gzip":
        return Inflater(is_record, undo).code
    return Wrapper().code if is_record else _plain


def _plain(parts: Iterable[Part]) -> Iterator[Buffer]:
    return (part.data for part in parts)


class Wrapper:
    """Makes each object one RecordIO record."""

    def __init__(self) -> None:
        self._framer = Framer(0)

    def code(self, parts: Iterable[Part]) -> Iterator[Buffer]:
        """Yield the bytes of ``parts`` with what belongs between them."""
        for part in parts:
            if part.is_first:
                self._framer = Framer(part.size_bytes)
            yield from self._framer.frame(part.data)


class Inflater:
    """Inflates each object, a gzip stream of one or more members, and may make it one record."""

    def __init__(self, is_record: bool, undo: ExitStack) -> None:
        self._is_record, self._undo = is_record, undo
        self._member: zlib._Decompress | None = None
        self._began = False
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
        import zlib

        if part.blob is None:  # a text of an augmented manifest
            yield part.data
            return
        if part.is_first:
            self._member, self._began = None, False
        try:
            for start in range(0, len(part.data), _INPUT_BYTES):
                yield from self._inflate(part.data[start : start + _INPUT_BYTES])
        except zlib.error as error:
            what = "is damaged" if self._began else "is not compressed with gzip"
            raise DataError(f"{part.blob.uri} {what}: {error}") from None
        if part.is_last and self._member is not None:
            raise DataError(f"{part.blob.uri} ends in the middle of its gzip stream")

    def _inflate(self, data: Buffer) -> Iterator[bytes]:
        import zlib

        while data:
            if self._member is None:
                if self._began and not (data := bytes(data).lstrip(b"\0")):
                    return  # padding after the last member
                self._member = zlib.decompressobj(wbits=31)
            while True:
                piece = self._member.decompress(data, _OUTPUT_BYTES)
                if piece:
                    self._began = True
                    yield piece
                data = self._member.unconsumed_tail
                if self._member.eof or (not data and len(piece) < _OUTPUT_BYTES):
                    break
            if self._member.eof:
                self._began = True
                data, self._member = self._member.unused_data, None


def _record(kept: IO[bytes]) -> Iterator[Buffer]:
    """Yield what a file holds as one record; then it is empty again."""
    framer = Framer(kept.tell())
    kept.seek(0)
    while data := kept.read(_OUTPUT_BYTES):
        yield from framer.frame(memoryview(data))
    yield from framer.frame(memoryview(b""))
    kept.seek(0)
    kept.truncate()
