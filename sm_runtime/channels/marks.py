"""What is known of a channel's folder from one job to the next: who has filled it, and with what.

While a folder is being filled it holds a file that says so, and which content it is to have. When
all is there an extended attribute of the folder says the same: it is out of the script's sight. It
counts only for that very folder: one that was copied with it, or is mounted in its place, is the
user's.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from sm_runtime.channels import UNFINISHED
from sm_runtime.channels.mountpoint import is_mounted
from sm_runtime.storage.parts import new_file, part_of

ATTRIBUTE = "user.sm_runtime.placed"
_TICK_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a folder says of the job that was the last to fill it."""

    version: str
    """What tells its content from any other; empty where the store does not."""
    finished_ns: int | None = None
    """When all was there, in the time of the file system; None: it was not."""


def read(path: str) -> Left | None:
    """Return what an earlier job says of the folder ``path``; None where it is none of a job's."""
    try:
        # The script may have put anything there.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(f"{path}/{UNFINISHED}", flags), "rb") as file:
            return Left(version=file.read(100).decode("ascii", "replace"))
    except OSError:
        if os.path.lexists(f"{path}/{UNFINISHED}"):
            return Left(version="")
    try:
        text = os.getxattr(path, ATTRIBUTE).decode("ascii", "replace")
        version, finished, identity = text.split("\n")
        is_same = identity == _identity(path)
        return Left(version=version, finished_ns=int(finished)) if is_same else None
    except (OSError, ValueError):  # no attribute, none of ours, or a file system without any
        return None


def begun(path: str, version: str) -> None:
    """Mark a folder as one that is being filled."""
    mark = f"{path}/{UNFINISHED}"
    part = part_of(mark)
    with open(new_file(part), "w", encoding="ascii") as file:
        file.write(version)
    os.rename(part, mark)
    _remove_attribute(path)


def finished(path: str, version: str) -> None:
    """Mark a folder as filled, where the file system has attributes."""
    mark = f"{path}/{UNFINISHED}"
    text = f"{version}\n{_next_tick(mark)}\n{_identity(path)}"
    with contextlib.suppress(OSError):
        os.setxattr(path, ATTRIBUTE, text.encode("ascii"))
    os.unlink(mark)


def forgotten(path: str) -> None:
    """Take all marks away."""
    _remove_attribute(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}/{UNFINISHED}")


def _remove_attribute(path: str) -> None:
    with contextlib.suppress(OSError):
        os.removexattr(path, ATTRIBUTE)


def _identity(path: str) -> str:
    return f"{os.stat(path).st_ino} {'mounted' if is_mounted(path) else ''}"


def _next_tick(path: str) -> int:
    """Return a time of the file system that is later than whatever has been done up to now.

    Its clock may go by ticks of 10 ms. Where it goes by seconds this is not waited for: then what
    was done last will be done again.
    """
    deadline = time.monotonic() + _TICK_SECONDS
    os.utime(path)
    before = os.stat(path).st_ctime_ns
    while (now := os.stat(path).st_ctime_ns) == before and time.monotonic() < deadline:
        time.sleep(0.001)
        os.utime(path)
    return now
