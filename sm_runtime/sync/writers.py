"""Finds out which files some process is still writing: ``/proc``, whatever the file system."""

from __future__ import annotations

import os

Identity = tuple[int, int]
"""Device and inode."""


def open_for_writing(files: set[Identity]) -> tuple[set[Identity], bool]:
    """Return which of ``files`` are open for writing, and whether every process could be asked."""
    found: set[Identity] = set()
    whole = True
    own = str(os.getpid())
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or pid == own:
            continue
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except PermissionError:  # of another user
            whole = False
            continue
        except OSError:  # it has ended
            continue
        for number in descriptors:
            identity = _written(pid, number, files)
            if identity:
                found.add(identity)
    return found, whole


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
