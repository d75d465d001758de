"""Reads small regular files whole, and never waits: for files that people or options name."""

from __future__ import annotations

import os
import stat

from sm_runtime.job.errors import ConfigError

MAX_BYTES = 16 << 20
"""The most that a file of configuration may hold."""
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read(path: str) -> bytes | None:
    """Return what the file ``path`` holds; None if there is no such file.

    A FIFO is refused, which would wait for a writer, and a device is not even opened, which may do
    something. Raises ConfigError where it is no regular file, too large, or cannot be read.
    """
    try:
        _check(path, os.stat(path).st_mode)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            _check(path, os.fstat(fd).st_mode)  # another may have taken its place
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES >> 20} MiB")
    return data


def _check(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise ConfigError(f"{path}: is {kind}, it must be a file")
