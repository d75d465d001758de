"""Copies files on this machine: by sharing their blocks, else within the kernel, else by reading.

A file system that can share blocks (XFS, Btrfs, ZFS, OCFS2, Lustre, overlays upon these) does so
for a whole file with FICLONE (ioctl_ficlone(2)), in no time and no room. Where it refuses, as all
do between two file systems, and kernels before 5.18 do between two mounts of one,
copy_file_range(2) copies without a detour through our memory, on NFS 4.2 on the server. Some file
systems and profiles of seccomp refuse that as well, and some say that nothing is left to copy.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator

PIECE_BYTES = 2 << 20
"""What is copied between two looks at whether to stop."""
_BUFFER_BYTES = 1 << 20
_FICLONE: int = getattr(fcntl, "FICLONE", 0x40049409)  # named since Python 3.12; <linux/fs.h>
_BLOCK_BYTES = 512
"""The unit of ``st_blocks``, whatever the file system (stat(3type))."""


class UnreadableError(OSError):
    """It is the source that cannot be read."""


def clone(source: int, target: int) -> bool:
    """Let the file ``target`` share the blocks of ``source``; return whether that can be had."""
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
