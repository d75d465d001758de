"""Makes each channel ready before the script starts."""

from __future__ import annotations

import logging
import os

from sm_runtime.errors import DataError
from sm_runtime.model import Channel, Job

log = logging.getLogger(__name__)


def prepare(job: Job) -> None:
    """Place the data of every channel that names a local source.

    A folder that holds something already is used as it is: the data has been placed by hand.
    Raises DataError naming the channel.
    """
    for channel in job.channels:
        placed = _filled(channel.path) and not os.path.islink(channel.path)
        if channel.source is not None and not placed:
            _link(channel, _local(channel))


def problems(job: Job) -> list[str]:
    """Return a sentence for each channel that the script would not find."""
    found = []
    for channel in job.channels:
        try:
            if _filled(channel.path):
                continue
            if channel.source is not None:
                _local(channel)
            elif channel.mode == "File":
                state = "is empty" if os.path.isdir(channel.path) else "does not exist"
                found.append(f"channel {channel.name}: {channel.path} {state}")
        except DataError as error:
            found.append(str(error))
    return found


def _filled(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _local(channel: Channel) -> str:
    """Return the local folder that a channel's source names."""
    from urllib.parse import unquote

    assert channel.source is not None
    uri = channel.source.uri
    where = f"channel {channel.name}: {uri}"
    if channel.mode == "Pipe":
        raise DataError(f"{where}: Pipe mode is not available in this version")
    if channel.source.data_type not in ("S3Prefix", "FileSystem"):
        kind = channel.source.data_type
        raise DataError(f"{where}: S3DataType {kind} is not available in this version")
    scheme, separator, rest = uri.partition("://")
    if separator and scheme != "file":
        raise DataError(f"{where}: {scheme}:// is not available in this version")
    # Not urlsplit: '#' and '?' are characters of a path like any other.
    path = unquote(rest.removeprefix("localhost")) if separator else uri
    if not os.path.isdir(path):
        state = "is not a folder" if os.path.exists(path) else "does not exist"
        raise DataError(f"{where}: {state}")
    if not _filled(path):
        raise DataError(f"{where}: is empty")
    return path


def _link(channel: Channel, source: str) -> None:
    """Let the channel's path lead to ``source``: nothing is copied."""
    try:
        os.makedirs(os.path.dirname(channel.path), exist_ok=True)
        if os.path.isdir(channel.path) and not os.path.islink(channel.path):
            os.rmdir(channel.path)
        elif os.path.islink(channel.path):
            os.unlink(channel.path)
        os.symlink(source, channel.path)
    except OSError as error:
        raise DataError(f"channel {channel.name}: {channel.path}: {error.strerror}") from None
    log.info("channel %s: %s -> %s", channel.name, channel.path, source)
