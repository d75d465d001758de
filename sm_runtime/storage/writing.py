"""Files that are being written: under which name, whether there is room, and how one is copied.

A file that can share blocks with its source is copied in no time and no room: XFS, Btrfs, ZFS,
OCFS2, Lustre and overlays upon these do so for a whole file with FICLONE (ioctl_ficlone(2)). Where
that is refused, as by all between two file systems, and by kernels before 5.18 between two mounts
of one, copy_file_range(2) copies without a detour through our memory, on NFS 4.2 on the server.
Some file systems and profiles of seccomp refuse that as well, and some say that nothing is left to
copy: then it is read and written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator

from sm_runtime.job.errors import CodeError, DataError
from sm_runtime.job.text import human_size
from sm_runtime.storage import Blob

_LONGEST_NAME = 255
_SUFFIX = ".sm-runtime.part"
_ALLOCATED_BYTES = 4096
"""What a small file takes. Network file systems name blocks of 1 MiB and do not fill them."""
PIECE_BYTES = 2 << 20
"""What is copied between two looks at whether to stop."""
_BUFFER_BYTES = 1 << 20
_FICLONE: int = getattr(fcntl, "FICLONE", 0x40049409)  # named since Python 3.12; <linux/fs.h>
_BLOCK_BYTES = 512
"""The unit of ``st_blocks``, whatever the file system (stat(3type))."""


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


@contextlib.contextmanager
def replaced(path: str, mode: int = 0o666, *, part: str | None = None) -> Iterator[int]:
    """Yield the descriptor of a file that is at ``path`` when the block ends, or not at all.

    Until then its name is ``part``, else that of ``part_of``.
    """
    part = part or part_of(path)
    descriptor = new_file(part, mode)
    try:
        yield descriptor
        os.rename(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    finally:
        os.close(descriptor)


def not_written(blob: Blob, path: str, error: OSError) -> DataError:
    """Return the sentence about a file that cannot be written."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = os.path.dirname(path) or "."
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            reason += f" ({blob.size_bytes} bytes needed, {found.f_bavail * found.f_frsize} free)"
    return DataError(f"{blob.uri} cannot be written to {path}: {reason}")


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
        self._bytes += max(1, -(-size_bytes // _ALLOCATED_BYTES)) * _ALLOCATED_BYTES

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


class UnreadableError(OSError):
    """It is the source that cannot be read."""


def clone(source: int, target: int) -> bool:
    """Let the file ``target`` share the blocks of ``source``; return whether that is possible."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:  # of many kinds, all of which copying tells better
        return False
    return True


def copy(
    source: int, target: int, size_bytes: int, moved: Callable[[int], None] = lambda _: None
) -> int:
    """Copy the start of ``source`` into the empty file ``target``; return how many bytes there are.

    They are fewer than ``size_bytes`` where the source has become shorter. Holes stay holes.
    ``moved`` is told each number of bytes, and may raise to end it. Raises OSError,
    UnreadableError where it is the source's.
    """
    for begin, end, is_data in _extents(source, size_bytes):
        position = begin
        if not is_data:
            moved(end - begin)
            continue
        while position < end:
            count = _piece(source, target, position, min(PIECE_BYTES, end - position))
            if not count:
                return position
            position += count
            moved(count)
    if os.fstat(target).st_size < size_bytes:  # it ends in a hole
        os.ftruncate(target, size_bytes)
    return size_bytes


def data_bytes(path: str, status: os.stat_result) -> int:
    """Return how many bytes a copy of the file takes: all but its holes."""
    if status.st_blocks * _BLOCK_BYTES >= status.st_size:
        return status.st_size
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = _extents(descriptor, status.st_size)
        return sum(end - begin for begin, end, is_data in found if is_data)
    finally:
        os.close(descriptor)


def can_clone(path: str, folder: str) -> bool:
    """Return whether files in ``folder`` can share the blocks of the file ``path``."""
    import tempfile

    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                return clone(source, file.fileno())
        finally:
            os.close(source)
    except OSError:
        return False


def _extents(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the begin and the end of each part of a file, and whether it is data or a hole."""
    status = os.fstat(descriptor)
    if status.st_blocks * _BLOCK_BYTES >= min(size_bytes, status.st_size):
        yield 0, size_bytes, True  # the usual case
        return
    position = 0
    while position < size_bytes:
        try:
            begin = min(os.lseek(descriptor, position, os.SEEK_DATA), size_bytes)
            end = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size_bytes)
        except OSError as error:
            # ENXIO: no data follows; anything else: the file system does not tell.
            is_hole = error.errno == errno.ENXIO and os.fstat(descriptor).st_size >= size_bytes
            yield position, size_bytes, not is_hole
            return
        if begin > position:
            yield position, begin, False
        if end > begin:
            yield begin, end, True
        position = end


def _piece(source: int, target: int, position: int, size_bytes: int) -> int:
    """Copy some bytes to the same place; return how many, 0 at the end of the source."""
    try:
        count = os.copy_file_range(source, target, size_bytes, position, position)
    except OSError:  # writing says what is wrong, if it is not just inability
        count = 0
    if count:
        return count
    try:
        piece = memoryview(os.pread(source, min(size_bytes, _BUFFER_BYTES), position))
    except OSError as error:
        raise UnreadableError(error.errno, error.strerror) from error
    count = 0
    while count < len(piece):
        count += os.pwrite(target, piece[count:], position + count)
    return count
