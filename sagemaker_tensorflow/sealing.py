"""Makes one TFRecord of a segment of many, whose CRC is right only where all of theirs are.

TensorFlow has one fast way to a CRC-32C, its reader of TFRecords, whose cost is that of a record
rather than of its bytes. So a segment of small records is given to it as one large record. The CRC
of that would have to be computed; instead the bytes between the data of two records, which are
known already, are replaced by others that lead the register of the CRC where it has to be:

* four bytes equal to the register make it 0. Behind the data of a record that is sound, the
  register is known: the record's own CRC holds it.
* zeros leave a register of 0 as it is.
* ``TO_ONES`` leads from 0 to all ones, with which the CRC of the next data begins.

With that each record's data is taken in as if it stood alone, and in the end the register is 0,
unless some data is damaged.
"""

import numpy as np

from sm_runtime.pipe_mode.framing import ONES, POLYNOMIAL, crc32c, masked, masked_crc32c
from sm_runtime.pipe_mode.stream import LEAD_BYTES

__all__ = ["AROUND_BYTES", "EMPTY", "NOTHING", "examined", "seal", "spans"]

AROUND_BYTES = 16
"""What a TFRecord has besides its data: 12 bytes before it and 4 behind."""


def _from_zero(register):
    """Return the word that leads from 0 to a register: 32 steps back."""
    for _ in range(32):
        register = (register ^ POLYNOMIAL) << 1 | 1 if register >> 31 else register << 1
    return register


TO_ONES = _from_zero(ONES)
START = bytes(8) + TO_ONES.to_bytes(4, "little")
BEGIN = LEAD_BYTES + len(START)
CRC_OF_ZERO = masked(ONES).to_bytes(4, "little")
"""The CRC, as it is stored, of what leaves 0 in the register."""


def _head(length):
    head = length.to_bytes(8, "little")
    return head + masked_crc32c(head).to_bytes(4, "little")


EMPTY = _head(0) + masked_crc32c(b"").to_bytes(4, "little")
"""A TFRecord without data: what stands before the records of a segment that is not sealed."""
NOTHING = _head(4) + ONES.to_bytes(4, "little") + CRC_OF_ZERO
"""A sealed segment without records."""


def spans(segment):
    """Return where the data of each TFRecord begins in that of the sealed one, and its length."""
    ends = np.frombuffer(segment.ends, np.int64)
    begins = np.empty_like(ends)
    begins[0] = LEAD_BYTES
    begins[1:] = ends[:-1]
    return begins, ends - begins - AROUND_BYTES


def seal(segment):
    """Make one TFRecord, from byte 0 of its file on, of a segment of TFRecords."""
    view, end = segment.view, segment.end
    # A word at each byte: records begin anywhere.
    words = np.ndarray([end + 1], "<u4", view, strides=[1])
    doubles = np.ndarray([end + 1], "<u8", view, strides=[1])
    ends = np.frombuffer(segment.ends, np.int64)
    footers, begins = ends - 4, ends[:-1]
    crcs = words[footers] - np.uint32(0xA282EAD8)
    words[footers] = ~(crcs >> np.uint32(17) | crcs << np.uint32(15))
    doubles[begins] = 0
    words[begins + 8] = TO_ONES
    view[:BEGIN] = _head(end - 12) + ONES.to_bytes(4, "little") + START
    # The record that begins here belongs to the next segment, and was copied there.
    view[end : end + 4] = CRC_OF_ZERO


def examined(segment):
    """Return for each record of a sealed segment its data and whether its CRC is wrong."""
    view, begins, lengths = segment.view, *spans(segment)
    for start, length in zip((begins + 12).tolist(), lengths.tolist(), strict=True):
        data = bytes(view[start : start + length])
        register = int.from_bytes(view[start + length : start + length + 4], "little")
        yield data, crc32c(data) ^ ONES != register
