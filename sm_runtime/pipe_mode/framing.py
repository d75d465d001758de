"""Where records begin and end, for each of the three formats; streams are cut there.

RecordIO: ``0xced7230a``, a word with the length in its lower 29 bits and a flag in its upper 3
(0: a whole record; 1, 2 and 3: its first, middle and last part), the payload, padding to 4 bytes;
all little endian (dmlc-core, ``recordio.h``). TFRecord: length (8 bytes), masked CRC-32C of it,
data, masked CRC-32C of the data (TensorFlow guide, "TFRecord"). TextLine: up to ``\\n``, which is
dropped; ``\\r`` stays.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

from sm_runtime.pipe_mode import CorruptedError

if TYPE_CHECKING:
    Data = TypeVar("Data", bytes, memoryview)
    Ends = array[int]
    """The offset behind each record that is complete."""

POLYNOMIAL = 0x82F63B78
ONES = 0xFFFFFFFF
_TABLE: list[int] = []
MAGIC = 0xCED7230A
_WORDS = struct.Struct("<II").unpack_from
_HEAD = struct.Struct("<QI").unpack_from
_RUN = 32
_RUN_BYTES = 2**20
_KNOWN = 4096
BUFFER_BYTES = 2**20


class Framing(Protocol):
    """How one format is cut into records, from the start of a stream on."""

    name: str

    def scan(self, data: memoryview, start: int, ends: Ends) -> int:
        """Append the ends of the records from ``start`` on.

        Returns how many bytes the record behind them has, 0 where that is unknown. Raises
        CorruptedError, whose offset is one of ``data``; the records before it are in ``ends``.
        """

    def cut(self, data: bytes, start: int, ends: Ends) -> list[bytes]:
        """Return the payloads of the records from ``start`` on, as slices of ``data``."""

    def each(self, data: memoryview, start: int, ends: Ends) -> Ends:
        """Return the end of each record from ``start`` on; ``ends`` may lack some."""


class TFRecords:
    """TFRecords: the CRCs of lengths are checked, and with ``check_data`` those of the data."""

    name = "TFRecord"

    def __init__(self, *, check_data: bool = False) -> None:
        self._check_data = check_data
        self._sums: dict[int, int] = {}
        self._run_length = -1
        self._run = struct.Struct("")
        self._same: tuple[int, ...] = ()

    def scan(self, data: memoryview, start: int, ends: Ends) -> int:
        """Find TFRecords by their lengths; see ``Framing.scan``."""
        size, add, known = len(data), ends.append, self._sums.get
        before, alike = -1, 0
        while size - start >= 12:
            length, checksum = _HEAD(data, start)
            if known(length) != checksum:
                self._check(length, checksum, start)
            end: int = start + length + 16
            if end > size:
                return end - start
            if self._check_data and not _is_sound(data[start + 12 : end]):
                raise CorruptedError("CRC check on data failed.", start)
            add(end)
            start = end
            alike = alike + 1 if length == before else 0
            before = length
            if alike == 4:
                start = self._skip_alike(data, start, length, checksum, ends)
                alike = 0
        return 0

    def _check(self, length: int, checksum: int, start: int) -> None:
        """Compare the checksum of a length, and remember it: most records are of a few lengths."""
        if masked_crc32c(length.to_bytes(8, "little")) != checksum:
            raise CorruptedError("CRC check on header failed.", start)
        if len(self._sums) >= _KNOWN:
            self._sums.clear()
        self._sums[length] = checksum

    def _skip_alike(
        self, data: memoryview, start: int, length: int, checksum: int, ends: Ends
    ) -> int:
        """Find records of one length many at a time, as long as they are; return where they end."""
        step = length + 16
        whole = _RUN * step
        if whole > _RUN_BYTES or self._check_data:
            return start
        if self._run_length != length:
            self._run = struct.Struct("<" + f"QI{length + 4}x" * _RUN)
            self._run_length, self._same = length, (length, checksum) * _RUN
        unpack, same, size = self._run.unpack_from, self._same, len(data)
        while size - start >= whole and unpack(data, start) == same:
            ends.extend(range(start + step, start + whole + 1, step))
            start += whole
        return start

    def cut(self, data: Data, start: int, ends: Ends) -> list[Data]:
        """Return the data of the records; see ``Framing.cut``."""
        begins = (start, *ends)
        return [data[a + 12 : b - 4] for a, b in zip(begins, ends, strict=False)]

    def each(self, data: memoryview, start: int, ends: Ends) -> Ends:
        """Return ``ends``; see ``Framing.each``."""
        return ends


def _is_sound(data: memoryview) -> bool:
    return masked_crc32c(data[:-4]).to_bytes(4, "little") == data[-4:]


class RecordIO:
    """RecordIO: the parts of one record are put together with ``join`` between them."""

    name = "RecordIO"

    def __init__(self, join: bytes = b"") -> None:
        self._join = join

    def scan(self, data: memoryview, start: int, ends: Ends) -> int:
        """Find records, those of several parts as well; see ``Framing.scan``."""
        size, inside = len(data), False
        at: int = start
        while at + 8 <= size:
            magic, word = _WORDS(data, at)
            if magic != MAGIC:
                raise CorruptedError(f"Invalid magic number: {magic}.", at)
            flag, length = word >> 29, word & 0x1FFFFFFF
            if flag > 3 or (flag in (2, 3)) != inside:
                raise CorruptedError(f"part {flag} of a record is out of order.", at)
            at += 8 + (length + 3 & ~3)
            if at > size:
                return at - start
            inside = flag in (1, 2)
            if not inside:
                start = at
                ends.append(at)
        if inside:
            return at + 8 - start
        head = bytes(data[at : at + 4])
        if head != MAGIC.to_bytes(4, "little")[: len(head)]:
            raise CorruptedError("Invalid magic number, or a record's start is cut off.", at)
        return 8

    def cut(self, data: Data, start: int, ends: Ends) -> list[Data]:
        """Return the payloads; see ``Framing.cut``. One of several parts is a copy."""
        records = []
        for end in ends:
            word = _WORDS(data, start)[1]
            if word >> 29 == 0:
                records.append(data[start + 8 : start + 8 + word])
            else:
                records.append(type(data)(self._joined(data, start, end)))
            start = end
        return records

    def each(self, data: memoryview, start: int, ends: Ends) -> Ends:
        """Return ``ends``; see ``Framing.each``."""
        return ends

    def _joined(self, data: bytes | memoryview, start: int, end: int) -> bytes:
        parts = []
        while start < end:
            length = _WORDS(data, start)[1] & 0x1FFFFFFF
            parts.append(data[start + 8 : start + 8 + length])
            start += 8 + (length + 3 & ~3)
        return self._join.join(parts)


class Lines:
    r"""Lines, without their ``\n``; the last one may lack it."""

    name = "TextLine"

    def __init__(self) -> None:
        self._start, self._looked = -1, 0

    def scan(self, data: memoryview, start: int, ends: Ends) -> int:
        """Find the end of the last line: which there are is found when they are cut."""
        # A line that is long comes in many pieces: each is looked at once.
        begin = self._looked if start == self._start else start
        last = bytes(data[begin:]).rfind(b"\n")
        if last >= 0:
            ends.append(begin + last + 1)
        self._start, self._looked = (start, len(data)) if last < 0 else (-1, 0)
        return 0

    def cut(self, data: Data, start: int, ends: Ends) -> list[bytes]:
        r"""Return the lines; see ``Framing.cut``. They are copies."""
        return bytes(data[start : ends[-1] - 1]).split(b"\n")

    def each(self, data: memoryview, start: int, ends: Ends) -> Ends:
        """Return the end of each line; see ``Framing.each``."""
        found: Ends = array("q")
        for line in self.cut(data, start, ends) if ends else ():
            start += len(line) + 1
            found.append(start)
        return found


def framing(record_format: str) -> Framing:
    """Return the framing of ``RecordIO``, ``TFRecord`` or ``TextLine``."""
    return {kind.name: kind for kind in (RecordIO, TFRecords, Lines)}[record_format]()


class Readable(Protocol):
    """What is read from: an unbuffered stream, as ``open_channel`` returns."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the start of ``buffer`` and return how many bytes, 0 at the end."""


