"""Owns the output folder: the success and failure files; must work when all else failed."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from sm_runtime.job.errors import ArtifactError, ConfigError
from sm_runtime.job.model import Paths

if TYPE_CHECKING:
    from sm_runtime.job.failure import Failure

log = logging.getLogger(__name__)

RESERVED_BYTES = 2**16
"""Disk space that is kept free from the start, so that a full disk can still hold the reason."""


_NO_FALLOCATE = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a seccomp profile that forbids fallocate, or a file system without it, answers."""


def _reserve(path: str) -> OSError | None:
    """Make a file with its blocks; return why fallocate did not, where it is not available."""
    fd = _opener(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.posix_fallocate(fd, 0, RESERVED_BYTES)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise
        os.write(fd, bytes(RESERVED_BYTES))
        return error
    finally:
        os.close(fd)
    return None


def _opener(path: str, flags: int) -> int:
    """Open a file without ever waiting: the script may have put a FIFO there."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


class Report:
    """The files by which a job says how it ended.

    For ``failure`` and ``failure.json`` there are files of 64 KiB from the start; when the job
    fails, they are overwritten in place and renamed, which needs no free block and no free inode.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._document = paths.under("output", "data", "failure.json")
        # Both outside output/data, which is uploaded and may be so at any time.
        self._reserves = {
            paths.failure: paths.under("output", ".failure-reserve"),
            self._document: paths.under("output", ".failure.json-reserve"),
        }

    def prepare(self) -> None:
        """Make the folders, remove what an earlier job left, and reserve space.

        Raises ConfigError where nothing could ever be written; a disk that is full for now is only
        a warning.
        """
        try:
            for folder in (self._paths.output_data, self._paths.model):
                os.makedirs(folder, exist_ok=True)
            for stale in (self._paths.failure, self._paths.success, self._document):
                with suppress(FileNotFoundError):
                    os.unlink(stale)
            for stale in self._paths.measured:
                with suppress(OSError):  # what is measured fails no job
                    os.unlink(stale)
            refused, _ = map(_reserve, self._reserves.values())
            if refused:
                log.info(
                    "without fallocate (%s), space for a failure is reserved by writing",
                    refused.strerror,
                )
        except OSError as error:
            path = error.filename or self._paths.output
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                log.warning("cannot reserve space in %s: %s", path, error.strerror)
                return
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    def failed(self, failure: Failure, mask: Callable[[str], str]) -> None:
        """Write ``output/failure``, unless the script wrote its own, and ``failure.json``."""
        failure = failure.masked(mask)
        if os.path.exists(self._paths.failure):
            log.info("%s is the script's own and is kept", self._paths.failure)
        else:
            self._attempt(self._paths.failure, failure.text())
        self._attempt(self._document, failure.document())
        self._drop_reserves()

    def succeeded(self) -> None:
        """Write ``output/success``; raises ArtifactError where that cannot be done."""
        self._drop_reserves()
        try:
            os.makedirs(self._paths.output, exist_ok=True)  # the script may have removed it
            with open(self._paths.success, "wb", opener=_opener):
                pass
        except OSError as error:
            message = f"{self._paths.success}: cannot be written: {error.strerror}"
            raise ArtifactError(message) from None

    def keep_stacks(self, stacks: bytes, mask: Callable[[str], str]) -> None:
        """Append the stacks of the user's processes to ``output/data/stacks.txt``."""

        path = self._paths.under("output", "data", "stacks.txt")
        try:
            with open(path, "a", errors="backslashreplace", opener=_opener) as file:
                file.write(mask(stacks.decode("utf-8", "backslashreplace")))
        except OSError as error:
            _complain(path, error)

    def _attempt(self, path: str, text: str) -> None:
        reserve = self._reserves[path]
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                _write_over(reserve, text)
                os.rename(reserve, path)
            except OSError as error:
                if error.errno != errno.EXDEV:  # output/data may be a mount of its own
                    raise
                _write_over(path + ".part", text)
                os.rename(path + ".part", path)
        except OSError as error:
            _complain(path, error)
            with suppress(OSError):
                os.unlink(path + ".part")

    def _drop_reserves(self) -> None:
        for reserve in self._reserves.values():
            with suppress(OSError):
                os.unlink(reserve)


def _write_over(path: str, text: str) -> None:
    """Write a file in the place that it has, if it is there."""
    fd = _opener(path, os.O_WRONLY | os.O_CREAT)
    try:
        data = text.encode("utf-8", "backslashreplace")
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def _complain(path: str, error: OSError) -> None:
    log.error("cannot write %s: %s", error.filename or path, error.strerror)
