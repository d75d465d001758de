"""Fetches what an earlier attempt of the job left in a place."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sm_runtime.job import location
from sm_runtime.job.errors import ConfigError, DataError
from sm_runtime.job.model import Job
from sm_runtime.storage import Blob, Origin, open_origin
from sm_runtime.storage.parts import is_part
from sm_runtime.sync.plan import Folder

_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was fetched."""

    names: tuple[str, ...] = ()
    size_bytes: int = 0
    kept: int = 0
    """How many files were here already."""


def restore(
    folder: Folder, job: Job, environ: Mapping[str, str], stopped: Callable[[], bool]
) -> Restored:
    """Fetch the files of ``folder.place`` that are not in the folder.

    Nothing there is fine. Raises DataError where something cannot be had or does not fit.
    """
    if _nothing_there(folder):
        return Restored()
    origin = open_origin(folder.place, environ, job.region, stall_seconds=job.options.stall_seconds)
    try:
        found = _named(folder, origin, stopped)
        wanted = {
            name: blob
            for name, blob in found.items()
            if not os.path.lexists(os.path.join(folder.path, name))
        }
        size_bytes = sum(blob.size_bytes for blob in wanted.values())
        _check_space(folder, size_bytes)
        origin.fetch(
            ((blob, os.path.join(folder.path, name)) for name, blob in wanted.items()),
            stopped=stopped,
        )
    finally:
        origin.close()
    return Restored(names=tuple(wanted), size_bytes=size_bytes, kept=len(found) - len(wanted))


def _nothing_there(folder: Folder) -> bool:
    if not location.is_file(folder.place):
        return False
    from sm_runtime.storage.local import path_of

    try:
        return not os.path.isdir(path_of(folder.place))
    except ConfigError as error:
        raise DataError(str(error)) from error


def _named(folder: Folder, origin: Origin, stopped: Callable[[], bool]) -> dict[str, Blob]:
    """Return the objects of the place by the names that they get in the folder."""
    prefix = _prefix(folder)
    found = {}
    for blob in origin.list(folder.place, stopped=stopped):
        name = blob.key.removeprefix(prefix)
        if blob.key.endswith("/") or is_part(name):  # a folder's mark; a copy never completed
            continue
        if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise DataError(f"{folder.what}: {blob.uri} cannot be the name of a file: {name!r}")
        found[name] = blob
    return found


def _prefix(folder: Folder) -> str:
    if (prefix := folder.prefix) is not None:
        return prefix
    from sm_runtime.storage.local import path_of

    return path_of(folder.place).rstrip("/") + "/"


def _check_space(folder: Folder, size_bytes: int) -> None:
    status = os.statvfs(folder.path)
    free_bytes = status.f_bavail * status.f_frsize
    if size_bytes + _SPARE_BYTES > free_bytes and size_bytes:
        raise DataError(
            f"{folder.what}: {folder.place} has {size_bytes} bytes, {folder.path} has room for"
            f" {free_bytes}"
        )
