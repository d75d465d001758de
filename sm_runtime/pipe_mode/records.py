"""A plain reader of the records of a Pipe channel, without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sm_runtime.pipe_mode.cutting import records
from sm_runtime.pipe_mode.epochs import take_epoch
from sm_runtime.pipe_mode.errors import PipeModeDatasetException
from sm_runtime.pipe_mode.fifo import Fifo
from sm_runtime.pipe_mode.framing import framing
from sm_runtime.pipe_mode.settings import FORMATS, Settings, find


def read_records(
    channel: str,
    record_format: str = "RecordIO",
    *,
    state_dir: str | None = None,
    pipe_dir: str | None = None,
    config_dir: str | None = None,
    timeout_seconds: float = 120.0,
) -> Iterator[bytes]:
    """Return an iterator over the records of the channel's next epoch.

    The arguments and the state are those of ``PipeModeDataset``: both can be used in turns. The
    epoch is taken with the first record; to close the iterator early ends it. Of TFRecords the
    CRCs of the data are not checked. Raises PipeModeDatasetException and FileNotFoundError at
    once; with the records come CorruptedError, TimeoutError, ValueError and OSError.
    """
    if record_format not in FORMATS:
        raise PipeModeDatasetException(f"Invalid record format: {record_format}")
    settings = find(
        channel,
        record_format,
        state_dir=state_dir,
        pipe_dir=pipe_dir,
        config_dir=config_dir,
        timeout_seconds=timeout_seconds,
    )
    return _records(settings)


def _records(settings: Settings) -> Iterator[bytes]:
    epoch = take_epoch(settings.state_dir, settings.channel)
    fifo = Fifo(os.path.join(settings.pipe_dir, f"{settings.channel}_{epoch}"))
    try:
        fifo.open(settings.timeout_seconds)
        yield from records(fifo, framing(settings.record_format))
    finally:
        fifo.close()