def records(stream: Readable, framing: Framing) -> Iterator[bytes]:
    """Yield the payload of one record after the other; raise CorruptedError."""
    for data, ends in batches(stream, framing):
        yield from framing.cut(bytes(data[: ends[-1]]), 0, ends)


def batches(stream: Readable, framing: Framing) -> Iterator[tuple[memoryview, Ends]]:
    """Yield what has arrived, and where its records end; valid until the next is asked for.

    Raises CorruptedError behind the records that are good.
    """
    view = memoryview(bytearray(BUFFER_BYTES))
    size = offset = need = 0
    while True:
        if need > len(view):
            grown = memoryview(bytearray(need))
            grown[:size] = view[:size]
            view = grown
        elif size == len(view):
            grown = memoryview(bytearray(2 * size))
            grown[:size] = view
            view = grown
        count = stream.readinto(view[size:]) or 0
        size += count
        if not count and (size := _ended(view, size, offset, framing)) == 0:
            return
        ends: Ends = array("q")
        problem = None
        try:
            need = framing.scan(view[:size], 0, ends)
        except CorruptedError as error:
            problem = CorruptedError(error.reason, offset + error.offset_bytes)
        if ends:
            yield view, ends
            end = ends[-1]
            view[: size - end] = view[end:size]
            size, offset = size - end, offset + end
        if problem:
            raise problem


def _ended(view: memoryview, size: int, offset: int, framing: Framing) -> int:
    """Return how many bytes are in ``view`` when the last line has its end, else 0."""
    if size and framing.name != "TextLine":
        raise CorruptedError(f"the stream ends inside a {framing.name} record", offset)
    if size:
        view[size] = ord("\n")
        return size + 1
    return 0


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C (Castagnoli) of ``data``, in plain Python: for little data only."""
    if not _TABLE:
        for byte in range(256):
            for _ in range(8):
                byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
            _TABLE.append(byte)
    crc, table = ONES, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ ONES


def masked(crc: int) -> int:
    """Return a CRC as it is stored (TensorFlow guide, "TFRecord")."""
    return (crc >> 15 | crc << 17 & ONES) + 0xA282EAD8 & ONES


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return the masked CRC-32C of ``data``."""
    return masked(crc32c(data))
