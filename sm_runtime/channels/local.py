"""Decides how a channel with a source on this machine comes to the script.

In File mode it is a folder of the script's own, as one from S3 is: copied by ``download``. What the
script must not write to (FastFile mode, a file system of access mode ``ro``) is mounted read-only
where that is possible, and is a copy without write permission elsewhere. A file system of access
mode ``rw`` is there to be written to: it is mounted, or else a link.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sm_runtime.channels import Bind, is_filled, is_ours, is_placed
from sm_runtime.channels.folder import clear, errors_named
from sm_runtime.channels.objects import file_uri, key_of
from sm_runtime.job import location
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Job

log = logging.getLogger(__name__)

_STOP_EVERY = 4096
_ALLOW = "--cap-add SYS_ADMIN (on hosts with AppArmor also --security-opt apparmor=unconfined)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the data of channels comes to where the script looks for it."""

    filled: tuple[Channel, ...]
    """Those whose folders are filled, from here or from afar."""
    locked: frozenset[str]
    """The names of those of them that lose all write permission."""
    binds: tuple[Bind, ...]
    """What is mounted for the script."""


def plan(job: Job, channels: Sequence[Channel], stopped: Callable[[], bool]) -> Plan:
    """Return what is to be done for channels that are files; links are made at once.

    Raises DataError naming the channel.
    """
    wishes = {channel.name: wish for channel in channels if (wish := _wish(channel, stopped))}
    refused: Mapping[str, str] = {}
    if wishes:
        from sm_runtime.channels.mounts import obstacles

        refused = obstacles(tuple(wishes.values()))
    filled, locked, binds = [], [], []
    for channel in channels:
        wish = wishes.get(channel.name)
        is_refused = channel.name in refused
        if wish and not is_refused:
            binds.append(wish)
        if wish and wish.source != channel.path and not (is_refused and wish.is_read_only):
            clear(channel.name, channel.path, stopped)
            if is_refused:
                _link(channel, wish.source, refused[channel.name])
            continue
        if is_refused:
            locked.append(channel.name)
        if reason := _overlap(channel, job):
            raise DataError(reason)
        filled.append(channel)
    _warn(locked, refused, is_linked=job.options.link_channels)
    return Plan(filled=tuple(filled), locked=frozenset(locked), binds=tuple(binds))


def problem(channel: Channel, job: Job) -> str | None:
    """Return what is wrong with the source of a channel, as a sentence; None for what is remote."""
    source, path = channel.source, source_path(channel)
    assert source is not None
    if path is None:
        return None
    where = f"channel {channel.name}: {source.uri}"
    if not os.path.exists(path) and not (source.data_type == "S3Prefix" and _matches(path)):
        return f"{where} does not exist"
    if source.data_type in ("ManifestFile", "AugmentedManifestFile"):
        return None if os.path.isfile(path) else f"{where} is not a file"
    if source.data_type == "FileSystem" and not os.path.isdir(path):
        return f"{where} is not a folder"
    may_be_empty = job.options.allow_empty_channels or _is_shared(channel)
    if os.path.isdir(path) and not may_be_empty and not is_filled(path):
        return f"{where} matched 0 objects"
    return None if source.data_type == "FileSystem" else _overlap(channel, job)


def source_path(channel: Channel) -> str | None:
    """Return the path that a channel's source names; None where it is not on this machine."""
    assert channel.source is not None
    uri = file_uri(channel.source.uri)
    if not location.is_file(uri):
        return None
    return key_of(uri).rstrip("/") or "/"


def _is_shared(channel: Channel) -> bool:
    """Return whether what the script writes to the channel is to reach its source."""
    source = channel.source
    assert source is not None
    return source.data_type == "FileSystem" and not source.read_only


def _wish(channel: Channel, stopped: Callable[[], bool]) -> Bind | None:
    """Return the mount that a channel should be; None where a folder of its own is right."""
    source, path = channel.source, source_path(channel)
    assert source is not None
    if path is None:
        return None
    if source.data_type == "FileSystem":
        is_whole, is_read_only = source.compression != "Gzip", source.read_only
    else:
        is_whole, is_read_only = _is_whole(channel, path, stopped), channel.mode == "FastFile"
        if not is_read_only:
            return None
    # Else it is a selection: filled as in File mode, and then mounted upon itself.
    shown = path if is_whole else channel.path
    return Bind(channel=channel.name, source=shown, path=channel.path, is_read_only=is_read_only)


