"""A ``tf.data.Dataset`` over the epochs of a Pipe channel.

The FIFO is read by ``sm_runtime.pipe_mode``, which finds where records end; TFRecords are decoded,
and their CRCs checked, by TensorFlow's own kernels, which get many of them as a file in memory. The
graphs are kept small: each function in them costs some milliseconds with each iterator.
"""

import tensorflow as tf

from sagemaker_tensorflow.epoch import Epochs
from sm_runtime.pipe_mode import PipeModeDatasetException
from sm_runtime.pipe_mode.records import FORMATS, find
from sm_runtime.pipe_mode.stream import LEAD_BYTES

__all__ = ["PipeModeDataset", "PipeModeDatasetException"]


_KEY = tf.TensorSpec([], tf.int64)
_TEXT = tf.TensorSpec([], tf.string)
_TEXTS = tf.TensorSpec([None], tf.string)
_NUMBERS = tf.TensorSpec([None], tf.int64)
_FLAG = tf.TensorSpec([], tf.bool)
_PLAIN = (_TEXT, _KEY, _KEY, _TEXT)
_SEALED = (_KEY, _TEXT, _NUMBERS, _NUMBERS)
_CUT = (_TEXTS, _TEXT)


class PipeModeDataset(tf.data.Dataset):
    """The records of a channel in Pipe mode, as scalar strings.

    Each iterator takes the channel's next epoch, that is the next FIFO (or file), with the first
    record that is asked of it; ``state_dir`` holds the count. ``record_format`` is ``RecordIO``,
    ``TFRecord`` or ``TextLine``. Folders that are not given are those of the job, and without
    ``config_dir`` the channels are those of ``$SM_INPUT_DATA_CONFIG``, where that is set.
    ``benchmark`` and ``benchmark_records_interval`` print what reading took. Up to
    ``max_corrupted_records_to_skip`` TFRecords in a row may have a wrong CRC. ``timeout_seconds``
    is how long the FIFO may take to appear and to get a writer.

    Raises PipeModeDatasetException, FileNotFoundError (``inputdataconfig.json``) and
    ``tf.errors.InvalidArgumentError`` (``record_format``); with the records come
    ``tf.errors.InvalidArgumentError`` (data that are no records), ``tf.errors.DataLossError`` (a
    wrong CRC of a large TFRecord) and ``tf.errors.UnknownError`` (no FIFO, no writer).
    """

    def __init__(
        self,
        channel,
        record_format="RecordIO",
        state_dir=None,
        pipe_dir=None,
        config_dir=None,
        benchmark=False,
        benchmark_records_interval=0,
        max_corrupted_records_to_skip=0,
        *,
        timeout_seconds=120.0,
    ):
        settings = find(
            channel,
            record_format,
            state_dir=state_dir,
            pipe_dir=pipe_dir,
            config_dir=config_dir,
            timeout_seconds=timeout_seconds,
        )
        if max_corrupted_records_to_skip > 0 and record_format != "TFRecord":
            raise PipeModeDatasetException(
                "max_corrupted_records_to_skip can only be set for record_format='TFRecord'"
            )
        if record_format not in FORMATS:
            raise tf.errors.InvalidArgumentError(
                None, None, f"Invalid record format: {record_format}"
            )
        report = _Report(benchmark, benchmark_records_interval)
        epochs = Epochs(settings, report, max_corrupted_records_to_skip)
        if record_format == "TFRecord":
            self._made = _TFRecords(epochs)
            self._records = self._made.dataset
        else:
            self._made = _Generated(epochs.begin, epochs.records, epochs.end, _CUT)
            self._records = _lines_or_recordio(self._made.dataset)
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

    def records(self, read_ns, ends, count, records):
        """Tell of the records that have these ends in a segment; ``count`` came before it.

        Numbers are of one record. ``read_ns`` is what all took.
        """
        starts = [LEAD_BYTES, *ends]
        first = self.interval - count % self.interval
        for number in range(first, records + 1, self.interval):
            size = starts[number] - starts[number - 1] if number < len(starts) else 0
            _say("records", count + number)
            _say("records read_time_ns", read_ns // records)
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


class _Generated:
    """A dataset of what Python returns, as ``Dataset.from_generator`` without most of its costs.

    ``begin()`` returns a key for an iterator, ``following(key)`` its next element until it raises
    StopIteration, and ``end(key)`` is called when the iterator is done with or dropped. The
    functions live as long as this object.
    """

    def __init__(self, begin, following, end, specs):
        functions = [
            _wrapped(begin, _KEY).get_concrete_function(),
            _wrapped(following, *specs).get_concrete_function(_KEY),
            _wrapped(end, _KEY).get_concrete_function(_KEY),
        ]
        self._functions = functions
        self.dataset = _generator([], functions, specs)


def _wrapped(function, *specs):
    def call(*key):
        values = tf.numpy_function(function, key, [spec.dtype for spec in specs])
        for value, spec in zip(values, specs, strict=True):
            value.set_shape(spec.shape)
        return values

    return tf.function(call, autograph=False)


def _generator(arguments, functions, specs):
    first, after, last = functions
    variant = tf.raw_ops.GeneratorDataset(
        init_func_other_args=arguments,
        next_func_other_args=[],
        finalize_func_other_args=[],
        init_func=first,
        next_func=after,
        finalize_func=last,
        output_types=[spec.dtype for spec in specs],
        output_shapes=[spec.shape for spec in specs],
    )
    return tf.data.experimental.from_variant(variant, specs)


def _lines_or_recordio(segments):
    """Return the dataset of records that were cut in Python."""
    return segments.map(sound).unbatch()


class _TFRecords:
    """The dataset of TFRecords: ``dataset``. The other functions live as long as this object."""

    def __init__(self, epochs):
        self._epochs = epochs
        same = tf.function(lambda key: key, autograph=False).get_concrete_function(_KEY)
        self._plain, self._sealed = (
            (same, _wrapped(following, *specs).get_concrete_function(_KEY), same)
            for following, specs in ((epochs.plain, _PLAIN), (epochs.sealed, _SEALED))
        )
        self._opened = _Generated(epochs.begin, epochs.opened, epochs.end, (_KEY, _FLAG))
        # Each dataset that comes after the last unbatching would cost time with each record.
        self.dataset = self._opened.dataset.flat_map(self._records).unbatch()

    @tf.autograph.experimental.do_not_convert
    def _records(self, key, large):
        return tf.cond(large, lambda: self._one_by_one(key), lambda: self._at_once(key))

    def _one_by_one(self, key):
        """Large records: each is read straight to where it stays."""

        @tf.autograph.experimental.do_not_convert
        def decoded(path, number, buffer_bytes, fault):
            # The first one is in the place of what a sealed segment has there. Not to the end of
            # the file: to cut it off would cost the memory behind it.
            records = tf.data.TFRecordDataset(sound(path, fault), buffer_size=buffer_bytes)
            return records.skip(1).take(number)

        # Batches of one are not copied.
        return _generator([key], self._plain, _PLAIN).flat_map(decoded).batch(1)

    def _at_once(self, key):
        """Small records: a segment is one record, which is checked and cut; see ``sealing``."""
        damaged = tf.data.Dataset.from_tensors("")

        @tf.autograph.experimental.do_not_convert
        def decoded(key, path, begins, lengths):
            sealed = tf.data.TFRecordDataset(path, buffer_size=0)
            data = sealed.ignore_errors().concatenate(damaged).take(1).get_single_element()

            def good_ones():
                found = tf.numpy_function(self._epochs.examined, [key], [tf.string, tf.string])
                return sound(*found)

            records = tf.cond(
                tf.equal(data, ""), good_ones, lambda: tf.strings.substr(data, begins, lengths)
            )
            records.set_shape([None])
            return records

        # In a thread of its own, beside what takes the records.
        return _generator([key], self._sealed, _SEALED).map(decoded).prefetch(1)


@tf.autograph.experimental.do_not_convert
def sound(value, fault):
    """Return ``value``; raise InvalidArgumentError where there is a fault, with its text.

    An exception in a Python function would be an UnknownError with a traceback in its message.
    InvalidArgumentError is what TensorFlow's own decoders make of data that they cannot read.
    """

    def fail():
        with tf.control_dependencies([tf.raw_ops.Assert(condition=False, data=[fault])]):
            return tf.constant(0)

    raised = tf.cond(tf.equal(fault, ""), lambda: tf.constant(0), fail)
    with tf.control_dependencies([raised]):
        return tf.identity(value)
