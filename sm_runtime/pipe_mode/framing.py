"""Where records begin and end in a buffer, for each of the three formats.

RecordIO: ``0xced7230a``, a length with a flag in its upper 3 bits (1, 2 and 3: first, middle and
last part of a record), the payload, padding to 4 bytes; all little endian (dmlc-core,
``recordio.h``). TFRecord: length (8 bytes), masked CRC-32C of it, data, masked CRC-32C of the data
(TensorFlow guide, "TFRecord"). TextLine: up to ``\\n``, which is dropped; ``\\r`` stays.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from sm_runtime.frozen import dataclass
from sm_runtime.pipe_mode.errors import BrokenRecord

MAGIC = 0xCED7230A
HEADER = struct.Struct("<Q").unpack_from
WORDS = struct.Struct("<II").unpack_from
WORD = struct.Struct("<I").unpack_from

Ends = list[int]
"""The offset behind each record that is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How one format is cut into records."""

    scan: Callable[[memoryview, int, Ends], int]
    """Appends the ends of the records from an offset on; returns the bytes that the record behind
    them needs from its start, as far as is known (0: unknown). Raises BrokenRecord."""
    cut: Callable[[memoryview, int, Ends], list[bytes]]
    """Returns the payloads of the records from an offset on, whose ends are given."""


def scan_tfrecord(data: memoryview, start: int, ends: Ends) -> int:
    """Find TFRecords by their lengths; a length that leads astray is checked by its CRC."""
    size, add = len(data), ends.append
    first = start
    while start + 12 <= size:
        end: int = start + HEADER(data, start)[0] + 16
        if end > size:
            # Nobody waits for a record whose length is wrong: one of these headers says so.
            _check_headers(data, first, start, ends)
            return end - start
        start = end
        add(end)
    return 0


def _check_headers(data: memoryview, first: int, last: int, ends: Ends) -> None:
    if _header_is_good(data, last):
        return
    good = first
    kept = len(ends) - sum(1 for end in ends if end > first)
    for count, start in enumerate((first, *ends[kept:])):
        if not _header_is_good(data, start):
            del ends[kept + count :]
            good = start
            break
    raise BrokenRecord("CRC check on header failed.", good)


def _header_is_good(data: memoryview, start: int) -> bool:
    stored: int = WORD(data, start + 8)[0]
    return masked_crc32c(data[start : start + 8]) == stored


def cut_tfrecord(data: memoryview, start: int, ends: Ends) -> list[bytes]:
    """Return the data of the records; the CRC of the data is not looked at."""
    whole = bytes(data[start : ends[-1]])
    records, begin = [], 0
    for end in ends:
        stop = end - start
        records.append(whole[begin + 12 : stop - 4])
        begin = stop
    return records


def scan_recordio(data: memoryview, start: int, ends: Ends) -> int:
    """Find RecordIO records, those of several parts as well."""
    size, at = len(data), start
    while at + 8 <= size:
        magic, word = WORDS(data, at)
        if magic != MAGIC:
            raise BrokenRecord(f"Invalid magic number: {magic}.", at)
        length: int = word & 0x1FFFFFFF
        at += 8 + (length + 3 & ~3)
        if at > size:
            return at - start
        if word >> 29 in (0, 3):
            start = at
            ends.append(at)
    if at == start and size > at and bytes(data[at : at + 4]) != b"\x0a\x23\xd7\xce"[: size - at]:
        raise BrokenRecord("Invalid magic number, or a record's start is cut off.", at)
    return at + 8 - start


def cut_recordio(data: memoryview, start: int, ends: Ends) -> list[bytes]:
    """Return the payloads; the parts of one record are put together as they are."""
    whole = bytes(data[start : ends[-1]])
    records, at = [], 0
    for end in ends:
        word = WORDS(whole, at)[1]
        if word >> 29 == 0:
            records.append(whole[at + 8 : at + 8 + word])
        else:
            parts = []
            while at < end - start:
                length = WORDS(whole, at)[1] & 0x1FFFFFFF
                parts.append(whole[at + 8 : at + 8 + length])
                at += 8 + (length + 3 & ~3)
            records.append(b"".join(parts))
        at = end - start
    return records


def scan_text(data: memoryview, start: int, ends: Ends) -> int:
    """Find the last end of a line: which lines there are is found when they are cut."""
    last = bytes(data[start:]).rfind(b"\n")
    if last >= 0:
        ends.append(start + last + 1)
    return 0


def cut_text(data: memoryview, start: int, ends: Ends) -> list[bytes]:
    """Return the lines without their ``\\n``."""
    return bytes(data[start : ends[-1] - 1]).split(b"\n")


FRAMINGS = {
    "RecordIO": Framing(scan=scan_recordio, cut=cut_recordio),
    "TFRecord": Framing(scan=scan_tfrecord, cut=cut_tfrecord),
    "TextLine": Framing(scan=scan_text, cut=cut_text),
}


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


CRC32C = _crc32c_table()


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C (Castagnoli) of ``data``, masked as TFRecords hold it."""
    crc, table = 0xFFFFFFFF, CRC32C
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF
