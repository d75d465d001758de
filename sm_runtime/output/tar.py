"""Walks a folder that is to be saved, and writes it as a tar archive of the same bytes each time.

Equal trees give equal archives: entries follow one another in the byte order of their names, each
folder before what is in it; owners and times are zero, modes are 0644 or 0755 by the owner's x bit.
Links are followed, since what serves a model may not follow them.

The archive is compressed by all CPUs where the package isal is installed, else by one. Its bytes
depend on the data and on the sizes of the writes alone, not on the number of threads.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from sm_runtime.job.dataclass import dataclass
from sm_runtime.job.errors import ArtifactError

Warn = Callable[[str], None]
"""Takes a sentence about something that is left out."""

BLOCK_BYTES = 1 << 20
MAX_THREADS = 16
"""Beyond these the thread that reads and writes is what everything waits for."""
_GZIP_LEVEL = 6
_ISAL_LEVEL = 2
_BUFFER_BYTES = 1 << 20
_RECORD_BYTES = 10240
_NO_TARGET = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_ODD_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Bytes = bytes | bytearray | memoryview


class Sink(Protocol):
    """Where an archive's bytes go, or those that are compressed."""

    def write(self, data: Bytes, /) -> object:
        """Take all of ``data``, which the caller may reuse at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file or folder below the folder that is walked, links followed."""

    path: str
    name: str
    """Relative to the folder that is walked."""
    is_folder: bool
    is_link: bool
    executable: bool
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many regular files there are, and their sizes' sum."""

    files: int = 0
    size_bytes: int = 0

    def plus(self, size_bytes: int) -> Count:
        """Return the count with one more file."""
        return Count(files=self.files + 1, size_bytes=self.size_bytes + size_bytes)


def walk(folder: str, warn: Warn) -> Iterator[Entry]:
    """Yield what is below ``folder``, which may be absent, in the order of the archive.

    Calls ``warn`` for what is no file or folder, and for links that lead nowhere or in circles.
    Raises ArtifactError where something cannot be read.
    """
    if not os.path.lexists(folder):
        return
    above = _identities(folder)
    depth = len(above)
    pending = [iter(_listed(folder))]
    while pending:
        listed = next(pending[-1], None)
        if listed is None:
            pending.pop()
            if len(above) > depth:
                above.pop()
            continue
        entry, identity = _entry(folder, listed, warn)
        if entry is None:
            continue
        if entry.is_folder and identity in above:
            warn(f"{shown(entry.path)} is left out: the link leads to a folder that holds it")
            continue
        yield entry
        if entry.is_folder:
            above.append(identity)
            pending.append(iter(_listed(entry.path)))


def count(folder: str, warn: Warn) -> Count:
    """Count the files below ``folder``, as ``walk`` finds them."""
    counted = Count()
    for entry in walk(folder, warn):
        if not entry.is_folder:
            counted = counted.plus(entry.size_bytes)
    return counted


def write_tar(folder: str, sink: Sink, warn: Warn) -> Count:
    """Write what is below ``folder`` into ``sink`` as a tar archive and return what was packed.

    Raises ArtifactError where a file cannot be read or shrinks meanwhile; what ``sink`` raises is
    passed on.
    """
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    counted = Count()
    written = 0
    for entry in walk(folder, warn):
        if entry.is_folder:
            header = _header(entry, 0)
            sink.write(header)
            written += len(header)
            continue
        source, size_bytes = open_file(entry.path)
        try:
            header = _header(entry, size_bytes)
            sink.write(header)
            _copy(entry.path, source, size_bytes, sink, buffer)
        finally:
            os.close(source)
        padding = -size_bytes % 512
        sink.write(bytes(padding))
        written += len(header) + size_bytes + padding
        counted = counted.plus(size_bytes)
    sink.write(bytes(1024 + -(written + 1024) % _RECORD_BYTES))
    return counted


def open_file(path: str) -> tuple[int, int]:
    """Return a descriptor of the regular file ``path`` and its size in bytes.

    Raises ArtifactError where it cannot be opened or is no regular file any more.
    """
    try:
        # O_NONBLOCK: should a FIFO have taken the file's place, opening it must not wait
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(path, error) from error
    found = os.fstat(source)
    if not stat.S_ISREG(found.st_mode):
        os.close(source)
        raise ArtifactError(f"{shown(path)} is no regular file any more")
    return source, found.st_size


def shrank(path: str, size_bytes: int, read_bytes: int) -> ArtifactError:
    """Return the error of a file that ended before its size."""
    return ArtifactError(
        f"{shown(path)} shrank while it was read: {read_bytes} of {size_bytes} bytes are left"
    )


def unreadable(path: str, error: OSError) -> ArtifactError:
    """Return the error of a file or folder that cannot be read."""
    return ArtifactError(f"{shown(path)} cannot be read: {error.strerror}")


