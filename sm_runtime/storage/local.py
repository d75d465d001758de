"""A folder of a local or mounted file system as a store: ``file:///path``."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Sequence

from sm_runtime.job import location
from sm_runtime.job.errors import ConfigError
from sm_runtime.storage import Blob
from sm_runtime.storage.copying import copy
from sm_runtime.storage.parts import is_part, part_of

log = logging.getLogger(__name__)

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


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
        root = os.path.join(path_of(uri), *parts)
        for folder in outside:
            if _holds(folder, root) or _holds(root, folder):
                raise ConfigError(
                    f"OutputDataConfig.S3OutputPath: {uri!r} puts artifacts into {root}, which"
                    f" must be apart from {folder}, the folder to save"
                )
        return cls(root)

    def locate(self, key: str) -> str:
        """Return the URI of ``key``, percent-encoded."""
        from urllib.parse import quote

        return "file://" + quote(os.fsencode(self._path(key)))

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
        try:
            with _new_file(part, 0o666) as file:
                yield file
            os.rename(part, path)
        except BaseException:
            _undo(part)
            raise
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
        try:
            with _new_file(part, 0o666) as file:
                copied = copy(source, file.descriptor, size_bytes)
            if copied < size_bytes:
                raise OSError(errno.EIO, f"the file shrank from {size_bytes} to {copied} bytes")
            os.rename(part, path)
        except BaseException:
            _undo(part)
            raise

    def delete(self, key: str) -> None:
        """Remove the file ``key``, and the folders that it leaves empty."""
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)
        with contextlib.suppress(OSError):  # not empty, or another host was faster
            while (path := os.path.dirname(path)) != self._root:
                os.rmdir(path)

    def list(self) -> Iterator[Blob]:
        """Yield the files of the store; see ``Store``."""
        for folder, folders, files in os.walk(self._root):
            folders.sort()
            for name in sorted(files):
                key = os.path.relpath(os.path.join(folder, name), self._root)
                if not is_part(key):
                    size_bytes = os.stat(self._path(key)).st_size
                    yield Blob(uri=self.locate(key), key=key, size_bytes=size_bytes)

    def close(self) -> None:
        """Close nothing."""

    def _path(self, key: str) -> str:
        return os.path.join(self._root, key)


class _File:
    """An unbuffered file: what cannot be written is known at once, not when it is closed."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]


class _Folder:
    """A folder that is filled file by file."""

    def __init__(self, root: str) -> None:
        self._root = root

    def add(self, name: str, source: int, size_bytes: int, *, executable: bool) -> int:
        path = os.path.join(self._root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with _new_file(path, 0o777 if executable else 0o666) as file:
            return copy(source, file.descriptor, size_bytes)


def path_of(uri: str) -> str:
    """Return the path that a ``file:`` URI names (RFC 8089): percent-decoded, on this machine.

    Raises ConfigError for a URI with a host, and for one without an absolute path.
    """
    try:
        path = location.parse(uri).path
    except ValueError as error:
        raise ConfigError(f"OutputDataConfig.S3OutputPath: {error}") from None
    return os.path.normpath("/" + path.lstrip("/"))


@contextlib.contextmanager
def _new_file(path: str, mode: int) -> Iterator[_File]:
    descriptor = os.open(path, _NEW, mode)
    try:
        yield _File(descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
