"""Parallel gzip: one member, whose blocks are compressed beside each other.

zlib lets go of the interpreter lock, so plain threads are enough. Each block is raw deflate that
ends at a byte border (a sync flush, RFC 1951 section 3.2.4), so the blocks can simply follow one
another, and any gzip reader sees a single member (RFC 1952). Where the stream is cut, and how a
block is compressed, depend on the input alone: the bytes are the same with any number of threads.

Weights hardly ever repeat, so looking for matches, which is most of gzip's time, gains nothing on
them: a block without repeats is only Huffman-coded.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Future

Bytes = bytes | bytearray | memoryview
Pieces = list[bytes]
"""Compressed data, in order."""

BLOCK_BYTES = 1 << 20
MAX_THREADS = 16
"""Beyond these the thread that reads and writes is what everything waits for."""

_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no name, no time, unknown system
_LAST_BLOCK = b"\x03\0"  # an empty block with the "final" bit
_WINDOW_BYTES = 1 << 15
# What fits into zlib's window beside its look-ahead. Each such piece, fully flushed, finds the
# window empty again; otherwise zlib keeps moving its hash chains along, which Huffman coding never
# reads, for 15 % of the time. Small pieces of output also save page faults.
_PIECE_BYTES = 127 << 9
_PROBES = 8
_PROBE_BYTES = 4  # a shorter match costs as much as its literals
_LEVEL = 6  # that of gzip


class Sink(Protocol):
    """Where compressed bytes go."""

    def write(self, data: Bytes, /) -> object:
        """Take all of ``data``."""


class GzipWriter:
    """Compresses what is written into ``sink``; about ``4 * threads`` MiB are in flight.

    ``close`` ends the stream; leaving the context only ends the threads. ``block_bytes`` and
    ``literals`` (how a block without repeats is compressed) are for tests.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        threads: int,
        block_bytes: int = BLOCK_BYTES,
        literals: Callable[[memoryview], Pieces] | None = None,
    ) -> None:
        from concurrent.futures import ThreadPoolExecutor

        threads = max(1, min(threads, MAX_THREADS))
        self._sink = sink
        self._literals = literals or fastest_literals()
        self._pool = ThreadPoolExecutor(threads, "gzip")
        self._max_pending = 2 * threads
        self._pending: deque[tuple[bytearray, Future[Pieces]]] = deque()
        self._free: list[bytearray] = []
        self._block = bytearray(block_bytes)
        self._filled = 0
        self._before = b""
        self._crc = 0
        self._size_bytes = 0
        self.written_bytes = 0
        self._put(_HEADER)

    def __enter__(self) -> GzipWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, data: Bytes) -> None:
        """Add ``data`` to the stream; it may be reused at once."""
        rest = memoryview(data).cast("B")
        while rest:
            taken = min(len(rest), len(self._block) - self._filled)
            self._block[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]
            if self._filled == len(self._block):
                self._submit()

    def close(self) -> None:
        """Compress what is left and end the stream."""
        if self._filled:
            self._submit()
        while self._pending:
            self._drain()
        self._put(_LAST_BLOCK)
        self._put(self._crc.to_bytes(4, "little"))
        self._put((self._size_bytes % 2**32).to_bytes(4, "little"))

    def _put(self, piece: bytes) -> None:
        self._sink.write(piece)
        self.written_bytes += len(piece)

    def _submit(self) -> None:
        block, filled = self._block, self._filled
        data = memoryview(block)[:filled]
        self._crc = zlib.crc32(data, self._crc)
        self._size_bytes += filled
        self._pending.append(
            (block, self._pool.submit(_compress, block, filled, self._before, self._literals))
        )
        self._before = (self._before + data[-_WINDOW_BYTES:])[-_WINDOW_BYTES:]
        while len(self._pending) > self._max_pending:
            self._drain()
        self._block = self._free.pop() if self._free else bytearray(len(block))
        self._filled = 0

    def _drain(self) -> None:
        block, future = self._pending.popleft()
        for piece in future.result():
            self._put(piece)
        self._free.append(block)


def zlib_literals(data: memoryview) -> Pieces:
    """Huffman-code ``data`` with the standard library."""
    # 9 of memory: longer blocks, so fewer code tables
    coder = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return _deflate(data, coder, zlib.Z_FULL_FLUSH)


def fastest_literals() -> Callable[[memoryview], Pieces]:
    """Return ``isal``'s way, five times as fast at the same size, where it is installed."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib_literals
    return lambda data: _deflate(data, isal_zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS))


class _Compressor(Protocol):
    def compress(self, data: Bytes, /) -> bytes: ...

    def flush(self, mode: int, /) -> bytes: ...


def _deflate(
    data: memoryview, compressor: _Compressor, between_pieces: int = zlib.Z_NO_FLUSH
) -> Pieces:
    pieces = []
    for start in range(0, len(data), _PIECE_BYTES):
        pieces.append(compressor.compress(data[start : start + _PIECE_BYTES]))
        if between_pieces != zlib.Z_NO_FLUSH:
            pieces.append(compressor.flush(between_pieces))
    if between_pieces == zlib.Z_NO_FLUSH:
        pieces.append(compressor.flush(zlib.Z_SYNC_FLUSH))
    return pieces


def _matches(data: memoryview, before: bytes = b"") -> Pieces:
    return _deflate(
        data,
        zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zdict=before),
    )


def _compress(
    block: bytearray, filled: int, before: bytes, literals: Callable[[memoryview], Pieces]
) -> Pieces:
    data = memoryview(block)[:filled]
    # A small block is the end of a small archive: not worth a guess.
    if filled <= 4 * _WINDOW_BYTES:
        return _matches(data, before)
    repeats = _repeats(block, filled)
    if repeats > _PROBES // 2 or _matches_pay(_sample(data, 4, 2048)):
        return _matches(data, before)
    # Some repeats: by chance, as small integers have them, or is a part of the block different?
    if repeats and _matches_pay(_sample(data, 16, 2048)):
        return _matches(data, before)
    sample = _sample(data, 8, 512)
    if _size(zlib_literals(sample)) < len(sample):
        return literals(data)
    return _deflate(data, zlib.compressobj(0, zlib.DEFLATED, -zlib.MAX_WBITS))


def _repeats(block: bytearray, filled: int) -> int:
    """Count at how many of 8 places the data comes again within deflate's window."""
    repeats = 0
    for index in range(_PROBES):
        # the 13 keeps the places from all having the same alignment
        start = index * (filled - _WINDOW_BYTES) // _PROBES + 13 * index
        probe = block[start : start + _PROBE_BYTES]
        repeats += block.find(probe, start + 1, start + _WINDOW_BYTES) >= 0
    return repeats


def _sample(data: memoryview, count: int, size_bytes: int) -> memoryview:
    starts = range(0, len(data) - size_bytes, len(data) // count)
    return memoryview(b"".join(data[start : start + size_bytes] for start in starts))


def _matches_pay(sample: memoryview) -> bool:
    """Tell whether looking for matches makes ``sample`` smaller than coding its bytes does."""
    return _size(_matches(sample)) < 0.99 * _size(zlib_literals(sample))


def _size(pieces: Pieces) -> int:
    return sum(map(len, pieces))
