"""Says before the first byte of code is written whether there is room for all of it."""

from __future__ import annotations

import os

from sm_runtime.job.errors import CodeError
from sm_runtime.job.text import human_size

_BLOCK_BYTES = 4096
"""What a small file takes. Network file systems name blocks of 1 MiB and do not fill them."""


class Room:
    """What is to come into a folder, to be compared with what is free there."""

    def __init__(self, folder: str) -> None:
        self._mount = os.path.realpath(folder)
        while not os.path.ismount(self._mount):
            self._mount = os.path.dirname(self._mount)
        self._system = os.statvfs(folder)
        self._bytes = self._files = 0

    def take(self, size_bytes: int) -> None:
        """Count one file, link or folder more; each takes whole blocks."""
        self._files += 1
        self._bytes += max(1, -(-size_bytes // _BLOCK_BYTES)) * _BLOCK_BYTES

    def check(self, what: str) -> None:
        """Raise CodeError, which ``what`` begins, where there is not enough room."""
        found = self._system
        free = found.f_bavail * found.f_frsize
        if self._bytes > free:
            raise CodeError(
                f"{what} needs {human_size(self._bytes)}, {self._mount} has {human_size(free)} free"
            )
        if found.f_files and self._files > found.f_favail:
            raise CodeError(
                f"{what} has {self._files} files and folders, {self._mount} has room for"
                f" {found.f_favail} more"
            )
