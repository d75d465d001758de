"""What a dataset asks of Python: the next segment of an epoch, and what is wrong with it."""

import itertools
import os
import queue
import sys

import numpy as np

from sagemaker_tensorflow import sealing
from sm_runtime.pipe_mode import CorruptedError
from sm_runtime.pipe_mode.stream import LEAD_BYTES, Buffer, Stream

__all__ = ["Epochs"]

BAD_DATA = "CRC check on data failed."
LARGE_BYTES = 2**15
"""Records that are as large on average are decoded one by one."""
READ_BYTES = 2**18
STALL_SECONDS = 0.2
"""So long a thread of TensorFlow waits where nothing comes, and who drops an iterator for it."""
NONE = np.empty(0, np.int64)


class Epochs:
    """The epochs of a channel that the iterators of one dataset are reading."""

    def __init__(self, settings, report, skip):
        self._settings = settings
        self._report = report
        self._skip = skip
        self._numbers = itertools.count()
        self._open = {}
        self._damaged, self._nothing = Buffer(4096), Buffer(4096)
        self._nothing.view[: len(sealing.NOTHING)] = sealing.NOTHING

    def begin(self):
        """Take an epoch; return a key to it."""
        key = next(self._numbers)
        self._open[key] = _Epoch(self._settings, self._report, self._skip)
        return np.int64(key)

    def end(self, key):
        """Close an epoch."""
        self._open.pop(int(key)).close()
        return key

    def records(self, key):
        """Return the records of the next segment, and a fault or nothing.

        Raises StopIteration.
        """
        epoch = self._open[int(key)]
        segment, fault = epoch.next()
        return _array(epoch.records() if segment else []), fault

    def opened(self, key):
        """Return the key, and whether its records are to be decoded one by one; once."""
        epoch = self._open[int(key)]
        return key, epoch.first_is_large() and not self._skip

    def plain(self, key):
        """Return the next segment's file, number of records and buffer, and a fault or nothing.

        Raises StopIteration.
        """
        segment, fault = self._open[int(key)].next(STALL_SECONDS)
        if not segment:
            return b"", np.int64(0), np.int64(0), fault
        segment.view[:LEAD_BYTES] = sealing.EMPTY
        buffer_bytes = 0 if _is_large(segment) else READ_BYTES
        return segment.path.encode(), np.int64(len(segment.ends)), np.int64(buffer_bytes), b""

    def sealed(self, key):
        """Return the key, the next segment's file, sealed, and its spans; or raise StopIteration.

        Where there is a fault the file does not hold TFRecords.
        """
        segment, fault = self._open[int(key)].next(STALL_SECONDS)
        if not segment:
            file = self._damaged if fault else self._nothing
            return key, file.path.encode(), NONE, NONE
        # Where there are no descriptors left, TensorFlow would try to open it without end.
        os.close(os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC))
        begins, lengths = sealing.spans(segment)
        sealing.seal(segment)
        return key, segment.path.encode(), begins, lengths

    def examined(self, key):
        """Return the good records of a segment that is unsound, or a fault."""
        epoch = self._open[int(key)]
        return (_array([]), epoch.fault) if epoch.fault else (_array(epoch.good_ones()), b"")


def _is_large(segment):
    return segment.end >= len(segment.ends) * LARGE_BYTES


def _array(records):
    array = np.empty(len(records), dtype=object)
    array[:] = records
    return array


class _Epoch:
    """One epoch, and its segment that is in use."""

    def __init__(self, settings, report, skip):
        self._settings = settings
        self._report = report
        self._stream = Stream(settings).__enter__()
        self._segment = None
        self._problem = None
        self._is_open = self._is_first = False
        self.fault = b""
        """What is wrong with the data; see ``pipemode.sound``."""
        self._count = self._records = 0
        self._ends = []
        """Where the records of the segment end, if there is a report on them."""
        self._skip = skip
        self._skipped = 0

    def close(self):
        """Close the FIFO."""
        self._tell()
        self._stream.__exit__()
        self._report.total(self._stream)

    def first_is_large(self):
        """Wait for the first segment; return whether its records are large. Once."""
        if self._is_open:
            raise StopIteration
        self._is_open = self._is_first = True
        try:
            self._advance(None)
        except CorruptedError as error:
            self._problem = error
        return self._segment is not None and _is_large(self._segment)

    def next(self, seconds=None):
        """Return a segment or None, and a fault or nothing; raise StopIteration at the end.

        A segment is valid until the next one is asked for. There is neither where nothing came.
        """
        if self.fault:
            raise StopIteration
        try:
            if self._problem:
                raise self._problem
            if not self._is_first:
                self._advance(seconds)
            self._is_first = False
        except queue.Empty:
            return None, b""
        except CorruptedError as error:
            self.fault = self._described(error)
            return None, self.fault
        if not self._segment:
            raise StopIteration
        return self._segment, b""

    def records(self):
        """Return the payloads of the segment."""
        data = bytes(self._segment.view[: self._segment.end])
        return self._stream.framing.cut(data, LEAD_BYTES, self._segment.ends)

    def good_ones(self):
        """Return the good records of the segment, which is sealed and unsound."""
        good, start = [], LEAD_BYTES
        for (record, bad), end in zip(
            sealing.examined(self._segment), self._segment.ends, strict=True
        ):
            if not bad:
                self._skipped = 0
                good.append(record)
            elif self._skipped == self._skip:
                self._problem = CorruptedError(BAD_DATA, self._segment.offset_bytes + start)
                break
            else:
                self._skipped += 1
                message = f"WARN: Skipping record (count: {self._skipped}) because: {BAD_DATA}"
                print(message, file=sys.stderr, flush=True)
            start = end
        self._records = min(self._records, len(good))
        return good

    def _advance(self, seconds):
        segment = self._stream.take(seconds)
        self._tell()
        self._segment = segment
        self._ends = []
        if segment and self._report.interval:
            data = segment.view[: segment.size_bytes]
            self._ends = self._stream.framing.each(data, LEAD_BYTES, segment.ends)
        self._records = len(self._ends)

    def _tell(self):
        if self._records:
            self._report.records(self._segment.read_ns, self._ends, self._count, self._records)
            self._count += self._records
            self._records = 0

    def _described(self, error):
        where = f"Channel {self._settings.channel}, epoch {self._stream.epoch}"
        return f"{error.reason} {where}, byte {error.offset_bytes}".encode()
