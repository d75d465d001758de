"""Files of a local or mounted file system as a source of data: ``file:///path``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote

from sm_runtime.errors import ConfigError, DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.fetching import new_file, not_written, part_of
from sm_runtime.storage.local import path_of

_PIECE_BYTES = 8 << 20
_BUFFER_BYTES = 1 << 20


class FileOrigin:
    """Files by their absolute paths; see ``Origin``.

    Links are followed. What is neither a file nor a folder is left out.
    """

    def list(self, uri: str, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[Blob]:
        """Yield the file at ``uri``, or all files below the folder there, in the order of paths.

        As a prefix of S3 would do, a path that names neither stands for all that begin with it.
        """
        path = _path(uri)
        try:
            if os.path.isdir(path):
                yield from _walk(path, "", frozenset(), stopped)
            elif os.path.isfile(path) and not uri.endswith("/"):
                yield _blob(path)
            elif not uri.endswith("/") and os.path.isdir(os.path.dirname(path)):
                folder, name = os.path.split(path)
                yield from _walk(folder, name, frozenset(), stopped)
        except OSError as error:
            raise _unreadable(error.filename or uri, error) from error

    def stat(self, uri: str) -> Blob:
        """Return the one file at ``uri``."""
        path = _path(uri)
        try:
            if not os.path.isfile(path):
                os.stat(path)
                raise DataError(f"{uri} is not a file")
            return _blob(path)
        except FileNotFoundError:
            raise DataError(f"{uri} does not exist") from None
        except OSError as error:
            raise _unreadable(uri, error) from error

    @contextlib.contextmanager
    def open(
        self,
        blob: Blob,
        offset_bytes: int = 0,
        length_bytes: int | None = None,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[_Body]:
        """Read a file, or a range of it; see ``Origin``."""
        try:
            descriptor = os.open(blob.key, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(blob.uri, error) from error
        try:
            _check_version(blob, descriptor)
            end = blob.size_bytes if length_bytes is None else offset_bytes + length_bytes
            yield _Body(blob, descriptor, offset_bytes, end, stopped)
        finally:
            os.close(descriptor)

    def fetch(
        self,
        wanted: Iterable[tuple[Blob, str]],
        *,
        progress: Callable[[int], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Copy each file to its path; see ``Origin``."""
        for blob, path in wanted:
            _copy(blob, path, progress, stopped)

    def close(self) -> None:
        """Close nothing."""


class _Body:
    """The bytes of one file, in order."""

    def __init__(
        self, blob: Blob, descriptor: int, position: int, end: int, stopped: Callable[[], bool]
    ) -> None:
        self._blob, self._descriptor, self._position = blob, descriptor, position
        self._end, self._stopped = end, stopped

    def readinto(self, view: memoryview, /) -> int:
        """Fill the start of ``view``; see ``Body``."""
        left = self._end - self._position
        if left <= 0 or not view:
            return 0
        if self._stopped():
            raise DataError(f"{self._blob.uri} cannot be read: a stop was asked for")
        try:
            count = os.preadv(self._descriptor, [view[:left]], self._position)
        except OSError as error:
            raise _unreadable(self._blob.uri, error) from error
        if not count:
            raise _shrank(self._blob)
        self._position += count
        return count


def _copy(
    blob: Blob, path: str, progress: Callable[[int], None], stopped: Callable[[], bool]
) -> None:
    try:
        source = os.open(blob.key, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(blob.uri, error) from error
    part = part_of(path)
    try:
        _check_version(blob, source)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        target = new_file(part)
        try:
            _copy_bytes(blob, source, target, progress, stopped)
        except BaseException:
            os.unlink(part)
            raise
        finally:
            os.close(target)
        os.rename(part, path)
    except OSError as error:
        raise not_written(blob, path, error) from error
    finally:
        os.close(source)


def _copy_bytes(
    blob: Blob, source: int, target: int, progress: Callable[[int], None],
    stopped: Callable[[], bool],
) -> None:  # fmt: skip
    position = 0
    while position < blob.size_bytes:
        if stopped():
            raise DataError(f"{blob.uri} cannot be copied: a stop was asked for")
        count = _copy_piece(source, target, position, min(_PIECE_BYTES, blob.size_bytes - position))
        if not count:
            raise _shrank(blob)
        position += count
        progress(count)


def _copy_piece(source: int, target: int, position: int, size_bytes: int) -> int:
    """Copy some bytes, in the kernel where the file systems can; return how many, 0 at the end."""
    with contextlib.suppress(OSError):  # writing says what is wrong, if it is not just inability
        count = os.copy_file_range(source, target, size_bytes, position)
        if count:
            return count
    piece = memoryview(os.pread(source, min(size_bytes, _BUFFER_BYTES), position))
    count = len(piece)
    while piece:
        piece = piece[os.write(target, piece) :]
    return count


def _walk(
    folder: str, begin: str, above: frozenset[tuple[int, int]], stopped: Callable[[], bool]
) -> Iterator[Blob]:
    """Yield what is below ``folder`` under names that begin so, in the order of S3's keys."""
    status = os.stat(folder)
    identity = status.st_dev, status.st_ino
    if identity in above:
        raise DataError(f"{folder} holds itself: a symbolic link leads back to it")
    found: list[tuple[bytes, str, bool]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(begin):
                continue
            if entry.is_dir():
                found.append((os.fsencode(entry.name) + b"/", entry.path, True))
            elif entry.is_file():
                found.append((os.fsencode(entry.name), entry.path, False))
            elif entry.is_symlink():
                raise DataError(f"{entry.path} is a link to what does not exist")
    for _, path, is_folder in sorted(found):
        if stopped():
            raise DataError(f"{folder} cannot be listed: a stop was asked for")
        if is_folder:
            yield from _walk(path, "", above | {identity}, stopped)
        else:
            yield _blob(path)


def _check_version(blob: Blob, descriptor: int) -> None:
    """Raise DataError where a file is not the one that was listed."""
    status = os.fstat(descriptor)
    if status.st_size < blob.size_bytes:
        raise _shrank(blob)
    if blob.etag not in (None, _etag(status)):
        raise DataError(f"{blob.uri} cannot be read: it has changed meanwhile")


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"


def _blob(path: str) -> Blob:
    status = os.stat(path)
    return Blob(
        uri="file://" + quote(os.fsencode(path)),
        key=path,
        size_bytes=status.st_size,
        etag=_etag(status),
    )


def _path(uri: str) -> str:
    try:
        return path_of(uri)
    except ConfigError as error:
        raise DataError(str(error).removeprefix("OutputDataConfig.S3OutputPath: ")) from error


def _unreadable(uri: str, error: OSError) -> DataError:
    return DataError(f"{uri} cannot be read: {error.strerror or error}")


def _shrank(blob: Blob) -> DataError:
    return DataError(f"{blob.uri} has changed while it was read: it has less than its"
                     f" {blob.size_bytes} bytes now")  # fmt: skip
