"""A ``tf.data.Dataset`` over the epochs of a Pipe channel.

The FIFO is read and cut by ``sm_runtime.pipe_mode``; TFRecords are decoded, and their CRCs checked,
by TensorFlow's own kernel, which gets each segment as a file in memory.
"""

import os
import sys

import numpy as np
import tensorflow as tf

from sm_runtime.pipe_mode.errors import BrokenRecord, PipeModeDatasetException
from sm_runtime.pipe_mode.framing import masked_crc32c
from sm_runtime.pipe_mode.settings import FORMATS, Settings, check_channel
from sm_runtime.pipe_mode.stream import Stream

__all__ = ["PipeModeDataset", "PipeModeDatasetException"]

BAD_DATA = "CRC check on data failed."


class PipeModeDataset(tf.data.Dataset):
    """The records of a channel in Pipe mode, as scalar strings.

    Each iterator takes the channel's next epoch, that is the next FIFO, with the first record that
    is asked of it; ``state_dir`` holds the count. ``record_format`` is ``RecordIO``, ``TFRecord``
    or ``TextLine``. ``benchmark`` and ``benchmark_records_interval`` print what reading took. Up
    to ``max_corrupted_records_to_skip`` TFRecords in a row may have a wrong CRC.
    ``timeout_seconds`` is how long the FIFO may take to appear and to get a writer.

    Raises PipeModeDatasetException, FileNotFoundError (``inputdataconfig.json``) and
    ``tf.errors.InvalidArgumentError`` (``record_format``); with the records come
    ``tf.errors.DataLossError`` and ``tf.errors.UnknownError`` (no FIFO, no writer).
    """

    def __init__(
        self,
        channel,
        record_format="RecordIO",
        state_dir="/opt/ml/pipe_state",
        pipe_dir="/opt/ml/input/data",
        config_dir="/opt/ml/input/config",
        benchmark=False,
        benchmark_records_interval=0,
        max_corrupted_records_to_skip=0,
        *,
        timeout_seconds=120.0,
    ):
        settings = Settings(
            channel=channel,
            record_format=record_format,
            state_dir=os.fspath(state_dir),
            pipe_dir=os.fspath(pipe_dir),
            config_dir=os.fspath(config_dir),
            timeout_seconds=timeout_seconds,
        )
        check_channel(settings)
        if max_corrupted_records_to_skip > 0 and record_format != "TFRecord":
            raise PipeModeDatasetException(
                "max_corrupted_records_to_skip can only be set for record_format='TFRecord'"
            )
        if record_format not in FORMATS:
            raise tf.errors.InvalidArgumentError(
                None, None, f"Invalid record format: {record_format}"
            )
        report = _Report(benchmark, benchmark_records_interval)
        if record_format == "TFRecord" and not max_corrupted_records_to_skip:
            self._records = _decoded_by_tensorflow(settings, report)
        else:
            self._records = _cut_here(settings, report, max_corrupted_records_to_skip)
        super().__init__(tf.data.experimental.to_variant(self._records))

    def _inputs(self):
        return [self._records]

    @property
    def element_spec(self):
        """What an element is: a scalar string."""
        return tf.TensorSpec([], tf.string)


