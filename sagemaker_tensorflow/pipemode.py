"""A ``tf.data.Dataset`` over the epochs of a Pipe channel.

The FIFO is read by ``sm_runtime.pipe_mode``, which finds where records end; TFRecords are decoded,
and their CRCs checked, by TensorFlow's own kernels, which get many of them as a file in memory.
"""

import tensorflow as tf

from sagemaker_tensorflow import graph
from sagemaker_tensorflow.epoch import Epochs
from sm_runtime.pipe_mode import PipeModeDatasetException
from sm_runtime.pipe_mode.records import FORMATS, find
from sm_runtime.pipe_mode.stream import LEAD_BYTES

__all__ = ["PipeModeDataset", "PipeModeDatasetException"]


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
            self._made = graph.TFRecords(epochs)
            self._records = self._made.dataset
        else:
            self._made = graph.Generated(epochs.begin, epochs.records, epochs.end, graph.CUT)
            self._records = graph.lines_or_recordio(self._made.dataset)
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
