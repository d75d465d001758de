"""Says before the first byte whether there is room for all that is to come."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sm_runtime.job.errors import DataError
from sm_runtime.job.text import human_size

_MOUNTS = "/proc/self/mounts"
_IN_MEMORY = ("tmpfs", "devtmpfs", "ramfs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a channel will take."""

    channel: str
    folder: str
    """Where; it need not be there yet."""
    size_bytes: int
    files: int
    bare: int = 0
    """Files that take no block: links, and those that share the blocks of others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """A file system that has not the room for what channels will take."""

    needs: tuple[Need, ...]
    reason: str
    """A sentence."""


def check(needs: Iterable[Need]) -> None:
    """Raise DataError if the channels of one file system need more room than it has."""
    if found := shortage(needs):
        raise DataError(found.reason)


def shortage(needs: Iterable[Need]) -> Shortage | None:
    """Return where there is not room for what is needed; None where there is."""
    devices: dict[int, list[Need]] = {}
    for need in needs:
        devices.setdefault(os.stat(_existing(need.folder)).st_dev, []).append(need)
    for device, together in devices.items():
        if reason := _reason(device, together):
            return Shortage(needs=tuple(together), reason=reason)
    return None


def _reason(device: int, needs: list[Need]) -> str | None:
    place = _existing(needs[0].folder)
    found = os.statvfs(place)
    total, files = sum(n.size_bytes for n in needs), sum(n.files for n in needs)
    free = found.f_bavail * found.f_frsize
    # A file takes whole blocks: half of one too much on average.
    blocks = total + files * found.f_frsize // 2
    names = ", ".join(need.channel for need in needs)
    who = f"channel {names} needs" if len(needs) == 1 else f"channels {names} need"
    if blocks > free:
        more = "" if total > free else f" with the blocks of {files} files"
        return (
            f"{who} {human_size(max(total, blocks if more else 0))}{more},"
            f" {place} has {human_size(free)} free{_largest(device)}"
        )
    files += sum(n.bare for n in needs)
    if found.f_files and files > found.f_favail:
        return f"{who} {files} files, {place} has room for {found.f_favail} more"
    return None


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _largest(besides: int) -> str:
    """Return where there is most room, as a remark."""
    best, place = 0, ""
    for folder in _mounted():
        try:
            if not os.path.isdir(folder) or os.stat(folder).st_dev == besides:
                continue
            found = os.statvfs(folder)
        except OSError:
            continue
        free = found.f_bavail * found.f_frsize
        if free > best and not found.f_flag & os.ST_RDONLY:
            best, place = free, folder
    return f" (largest free: {place} {human_size(best)})" if place else ""


def _mounted() -> Iterator[str]:
    """Yield the folders that storage is mounted at (proc(5): blanks are octal there)."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            for entry in file:
                _, folder, kind = entry.split(" ")[:3]
                if kind not in _IN_MEMORY:
                    yield folder.replace("\\040", " ").replace("\\134", "\\")
    except OSError:
        return
