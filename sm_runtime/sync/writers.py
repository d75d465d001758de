"""Finds out which files some process is still writing: ``/proc``, whatever the file system."""

from __future__ import annotations

import os
from contextlib import suppress

Identity = tuple[int, int]
"""Device and inode."""


class Written:
    """Which of some files other processes may write to."""

    def __init__(self) -> None:
        self.opened: set[Identity] = set()
        """Those that are open for writing."""
        self.mapped: set[Identity] = set()
        """Those that are in the memory of a process that may write there, open or not."""
        self.whole = True
        """Whether every process could be asked."""


def being_written(files: set[Identity]) -> Written:
    """Return which of ``files`` some process may write to."""
    found = Written()
    own = str(os.getpid())
    try:
        entries = os.listdir("/proc")
    except OSError:
        found.whole = False
        return found
    for pid in entries:
        if not pid.isdigit() or pid == own:
            continue
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except PermissionError:  # of another user
            found.whole = False
            continue
        except OSError:  # it has ended
            continue
        for number in descriptors:
            identity = _written(pid, number, files)
            if identity:
                found.opened.add(identity)
        with suppress(OSError):  # it has ended, or the kernel keeps it to itself
            found.mapped |= _mapped(pid, files)
    return found


def _mapped(pid: str, files: set[Identity]) -> set[Identity]:
    """Return which of ``files`` a process has in its memory, shared and writable (proc(5), maps).

    Raises OSError. A file is known by its path as well: overlays and Btrfs show another device.
    """
    found = set()
    with open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            words = line.split(maxsplit=5)
            if len(words) < 6 or words[1][1:2] != b"w" or words[1][3:4] != b"s":
                continue
            major, _, minor = words[3].partition(b":")
            identity = os.makedev(int(major, 16), int(minor, 16)), int(words[4])
            if identity not in files and words[5].startswith(b"/"):
                try:
                    status = os.stat(b"/proc/" + pid.encode() + b"/root" + words[5].rstrip(b"\n"))
                except OSError:  # removed, or with an odd name
                    continue
                identity = status.st_dev, status.st_ino
            if identity in files:
                found.add(identity)
    return found


def _written(pid: str, number: str, files: set[Identity]) -> Identity | None:
    path = f"/proc/{pid}/fd/{number}"
    try:
        target = os.readlink(path)
        if not target.startswith("/") or target.startswith("/dev/"):
            return None
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity not in files:
            return None
        with open(f"/proc/{pid}/fdinfo/{number}") as file:
            flags = next(line for line in file if line.startswith("flags:"))
    except (OSError, StopIteration):  # closed meanwhile
        return None
    return identity if int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY else None
