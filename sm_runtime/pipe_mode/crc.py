"""CRC-32C (Castagnoli) as TFRecords hold it, for little data: plain Python is slow."""

from __future__ import annotations

POLYNOMIAL = 0x82F63B78
ONES = 0xFFFFFFFF
_TABLE: list[int] = []


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of ``data``."""
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
