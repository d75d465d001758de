"""Files that are being written: under a name of their own, until they are complete."""

from __future__ import annotations

import contextlib
import errno
import os

from sm_runtime.job.errors import DataError
from sm_runtime.storage import Blob

_LONGEST_NAME = 255
_SUFFIX = ".sm-runtime.part"


def part_of(path: str, writer: str = "") -> str:
    """Return the name that a file has until it is complete: none that a key is likely to have.

    ``writer`` tells apart those who may write the same file at the same time.
    """
    folder, name = os.path.split(path)
    if writer:
        name = f"{name}.{writer}"
    if len(os.fsencode(name)) + len(_SUFFIX) > _LONGEST_NAME:
        import hashlib

        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return os.path.join(folder, name + _SUFFIX)


def is_part(name: str) -> bool:
    """Return whether ``part_of`` has made this name."""
    return name.endswith(_SUFFIX)


def new_file(path: str, mode: int = 0o666) -> int:
    """Open an empty file, in the place of what an earlier attempt may have left."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, mode)


def not_written(blob: Blob, path: str, error: OSError) -> DataError:
    """Return the sentence about a file that cannot be written."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = os.path.dirname(path) or "."
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            reason += f" ({blob.size_bytes} bytes needed, {found.f_bavail * found.f_frsize} free)"
    return DataError(f"{blob.uri} cannot be written to {path}: {reason}")