def _is_whole(channel: Channel, path: str, stopped: Callable[[], bool]) -> bool:
    """Return whether a FastFile channel can be shown by showing one folder."""
    if channel.mode != "FastFile" or channel.distribution != "FullyReplicated":
        return False
    if not os.path.isdir(path):
        return False
    link = _outward_link(channel.name, path, stopped)
    if link is None:
        return True
    log.info("channel %s: %s leads out of %s, whose files are copied", channel.name, link, path)
    return False


def _outward_link(name: str, top: str, stopped: Callable[[], bool]) -> str | None:
    """Return a symbolic link below ``top`` that would not work, or not be read-only, elsewhere."""
    real = os.path.realpath(top)
    folders = [top]
    for folder in folders:  # more are found as it goes
        with errors_named(name, folder), os.scandir(folder) as entries:
            for position, entry in enumerate(entries):
                if position % _STOP_EVERY == 0 and stopped():
                    raise DataError(f"{folder} cannot be listed: a stop was asked for")
                if entry.is_symlink():
                    if _leads_out(entry.path, top, real):
                        return entry.path
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return None


def _leads_out(link: str, top: str, real: str) -> bool:
    target = os.readlink(link)
    below = os.path.normpath(os.path.join(os.path.relpath(os.path.dirname(link), top), target))
    if os.path.isabs(target) or below.split("/")[0] == "..":
        return True
    return not (os.path.realpath(link) + "/").startswith(real.rstrip("/") + "/")


def _overlap(channel: Channel, job: Job) -> str | None:
    """Return why a source cannot be copied, as it holds what is filled meanwhile, or lies in it."""
    source, path = channel.source, source_path(channel)
    assert source is not None
    if path is None or source.data_type in ("ManifestFile", "AugmentedManifestFile"):
        return None
    where = f"channel {channel.name}: {source.uri}"
    # A path that names no folder stands for all that begin with it.
    begin = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    if os.path.isdir(path):
        begin = os.path.realpath(path).rstrip("/") + "/"
    for other in job.channels:
        if not is_ours(other, job) or is_placed(other.path):
            continue
        target = os.path.realpath(os.path.dirname(other.path)) + f"/{other.name}/"
        if begin.startswith(target):
            return f"{where} is in the folder of channel {other.name}, which is filled meanwhile"
        if target.startswith(begin):
            return f"{where} holds the job's own folder {other.path}; name the folder of the data"
    return None


def _matches(prefix: str) -> bool:
    """Return whether the path of anything begins with ``prefix``."""
    folder, _, name = prefix.rpartition("/")
    with contextlib.suppress(OSError), os.scandir(folder or "/") as entries:
        return any(entry.name.startswith(name) for entry in entries)
    return False


def _link(channel: Channel, source: str, reason: str) -> None:
    """Let the channel's path lead to ``source``: what is written there reaches it."""
    with errors_named(channel.name, channel.path):
        os.makedirs(channel.path, exist_ok=True)
        os.rmdir(channel.path)
        os.symlink(source, channel.path)
    log.info(
        "channel %s: a link to %s, as nothing can be mounted here (%s); %s allows it",
        channel.name, source, reason, _ALLOW,
    )  # fmt: skip


def _warn(locked: Sequence[str], refused: Mapping[str, str], *, is_linked: bool) -> None:
    """Say once what is not as read-only as it should be."""
    if not locked:
        return
    what = "copied, without write permission"
    if is_linked:
        what = "links, through which the script can write to the source"
    elif os.geteuid() == 0:
        what += ", which does not bind root"
    log.warning(
        "channel%s %s: nothing can be mounted read-only here (%s), so the files are %s; %s allows"
        " mounts",
        "s"[: len(locked) > 1], ", ".join(locked), refused[locked[0]], what, _ALLOW,
    )  # fmt: skip
