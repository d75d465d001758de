"""Owns the output folder: the success and failure files; must work when all else failed."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress

from sm_runtime.errors import ArtifactError, ConfigError
from sm_runtime.paths import Paths

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from sm_runtime.failure import Failure

log = logging.getLogger(__name__)

RESERVED_BYTES = 2**16
"""Disk space that is kept free from the start, so that a full disk can still hold the reason."""


_NO_FALLOCATE = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a seccomp profile that forbids fallocate, or a file system without it, answers."""


def _reserve(fd: int) -> None:
    """Give an empty file its blocks."""
    try:
        os.posix_fallocate(fd, 0, RESERVED_BYTES)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise
        log.info(
            "without fallocate (%s), space for a failure is reserved by writing", error.strerror
        )
        os.write(fd, bytes(RESERVED_BYTES))


def _opener(path: str, flags: int) -> int:
    """Open a file without ever waiting: the script may have put a FIFO there."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


class Report:
    """The files by which a job says how it ended.

    The reserve is a file of 64 KiB beside ``failure``; when the job fails, it is overwritten in
    place and renamed, which needs no free block.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._reserve = paths.under("output", ".failure-reserve")
        self._document = paths.under("output", "data", "failure.json")

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
            fd = _opener(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                _reserve(fd)
            finally:
                os.close(fd)
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
            self._drop_reserve()
        else:
            self._attempt(self._write_failure, failure.text())
        self._attempt(self._write_document, failure.document())

    def succeeded(self) -> None:
        """Write ``output/success``; raises ArtifactError where that cannot be done."""
        self._drop_reserve()
        try:
            with open(self._paths.success, "wb", opener=_opener):
                pass
        except OSError as error:
            message = f"{self._paths.success}: cannot be written: {error.strerror}"
            raise ArtifactError(message) from None

    def keep_stacks(self, stacks: bytes, mask: Callable[[str], str]) -> None:
        """Append the stacks of the user's processes to ``output/data/stacks.txt``."""

        def append(text: str) -> None:
            with open(
                self._paths.under("output", "data", "stacks.txt"), "ab", opener=_opener
            ) as file:
                file.write(text.encode("utf-8", "backslashreplace"))

        self._attempt(append, mask(stacks.decode("utf-8", "backslashreplace")))

    def _attempt(self, write: Callable[[str], None], text: str) -> None:
        try:
            write(text)
        except OSError as error:
            log.error("cannot write %s: %s", error.filename or self._paths.output, error.strerror)

    def _write_failure(self, text: str) -> None:
        os.makedirs(self._paths.output, exist_ok=True)
        fd = _opener(self._reserve, os.O_WRONLY | os.O_CREAT)
        try:
            data = text.encode("utf-8", "backslashreplace")
            os.write(fd, data)
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)
        os.rename(self._reserve, self._paths.failure)

    def _write_document(self, text: str) -> None:
        os.makedirs(self._paths.output_data, exist_ok=True)
        part = self._document + ".part"
        try:
            with open(
                part, "w", encoding="utf-8", errors="backslashreplace", opener=_opener
            ) as file:
                file.write(text)
            os.rename(part, self._document)
        except OSError:
            with suppress(OSError):
                os.unlink(part)
            raise

    def _drop_reserve(self) -> None:
        with suppress(OSError):
            os.unlink(self._reserve)
