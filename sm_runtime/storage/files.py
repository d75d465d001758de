"""Files of a local or mounted file system, as a source of data and as a store: ``file:///path``."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from sm_runtime.job import location
from sm_runtime.job.errors import ConfigError, DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.threads import Stopped, Workers
from sm_runtime.storage.writing import (
    UnreadableError,
    clone,
    copy,
    not_written,
    part_of,
    replaced,
)

log = logging.getLogger(__name__)

_THREADS = 8
"""Local disks gain nothing by them; on a network each file costs several round trips."""
_TOGETHER = 16
"""How many small files a thread is given at once."""
_TOGETHER_BYTES = 1 << 20
_STOP_EVERY = 4096
_DEEPEST = 500
"""A key of S3 has room for as many folders."""
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""Not to wait should there be a FIFO by now."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class FileOrigin:
    """Files by their absolute paths; see ``Origin``.

    Links are followed. What is neither a file nor a folder is left out, with a warning.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def list(self, uri: str, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[Blob]:
        """Yield the file at ``uri``, or all files below the folder there, in the order of paths.

        As a prefix of S3 would do, a path that names neither stands for all that begin with it.
        """
        path = path_of(uri)
        walk = _Walk(stopped)
        try:
            if os.path.isdir(path):
                yield from walk.below(path)
            elif os.path.isfile(path) and not uri.endswith("/"):
                yield _readable(path)
            elif not uri.endswith("/") and os.path.isdir(os.path.dirname(path)):
                yield from walk.below(*os.path.split(path))
        except OSError as error:
            raise _unreadable(error.filename or uri, error) from error
        if walk.others and uri not in self._warned:  # a channel is listed for each epoch
            self._warned.add(uri)
            more = f" and {walk.others - 1} more" if walk.others > 1 else ""
            log.warning("%r%s left out: neither a file nor a folder", walk.first, more)

    def stat(self, uri: str) -> Blob:
        """Return the one file at ``uri``."""
        path = path_of(uri)
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
            descriptor = os.open(blob.key, _OPEN)
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
        """Copy each file to its path, with its time and as executable as it is; see ``Origin``."""
        try:
            with Workers(_THREADS, stopped) as workers:
                copies = _Copies(workers, progress)
                for few in _together(wanted):
                    workers.submit(partial(copies.make, few))
        except Stopped:
            raise DataError("the files cannot be copied: a stop was asked for") from None

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


class _Copies:
    """The copies that one call of ``fetch`` makes, on several threads."""

    def __init__(self, workers: Workers, progress: Callable[[int], None]) -> None:
        self._workers, self._progress = workers, progress
        self._refusing: set[int] = set()  # devices whose blocks cannot be shared
        self._folders: set[str] = set()

    def make(self, few: Sequence[tuple[Blob, str]]) -> None:
        """Copy some files, one after the other."""
        for blob, path in few:
            self._workers.check()
            try:
                source = os.open(blob.key, _OPEN)
            except OSError as error:
                raise _unreadable(blob.uri, error) from error
            try:
                self._copy(blob, source, path)
            except UnreadableError as error:
                raise _unreadable(blob.uri, error) from error
            except OSError as error:
                raise not_written(blob, path, error) from error
            finally:
                os.close(source)

    def _copy(self, blob: Blob, source: int, path: str) -> None:
        status = _check_version(blob, source)
        folder = os.path.dirname(path)
        if folder not in self._folders:
            os.makedirs(folder or ".", exist_ok=True)
            self._folders.add(folder)
        with replaced(path, 0o777 if status.st_mode & 0o111 else 0o666) as target:
            self._fill(blob, source, target, status.st_dev)
            _check_version(blob, source)
            with contextlib.suppress(OSError):  # not every network file system has it
                os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))

    def _fill(self, blob: Blob, source: int, target: int, device: int) -> None:
        if not blob.size_bytes:
            return
        if device not in self._refusing:
            if clone(source, target):
                self._progress(blob.size_bytes)
                return
            self._refusing.add(device)
        if copy(source, target, blob.size_bytes, self._moved) < blob.size_bytes:
            raise _shrank(blob)

    def _moved(self, size_bytes: int) -> None:
        self._progress(size_bytes)
        self._workers.check()


