"""A plain reader of the records of a Pipe channel, with the arguments of ``PipeModeDataset``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sm_runtime.pipe_mode import PipeModeDatasetException
from sm_runtime.pipe_mode.fifo import Fifo, take_epoch
from sm_runtime.pipe_mode.framing import framing, records

if TYPE_CHECKING:
    from sm_runtime.job.model import Json

FORMATS = ("RecordIO", "TFRecord", "TextLine")
CHANNELS = "SM_INPUT_DATA_CONFIG"
"""The variable of a job that describes its channels, as ``inputdataconfig.json`` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A Pipe channel, and how it is to be read."""

    channel: str
    record_format: str
    """``RecordIO``, ``TFRecord`` or ``TextLine``."""
    state_dir: str
    """Where the number of the next epoch is kept; it is made with the first record."""
    pipe_dir: str
    """Where ``<channel>_<epoch>`` is, a FIFO or a file."""
    timeout_seconds: float
    """How long that may take to appear, and a FIFO to be written to."""


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


def find(
    channel: str,
    record_format: str,
    *,
    state_dir: str | os.PathLike[str] | None,
    pipe_dir: str | os.PathLike[str] | None,
    config_dir: str | os.PathLike[str] | None,
    timeout_seconds: float,
) -> Settings:
    """Return the settings of a channel that exists and is in Pipe mode; nothing is changed.

    Folders that are None are those of the job: below ``$SAGEMAKER_BASE_DIR``, else ``/opt/ml``.
    Without ``config_dir`` the channels are those of ``$SM_INPUT_DATA_CONFIG``, else of the file.
    Raises FileNotFoundError where there is no ``inputdataconfig.json``, and
    PipeModeDatasetException.
    """
    base = os.path.abspath(os.environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml")
    folder = os.fspath(config_dir) if config_dir else os.path.join(base, "input", "config")
    path = os.path.join(folder, "inputdataconfig.json")
    text = None if config_dir else os.environ.get(CHANNELS)
    channels = _described(text, CHANNELS) if text else _read(path)
    found = Settings(
        channel=channel,
        record_format=record_format,
        state_dir=os.fspath(state_dir) if state_dir else os.path.join(base, "pipe_state"),
        pipe_dir=os.fspath(pipe_dir) if pipe_dir else os.path.join(base, "input", "data"),
        timeout_seconds=timeout_seconds,
    )
    _check(found, channels, CHANNELS if text else path)
    return found


def _read(path: str) -> Mapping[str, Json]:
    with open(path, encoding="utf-8") as file:
        return _described(file.read(), path)


def _described(text: str, origin: str) -> Mapping[str, Json]:
    try:
        channels = json.loads(text)
    except ValueError as error:
        raise PipeModeDatasetException(f"{origin} is not JSON: {error}") from None
    if not isinstance(channels, dict):
        raise PipeModeDatasetException(f"{origin} is not a JSON object")
    return channels


def _check(settings: Settings, channels: Mapping[str, Json], origin: str) -> None:
    name = settings.channel
    if name not in channels:
        known = ", ".join(sorted(channels)) or "none"
        raise PipeModeDatasetException(
            f"Channel {name} not found in Training Job InputDataConfig"
            f" ({origin} has these channels: {known})"
        )
    described = channels[name]
    mode = described.get("TrainingInputMode", "") if isinstance(described, dict) else ""
    if str(mode).lower() != "pipe":
        raise PipeModeDatasetException(
            f"Channel {name} is not a PipeMode channel (its TrainingInputMode is {mode!r} in"
            f" {origin}; read the files in {os.path.join(settings.pipe_dir, name)} instead)"
        )
