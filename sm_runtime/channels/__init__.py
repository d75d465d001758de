"""Makes each channel ready before the script starts.

Where the platform has placed the data there is nothing to do, and nothing else is imported. In a
self-managed job local folders are linked, objects are downloaded (``download``), and FastFile
channels are mounted (``fastfile``). Pipe channels are fed by ``pipe``.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from sm_runtime.errors import ConfigError, DataError
from sm_runtime.model import Channel, Job

log = logging.getLogger(__name__)

UNFINISHED = ".sm-runtime-download"
"""The file that a channel's folder holds until its download is complete."""


def check(job: Job) -> None:
    """Raise ConfigError if a channel asks for what its mode does not have; nothing is touched."""
    if found := refusals(job):
        raise ConfigError(found)


def refusals(job: Job) -> list[str]:
    """Return a sentence for each channel that asks for what its mode does not have."""
    return [
        f"channel {channel.name}: {reason}"
        for channel in job.channels
        if channel.source is not None and (reason := _refusal(channel, job))
    ]


def prepare(
    job: Job, environ: Mapping[str, str], stopped: Callable[[], bool] = lambda: False
) -> None:
    """Place the data of every File channel that names a source, and link local FastFile channels.

    A folder that holds something already is used as it is: the data has been placed by hand. The
    rest is downloaded with the credentials of ``environ``, all channels at once. Raises DataError
    naming the channel, also when ``stopped`` says so.
    """
    check(job)
    wanted = []
    for channel in job.channels:
        if not _is_ours(channel, job) or _is_placed(channel.path):
            continue
        if _is_linked(channel):
            _link(channel, _local(channel))
        elif not _is_mounted(channel):
            wanted.append(channel)
        elif missing := _source_problems(channel):  # in time: it is mounted much later
            raise DataError(missing[0])
    if wanted:
        from sm_runtime.channels import download

        download.run(job, wanted, environ, stopped)


@contextmanager
def mounted(job: Job, environ: Mapping[str, str]) -> Iterator[tuple[int, ...]]:
    """Mount the FastFile channels of object storage while the block lasts.

    Yields the ids of the processes that serve them: they are no part of the script, and have to
    outlive it. Raises DataError.
    """
    wanted = [
        channel
        for channel in job.channels
        if _is_ours(channel, job) and _is_mounted(channel) and not _is_placed(channel.path)
    ]
    if not wanted:
        yield ()
        return
    from sm_runtime.channels import fastfile

    with fastfile.Mounts(job, wanted, environ) as mounts:
        yield mounts.pids


def problems(job: Job) -> list[str]:
    """Return a sentence for each channel that the script would not find; no network is used."""
    found = refusals(job)
    for channel in job.channels:
        try:
            if _is_placed(channel.path) or channel.mode == "Pipe":
                continue
            if channel.source is None:
                if channel.mode == "File":
                    state = "is empty" if os.path.isdir(channel.path) else "does not exist"
                    found.append(f"channel {channel.name}: {channel.path} {state}")
            elif _is_ours(channel, job):
                found += _source_problems(channel)
        except DataError as error:
            found.append(str(error))
    return found


def _source_problems(channel: Channel) -> list[str]:
    assert channel.source is not None
    if _is_linked(channel):
        _local(channel)
    elif _is_mounted(channel):
        from sm_runtime.channels import fastfile

        return fastfile.problems(channel)
    elif _local_path(channel.source.uri) is None:
        from importlib.util import find_spec

        from sm_runtime.storage import access

        if not find_spec("boto3"):
            return [f"channel {channel.name}: {access.needs_boto3(channel.source.uri)}"]
    return []


def _refusal(channel: Channel, job: Job) -> str | None:
    """Return what the channel's mode does not have (AWS API reference, ``Channel``)."""
    source = channel.source
    assert source is not None
    groups = [group.name for group in job.cluster.groups]
    for name in source.instance_groups if groups else ():
        if name not in groups:
            known = ", ".join(map(repr, groups))
            return f"InstanceGroupNames: {name!r} is none of the instance groups {known}"
    if channel.mode == "FastFile":
        if source.data_type not in ("S3Prefix", "FileSystem"):
            return f"FastFile mode reads S3DataType S3Prefix, not {source.data_type}"
        if source.compression == "Gzip":
            return "CompressionType Gzip cannot be had in FastFile mode: use File or Pipe mode"
    is_augmented = source.data_type == "AugmentedManifestFile"
    if channel.mode == "File" and is_augmented and source.compression == "Gzip":
        return "CompressionType Gzip cannot be had with AugmentedManifestFile in File mode"
    return None


def _is_ours(channel: Channel, job: Job) -> bool:
    """Return whether the channel is to be placed on this host, as files."""
    if channel.source is None or channel.mode == "Pipe":
        return False
    groups = channel.source.instance_groups
    return not groups or not job.cluster.groups or job.cluster.current_group in groups


def _is_linked(channel: Channel) -> bool:
    """Return whether the channel's folder is just the local one that its source names."""
    source = channel.source
    assert source is not None
    path = _local_path(source.uri)
    if path is None or source.compression == "Gzip":
        return False
    if source.data_type == "FileSystem":
        return True
    is_all = source.data_type == "S3Prefix" and channel.distribution == "FullyReplicated"
    return is_all and (os.path.isdir(path) or not _matches(path))


def _is_mounted(channel: Channel) -> bool:
    assert channel.source is not None
    return channel.mode == "FastFile" and _local_path(channel.source.uri) is None


def _is_placed(path: str) -> bool:
    """Return whether there is data in a channel's folder that no job of ours has put there."""
    if os.path.islink(path) or not _filled(path):
        return False
    return not os.path.lexists(os.path.join(path, UNFINISHED))


def _filled(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ENOTCONN:  # a mount that nobody serves any more
            return False
        raise DataError(f"{path}: {error.strerror}") from None


def _local_path(uri: str) -> str | None:
    """Return the path that ``file://`` or a bare path names; None for other URIs."""
    from urllib.parse import unquote

    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    # Not urlsplit: '#' and '?' are characters of a path like any other.
    return unquote(rest.removeprefix("localhost")) if scheme == "file" else None


def _matches(prefix: str) -> bool:
    """Return whether the path of anything begins with ``prefix``."""
    folder, _, name = prefix.rpartition("/")
    try:
        with os.scandir(folder or "/") as entries:
            return any(entry.name.startswith(name) for entry in entries)
    except OSError:
        return False


def _local(channel: Channel) -> str:
    """Return the local folder that a channel's source names."""
    assert channel.source is not None
    where = f"channel {channel.name}: {channel.source.uri}"
    path = _local_path(channel.source.uri)
    assert path is not None
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