class _Report:
    """Prints what the C++ op prints, when it does."""

    def __init__(self, totals, interval):
        self.totals = totals
        self.interval = interval

    def records(self, segment, count, records):
        """Tell of the records of a segment; ``count`` came before it. Numbers are of one record."""
        if not self.interval:
            return
        starts = [0, *segment.ends]
        first = self.interval - count % self.interval
        for number in range(first, records + 1, self.interval):
            size = starts[number] - starts[number - 1] if number < len(starts) else 0
            _say("records", count + number)
            _say("records read_time_ns", segment.read_ns // records)
            _say("records read_bytes", size)

    def total(self, stream):
        """Tell of a whole epoch, or of what was read of it."""
        if self.totals:
            rate = stream.read_bytes / 2**30 / (stream.read_ns / 1e9) if stream.read_ns else 0.0
            _say("total read_time_ms", stream.read_ns // 1_000_000)
            _say("total read_bytes", stream.read_bytes)
            _say("total read_GB/s", f"{rate:g}")


def _say(what, value):
    print(f"PipeModeDatasetOp::Dataset::Iterator {what}: {value}", flush=True)


def _decoded_by_tensorflow(settings, report):
    def payload(segment):
        return (segment.path(), len(segment.ends)), len(segment.ends), None

    def segments():
        for (path, records), fault in _epoch(settings, report, payload, ("", 0)):
            yield path, records, fault

    text, number = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)
    dataset = tf.data.Dataset.from_generator(segments, output_signature=(text, number, text))

    @tf.autograph.experimental.do_not_convert
    def decoded(path, records, fault):
        # Not to the end of the file: to cut it off would cost the memory behind it.
        return tf.data.TFRecordDataset(_sound(path, fault)).take(records)

    return dataset.flat_map(decoded)


def _cut_here(settings, report, skip):
    def segments():
        good_ones = _Skipper(skip).good_ones

        def payload(segment):
            records, problem = good_ones(segment) if skip else (segment.records(), None)
            return _array(records), len(records), problem

        return _epoch(settings, report, payload, _array([]))

    signature = (tf.TensorSpec([None], tf.string), tf.TensorSpec([], tf.string))
    dataset = tf.data.Dataset.from_generator(segments, output_signature=signature)

    @tf.autograph.experimental.do_not_convert
    def each(records, fault):
        return tf.data.Dataset.from_tensor_slices(_sound(records, fault))

    return dataset.flat_map(each)


def _array(records):
    array = np.empty(len(records), dtype=object)
    array[:] = records
    return array


def _epoch(settings, report, payload, nothing):
    """Yield ``(value, "")`` for each segment and, where the bytes are wrong, a fault at last."""
    count = 0
    with Stream(settings) as stream:
        try:
            for segment in stream.segments():
                value, records, problem = payload(segment)
                report.records(segment, count, records)
                count += records
                yield value, ""
                if problem:
                    raise problem
        except BrokenRecord as error:
            with _Fault(settings, stream, error) as path:
                yield nothing, path
        finally:
            report.total(stream)


class _Fault:
    """A file whose name says what is wrong.

    Of an exception in a Python function TensorFlow makes an UnknownError. Broken data is a
    DataLossError, as everywhere in TensorFlow; the op that raises one with a text of ours is that
    which opens a checkpoint: the text is the checkpoint's name.
    """

    def __init__(self, settings, stream, error):
        text = f"{error.reason} Channel {settings.channel}, epoch {stream.epoch}, byte "
        self.path = os.path.join(settings.state_dir, f"{text}{error.offset_bytes}")

    def __enter__(self):
        with open(self.path, "w"):
            pass
        return self.path

    def __exit__(self, *_):
        os.unlink(self.path)


def _sound(value, fault):
    """Return ``value``; raise DataLossError where there is a fault."""

    def fail():
        return tf.raw_ops.RestoreV2(
            prefix=fault, tensor_names=[""], shape_and_slices=[""], dtypes=[tf.int32]
        )[0]

    raised = tf.cond(fault == "", lambda: 0, lambda: tf.reshape(fail(), []))
    with tf.control_dependencies([raised]):
        return tf.identity(value)


class _Skipper:
    """Leaves out records whose data has a wrong CRC, so many in a row."""

    def __init__(self, most):
        self.most = most
        self.skipped = 0

    def good_ones(self, segment):
        """Return the good records of a segment, and what is wrong behind them, or None."""
        records = segment.records()
        if _is_sound(segment):
            self.skipped = 0
            return records, None
        data, start, good = segment.data, 0, []
        for record, end in zip(records, segment.ends, strict=True):
            at = segment.offset_bytes + start
            header = bytes(data[start : start + 12])
            if masked_crc32c(header[:8]) != int.from_bytes(header[8:], "little"):
                return good, BrokenRecord("CRC check on header failed.", at)
            if masked_crc32c(record) == int.from_bytes(data[end - 4 : end], "little"):
                self.skipped = 0
                good.append(record)
            elif self.skipped == self.most:
                return good, BrokenRecord(BAD_DATA, at)
            else:
                self.skipped += 1
                message = f"WARN: Skipping record (count: {self.skipped}) because: {BAD_DATA}"
                print(message, file=sys.stderr, flush=True)
            start = end
        return good, None


def _is_sound(segment):
    """Have TensorFlow check all CRCs of a segment."""
    try:
        for _ in tf.data.TFRecordDataset(segment.path()).take(len(segment.ends)).batch(1024):
            pass
    except tf.errors.DataLossError:
        return False
    return True
