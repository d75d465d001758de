"""Makes each channel ready before the script starts.

Where the platform has placed the data there is nothing to do, and nothing else is imported. In a
self-managed job folders are filled (``download``): with objects of S3, and with copies of files of
this machine, unless these are shown where they are (``local``, ``binding``). FastFile channels of
S3 are mounted by ``fastfile``. Pipe channels are fed by ``pipe``.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from sm_runtime.job import location
from sm_runtime.job.dataclass import dataclass
from sm_runtime.job.errors import ConfigError, DataError
from sm_runtime.job.model import Channel, Job

log = logging.getLogger(__name__)

UNFINISHED = ".sm-runtime-download"
"""The file that a channel's folder holds until its download is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A folder that is to be seen at the path of a channel while the script runs."""

    channel: str
    source: str
    """The path itself where what is there is only to become read-only."""
    path: str
    is_read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What ``prepare`` leaves to be done while the script runs, and after it."""

    binds: tuple[Bind, ...] = ()
    locked: tuple[str, ...] = ()
    """The folders without write permission, which their owner could not even remove."""


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
) -> Placed:
    """Place the data of every channel that names a source and is files; see ``bound`` for the rest.

    A folder that holds something already is used as it is: the data has been placed by hand. The
    rest is fetched with the credentials of ``environ``, all channels at once. Raises DataError
    naming the channel, also when ``stopped`` says so.
    """
    check(job)
    wanted = []
    for channel in job.channels:
        if not is_ours(channel, job):
            continue
        if is_placed(channel.path):
            log.info("channel %s: what %s holds is used", channel.name, channel.path)
            continue
        if found := _source_problems(channel, job):
            raise DataError(found[0])
        if not _is_mounted(channel):
            wanted.append(channel)
            continue
        from sm_runtime.channels import folder

        folder.clear(channel.name, channel.path, stopped)
    if not wanted:
        return Placed()
    from sm_runtime.channels import download, local

    plan = local.plan(job, wanted, stopped)
    download.run(job, plan.filled, environ, stopped, locked=plan.locked)
    locked = tuple(channel.path for channel in plan.filled if channel.name in plan.locked)
    return Placed(binds=plan.binds, locked=locked)


@contextmanager
def bound(placed: Placed) -> Iterator[None]:
    """Show what ``prepare`` has left to be shown, while the block lasts. Raises DataError.

    It is seen by this thread alone, and by the processes that it starts.
    """
    with ExitStack() as undo:
        if placed.locked:
            from sm_runtime.channels import folder

            for path in placed.locked:
                undo.callback(folder.unlock, path)
        if placed.binds:
            from sm_runtime.channels import mounts

            undo.enter_context(mounts.bound(placed.binds))
        yield


@contextmanager
def mounted(job: Job, environ: Mapping[str, str]) -> Iterator[tuple[int, ...]]:
    """Mount the FastFile channels of object storage while the block lasts.

    Yields the ids of the processes that serve them: they are no part of the script, and have to
    outlive it. Raises DataError.
    """
    wanted = [
        channel
        for channel in job.channels
        if is_ours(channel, job) and _is_mounted(channel) and not is_placed(channel.path)
    ]
    if not wanted:
        yield ()
        return
    from sm_runtime.channels import fastfile

    with fastfile.mounted(job, wanted, environ) as pids:
        yield pids


def absent(job: Job) -> tuple[str, ...]:
    """Return a sentence for each channel that is said to be in its folder, and has none.

    In a managed job the platform has placed the data; in any other nobody has where a channel names
    no source. A FIFO may be made later than we look, by the platform.
    """
    found = []
    for channel in job.channels:
        if channel.source is not None:
            continue
        where = f"channel {channel.name}: {channel.path}"
        if channel.mode != "Pipe":
            if not os.path.exists(channel.path):
                found.append(f"{where} does not exist")
        elif not job.managed and not os.path.lexists(f"{channel.path}_0"):
            found.append(f"{where}_0 does not exist, and the channel has no DataSource to make it")
    return tuple(found)


def problems(job: Job) -> list[str]:
    """Return a sentence for each channel that the script would not find; no network is used."""
    found = [*refusals(job), *absent(job)]
    for channel in job.channels:
        if channel.mode == "Pipe":
            continue
        try:
            if channel.source is None:
                if os.path.exists(channel.path) and not is_filled(channel.path):
                    state = "is empty" if os.path.isdir(channel.path) else "is no folder"
                    found.append(f"channel {channel.name}: {channel.path} {state}")
            elif is_ours(channel, job) and not is_placed(channel.path):
                found += _source_problems(channel, job)
        except DataError as error:
            found.append(str(error))
    return found


def _source_problems(channel: Channel, job: Job) -> list[str]:
    assert channel.source is not None
    if _is_mounted(channel):
        from sm_runtime.channels import fastfile

        return fastfile.problems(channel)
    if _is_local(channel):
        from sm_runtime.channels import local

        reason = local.problem(channel, job)
        return [reason] if reason else []
    from sm_runtime.storage.s3 import missing

    why = missing(channel.source.uri)
    return [f"channel {channel.name}: {why}"] if why else []


def _refusal(channel: Channel, job: Job) -> str | None:
    """Return what the channel's mode does not have (AWS API reference, ``Channel``)."""
    source = channel.source
    assert source is not None
    groups = [group.name for group in job.cluster.groups]
    for name in source.instance_groups if groups else ():
        if name not in groups:
            known = ", ".join(map(repr, groups))
            return f"InstanceGroupNames: {name!r} is not one of the instance groups {known}"
    if channel.mode == "FastFile":
        if source.data_type not in ("S3Prefix", "FileSystem"):
            return f"FastFile mode reads S3DataType S3Prefix, not {source.data_type}"
        if source.compression == "Gzip":
            return "CompressionType Gzip is not supported in FastFile mode: use File or Pipe mode"
    if source.data_type == "FileSystem" and source.compression == "Gzip" and not source.read_only:
        return "CompressionType Gzip is not supported with FileSystemAccessMode rw"
    is_augmented = source.data_type == "AugmentedManifestFile"
    if channel.mode == "File" and is_augmented and source.compression == "Gzip":
        return "CompressionType Gzip is not supported with AugmentedManifestFile in File mode"
    return None


def is_ours(channel: Channel, job: Job) -> bool:
    """Return whether the channel is to be placed on this host, as files."""
    if channel.source is None or channel.mode == "Pipe":
        return False
    groups = channel.source.instance_groups
    return not groups or not job.cluster.groups or job.cluster.current_group in groups


def is_placed(path: str) -> bool:
    """Return whether there is data in a channel's folder that no job of ours has put there."""
    if os.path.islink(path) or not is_filled(path):
        return False
    from sm_runtime.channels import folder

    return folder.left_by_a_job(path) is None


def is_filled(path: str) -> bool:
    """Return whether there is anything in a folder; raise DataError where that cannot be seen."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ENOTCONN:  # a mount that nobody serves any more
            return False
        raise DataError(f"{path}: {error.strerror}") from None


def _is_local(channel: Channel) -> bool:
    assert channel.source is not None
    return not location.is_s3(channel.source.uri)


def _is_mounted(channel: Channel) -> bool:
    return channel.mode == "FastFile" and not _is_local(channel)