def _copy(path: str, source: int, size_bytes: int, sink: Sink, buffer: memoryview) -> None:
    left = size_bytes
    while left:
        try:
            taken = os.readv(source, [buffer[:left]])
        except OSError as error:
            raise unreadable(path, error) from error
        if not taken:
            raise shrank(path, size_bytes, size_bytes - left)
        sink.write(buffer[:taken])
        left -= taken


def _header(entry: Entry, size_bytes: int) -> bytes:
    import tarfile

    header = tarfile.TarInfo(entry.name)
    header.mode = 0o755 if entry.is_folder or entry.executable else 0o644
    header.type = tarfile.DIRTYPE if entry.is_folder else tarfile.REGTYPE
    header.size = size_bytes
    # GNU's form: it holds names and sizes of any length, and names of any bytes as they are
    return header.tobuf(tarfile.GNU_FORMAT, sys.getfilesystemencoding(), "surrogateescape")


def _identities(folder: str) -> list[tuple[int, int]]:
    """Return device and inode of ``folder`` and of all folders that hold it."""
    path = os.path.realpath(folder)
    identities = []
    while True:
        try:
            found = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from error
        identities.append((found.st_dev, found.st_ino))
        if path == (path := os.path.dirname(path)):
            return identities[::-1]


def _listed(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise unreadable(folder, error) from error


def _entry(
    folder: str, listed: os.DirEntry[str], warn: Warn
) -> tuple[Entry | None, tuple[int, int]]:
    """Return what ``listed`` leads to and its device and inode."""
    path = listed.path
    try:
        found = os.stat(path)
    except OSError as error:
        if listed.is_symlink() and error.errno in _NO_TARGET:
            looping = error.errno == errno.ELOOP
            why = "leads in a circle" if looping else "leads nowhere"
            warn(f"{shown(path)} is left out: the link to {_target(path)} {why}")
            return None, (0, 0)
        raise unreadable(path, error) from error
    kind = stat.S_IFMT(found.st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        warn(f"{shown(path)} is left out: it is {_ODD_KINDS.get(kind, 'no file or folder')}")
        return None, (0, 0)
    entry = Entry(
        path=path,
        name=path[len(os.path.join(folder, "")) :],
        is_folder=kind == stat.S_IFDIR,
        is_link=listed.is_symlink(),
        executable=bool(found.st_mode & stat.S_IXUSR),
        size_bytes=found.st_size if kind == stat.S_IFREG else 0,
    )
    return entry, (found.st_dev, found.st_ino)


def _target(link: str) -> str:
    try:
        return shown(os.readlink(link))
    except OSError:
        return "its target"


def shown(path: str) -> str:
    """Return ``path`` as one line of text can hold it."""
    return path if path.isprintable() else ascii(path)


class GzipWriter:
    """Compresses what is written into ``sink``.

    ``close`` ends the stream; leaving the context without it ends the threads, and writes no more.
    """

    def __init__(self, sink: Sink, *, threads: int, with_isal: bool = True) -> None:
        self._output = _Output(sink)
        self._file = _open(self._output, max(1, min(threads, MAX_THREADS)), with_isal)
        self._is_closed = False

    def __enter__(self) -> GzipWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_closed:
            self._output.is_abandoned = True
            with suppress(Exception):  # what went wrong is known already
                self._file.close()

    @property
    def written_bytes(self) -> int:
        """How many compressed bytes the sink was given."""
        return self._output.written_bytes

    def write(self, data: Bytes) -> None:
        """Add ``data`` to the stream; it may be reused at once."""
        rest = memoryview(data).cast("B")
        for start in range(0, len(rest), BLOCK_BYTES):
            self._file.write(bytes(rest[start : start + BLOCK_BYTES]))

    def close(self) -> None:
        """Compress what is left and end the stream."""
        self._file.close()
        self._is_closed = True


class _Output:
    """A sink as a file that can be written to."""

    closed = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.written_bytes = 0
        self.is_abandoned = False

    def write(self, data: Bytes, /) -> int:
        if not self.is_abandoned:
            self._sink.write(data)
            self.written_bytes += len(data)
        return len(data)

    def writable(self) -> bool:
        return True

    def flush(self) -> None: ...

    def close(self) -> None: ...


def has_isal() -> bool:
    """Whether the package isal is installed."""
    from importlib.util import find_spec

    return find_spec("isal") is not None


def _open(output: _Output, threads: int, with_isal: bool) -> Any:
    if not (with_isal and has_isal()):
        from gzip import GzipFile

        return GzipFile("", "wb", _GZIP_LEVEL, output, mtime=0)
    from importlib import import_module

    return import_module("isal.igzip_threaded").open(
        output, "wb", compresslevel=_ISAL_LEVEL, threads=threads, block_size=BLOCK_BYTES
    )