def _together(wanted: Iterable[tuple[Blob, str]]) -> Iterator[list[tuple[Blob, str]]]:
    """Yield what a thread copies at once: some small files, or a large one."""
    few: list[tuple[Blob, str]] = []
    size_bytes = 0
    for blob, path in wanted:
        few.append((blob, path))
        size_bytes += blob.size_bytes
        if len(few) == _TOGETHER or size_bytes >= _TOGETHER_BYTES:
            yield few
            few, size_bytes = [], 0
    if few:
        yield few


class _Walk:
    """A listing of what is below a folder, in the order of S3's keys."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped
        self.others, self.first = 0, ""
        """What is neither a file nor a folder: how many, and the path of the first."""

    def below(
        self, folder: str, begin: str = "", above: frozenset[tuple[int, int]] = frozenset()
    ) -> Iterator[Blob]:
        """Yield what is below ``folder`` under names that begin so."""
        status = os.stat(folder)
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise DataError(f"{folder} holds itself: a symbolic link leads back to it")
        if len(above) > _DEEPEST:
            raise DataError(f"{folder[:200]}... is more than {_DEEPEST} folders deep")
        for _, path, is_folder in sorted(self._entries(folder, begin)):
            self._check_stop(folder)
            if is_folder:
                yield from self.below(path, "", above | {identity})
            else:
                yield _readable(path)

    def _entries(self, folder: str, begin: str) -> Iterator[tuple[bytes, str, bool]]:
        with os.scandir(folder) as entries:
            for position, entry in enumerate(entries):
                if position % _STOP_EVERY == 0:
                    self._check_stop(folder)
                if not entry.name.startswith(begin):
                    continue
                if entry.is_dir():
                    yield os.fsencode(entry.name) + b"/", entry.path, True
                elif entry.is_file():
                    yield os.fsencode(entry.name), entry.path, False
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    raise DataError(f"{entry.path} is a link to what does not exist")
                else:
                    self.first = self.first or entry.path
                    self.others += 1

    def _check_stop(self, folder: str) -> None:
        if self._stopped():
            raise DataError(f"{folder} cannot be listed: a stop was asked for")


def _check_version(blob: Blob, descriptor: int) -> os.stat_result:
    """Return the status of a file; raise DataError where it is not the one that was listed."""
    status = os.fstat(descriptor)
    if status.st_size < blob.size_bytes:
        raise _shrank(blob)
    if blob.etag is not None and blob.etag.partition(".")[0] != _etag(status).partition(".")[0]:
        raise DataError(f"{blob.uri} cannot be read: it has changed meanwhile")
    return status


def _etag(status: os.stat_result) -> str:
    """Return what tells this content from any other.

    After the point is what tells a file whose time was set back, and what a new permission or link
    alters, too: it counts from one job to the next, and not while one reads.
    """
    content = f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"
    return f"{content}.{status.st_ctime_ns:x}"


def _blob(path: str) -> Blob:
    status = os.stat(path)
    return Blob(
        uri=location.file_uri(path),
        key=path,
        size_bytes=status.st_size,
        etag=_etag(status),
    )


def _readable(path: str) -> Blob:
    """Return a file; raise OSError where it cannot be read, before anything is copied."""
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return _blob(path)


def path_of(uri: str) -> str:
    """Return the path that a ``file:`` URI names (RFC 8089): percent-decoded, on this machine.

    Raises DataError for a URI with a host, and for one without an absolute path.
    """
    try:
        path = location.parse(uri).path
    except ValueError as error:
        raise DataError(str(error)) from None
    return os.path.normpath("/" + path.lstrip("/"))


def _unreadable(uri: str, error: OSError) -> DataError:
    return DataError(f"{uri} cannot be read: {error.strerror or error}")


def _shrank(blob: Blob) -> DataError:
    return DataError(f"{blob.uri} has changed while it was read: it has less than its"
                     f" {blob.size_bytes} bytes now")  # fmt: skip


class LocalStore:
    """Files below a folder, which is made when the first of them is written.

    A file is written as ``<name>.part``, synced and renamed. A tree is written as ``<name>.part``
    too, and changes places with the one that is there, so that nothing of an earlier attempt is
    left in it; should the machine stop in between, the earlier one is ``<name>.old`` and the next
    attempt puts it back before it begins.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    @classmethod
    def at(cls, uri: str, parts: Sequence[str], outside: Sequence[str]) -> LocalStore:
        """Return the store at a ``file:`` URI; see ``open_store``."""
        try:
            root = os.path.join(path_of(uri), *parts)
        except DataError as error:
            raise ConfigError(f"OutputDataConfig.S3OutputPath: {error}") from error
        for folder in outside:
            if _holds(folder, root) or _holds(root, folder):
                raise ConfigError(
                    f"OutputDataConfig.S3OutputPath: {uri!r} puts artifacts into {root}, which"
                    f" must be apart from {folder}, the folder to save"
                )
        return cls(root)

    def locate(self, key: str) -> str:
        """Return the URI of ``key``, percent-encoded."""
        return location.file_uri(self._path(key))

    def exists(self, key: str) -> bool:
        """Return whether there is a file or folder ``key``."""
        return os.path.lexists(self._path(key))

    @contextlib.contextmanager
    def stream(self, key: str, most_bytes: int = 0) -> Iterator[_File]:
        """Write the file ``key``; see ``Store``."""
        path = self._path(key)
        part = path + ".part"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _remove(part)
        with replaced(path, part=part) as descriptor:
            yield _File(descriptor)
            os.fsync(descriptor)
        _sync_folder(os.path.dirname(path))

    @contextlib.contextmanager
    def tree(self, key: str) -> Iterator[_Folder]:
        """Write the folder ``key``; see ``Store``."""
        path = self._path(key)
        part, old = path + ".part", path + ".old"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(old) and not os.path.lexists(path):
            os.rename(old, path)
        _remove(old)
        _remove(part)
        try:
            os.mkdir(part)
            yield _Folder(part)
            _exchange(part, path, old)
        except BaseException:
            _undo(part)
            raise
        _undo(old)
        _sync_folder(os.path.dirname(path))

    def put(self, key: str, source: int, size_bytes: int) -> None:
        """Copy the start of the file ``source`` to ``key``; see ``Store``."""
        path = self._path(key)
        # Hosts may share the folder: one must not rename what another is writing.
        part = part_of(path, os.uname().nodename)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _remove(part)
        with replaced(path, part=part) as descriptor:
            copied = copy(source, descriptor, size_bytes)
            if copied < size_bytes:
                raise OSError(errno.EIO, f"the file shrank from {size_bytes} to {copied} bytes")
            os.fsync(descriptor)

    def delete(self, key: str) -> None:
        """Remove the file ``key``, and the folders that it leaves empty."""
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)
        with contextlib.suppress(OSError):  # not empty, or another host was faster
            while (path := os.path.dirname(path)) != self._root:
                os.rmdir(path)

    def close(self) -> None:
        """Close nothing."""

    def _path(self, key: str) -> str:
        return os.path.join(self._root, key)


class _File:
    """An unbuffered file: what cannot be written is known at once, not when it is closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


class _Folder:
    """A folder that is filled file by file."""

    def __init__(self, root: str) -> None:
        self._root = root

    def add(self, name: str, source: int, size_bytes: int, *, executable: bool) -> int:
        path = os.path.join(self._root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        target = os.open(path, _NEW, 0o777 if executable else 0o666)
        try:
            copied = copy(source, target, size_bytes)
            os.fsync(target)
            return copied
        finally:
            os.close(target)


def _exchange(part: str, path: str, old: str) -> None:
    """Put ``part`` in the place of ``path``, which becomes ``old`` if it is there."""
    if not os.path.lexists(path):
        os.rename(part, path)
        return
    os.rename(path, old)
    try:
        os.rename(part, path)
    except BaseException:
        os.rename(old, path)
        raise


def _remove(path: str) -> None:
    """Remove a file or folder, if it is there."""
    import shutil

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _undo(path: str) -> None:
    """Remove what is not wanted any more; that this fails must not hide another error."""
    try:
        _remove(path)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error.strerror)


def _sync_folder(path: str) -> None:
    """Make a rename last; some network file systems cannot sync a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _holds(folder: str, path: str) -> bool:
    """Return whether ``path`` is ``folder`` or below it, links followed."""
    real = os.path.realpath(folder)
    return os.path.commonpath([real, os.path.realpath(path)]) == real
