"""Looks at a folder that is written to meanwhile, and sees it as it was at one moment.

What a pointer (``checkpoint``, ``latest``) names must be sent before the pointer is, also when the
writer has long gone on, and deleted it. So the files are opened while the folder is known not to
have changed: what is open stays what it was.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from functools import lru_cache

Listing = dict[str, os.stat_result]
"""The regular files below a folder by their relative names, links followed."""
Signature = tuple[int, int, int, int, int]
"""What differs when a file's content does: device, inode, size, time of the last write, and time of
the last change of any kind, which no program can set back."""

_ATTEMPTS = 5
_MAX_PINS = 256
"""How many files are kept open at most: 1024 is what a process commonly may."""
_POINTER = re.compile(
    r"\.?_?(checkpoint|latest\w*|last|current|best|commit\w*|success|done|\w*metadata)(\.\w+)?",
    re.IGNORECASE,
)
_INDEX = re.compile(r".+\.index(\.json)?|.*index\.json")
_RANDOM = r"(?=[0-9a-f]*[0-9])[0-9a-f]+"
"""A number, or random digits as of a UUID; a word has no digit."""
_TEMPORARY = re.compile(
    # A whole part of the name: x.tmp, x.tmp123, tmp-checkpoint-500, step.orbax-checkpoint-tmp-12.
    rf"(?:.*[._-])?tmp(?:{_RANDOM})?(?:[._-].*)?"
    # Also a word of many names (lr_temp_beta_1): only at the end, or before a number.
    rf"|(?:.*[._-])?temp(?:[._-]?{_RANDOM})?"
    r"|.+\.tempstate\w*"  # TensorFlow's
    r"|.+\.(part|partial)|.+~|\..+\.sw[a-p]"
)
_GROWING = re.compile(r".*tfevents.*|.+\.(log|csv|jsonl)")


def scan(folder: str) -> Listing | None:
    """Return the files below ``folder``; None where the folder is not there.

    Raises OSError where something cannot be read: a part that is not seen must not look deleted.
    """
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return None
    found: Listing = {}
    pending: list[tuple[str, str, tuple[tuple[int, int], ...]]]
    pending = [("", folder, (_identity(status),))]
    while pending:
        prefix, path, above = pending.pop()
        try:
            with os.scandir(path) as entries:
                listed = list(entries)
        except (FileNotFoundError, NotADirectoryError):  # gone meanwhile
            if not prefix:
                return None
            continue
        for entry in listed:
            try:
                status = entry.stat()
            except OSError as error:
                if entry.is_symlink() or error.errno in (errno.ENOENT, errno.ENOTDIR):
                    continue  # a link that leads nowhere, or gone meanwhile
                raise
            if stat.S_ISREG(status.st_mode):
                found[prefix + entry.name] = status
            elif stat.S_ISDIR(status.st_mode) and _identity(status) not in above:
                # a link may lead up: what is above is not gone into again
                inside = (*above, _identity(status))
                pending.append((f"{prefix}{entry.name}/", entry.path, inside))
    return found


def signature(status: os.stat_result) -> Signature:
    """Return what differs when the content of a file does."""
    times = status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, *times


def is_unchanged(before: os.stat_result, now: os.stat_result) -> bool:
    """Return whether an open file has the content that it had.

    To delete it, or to put another in its place, changes its count of links, and so the time of its
    last change.
    """
    old, new = signature(before), signature(now)
    return old == new or (old[:4] == new[:4] and before.st_nlink != now.st_nlink)


@lru_cache(maxsize=1 << 16)
def rank(name: str) -> int:
    """Return 0 for data, 1 for an index of data, 2 for what points to the newest of them."""
    base = name.rpartition("/")[2]
    if _POINTER.fullmatch(base):
        return 2
    return 1 if _INDEX.fullmatch(base) else 0


@lru_cache(maxsize=1 << 16)
def is_temporary(name: str) -> bool:
    """Return whether the name says that the file, or a folder it is in, is not complete yet."""
    return any(_TEMPORARY.fullmatch(part) for part in name.split("/"))


def is_growing(name: str) -> bool:
    """Return whether the name is that of a log, which is open as long as the job runs."""
    return _GROWING.fullmatch(name.rpartition("/")[2]) is not None and rank(name) == 0


class Snapshot:
    """A folder as it was at one moment, its changed files open; a context manager."""

    def __init__(self, folder: str, listing: Listing, changed: list[str]) -> None:
        self.listing = listing
        self.changed = changed
        self.consistent = False
        """Whether this is really how it was at one moment; if not, only data may be sent."""
        self._folder = folder
        self._pins: dict[str, int] = {}

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        for pin in self._pins.values():
            os.close(pin)
        self._pins.clear()

    def open(self, name: str) -> int:
        """Return a descriptor of a changed file, for the caller to close."""
        pin = self._pins.get(name)
        if pin is not None:
            return os.dup(pin)
        return _open(os.path.join(self._folder, name))

    def pin(self) -> bool:
        """Keep the changed files open; return whether they are those of the listing."""
        # The newest are the likeliest to be replaced.
        newest = sorted(self.changed, key=lambda n: (-rank(n), -self.listing[n].st_ctime_ns))
        for name in newest[:_MAX_PINS]:
            try:
                pin = _open(os.path.join(self._folder, name))
            except FileNotFoundError:
                return False
            except OSError:  # whoever wants to send it will be told
                continue
            self._pins[name] = pin
            found = os.fstat(pin)
            if (found.st_dev, found.st_ino) != _identity(self.listing[name]):
                return False
        return True


def take(folder: str, before: Listing, changed: Callable[[Listing], list[str]]) -> Snapshot:
    """Return a snapshot of ``folder``; ``before`` is how it looked a moment ago.

    Two scans that are equal, and pointers that do not change from before them until after them,
    mean that all that the pointers name was there in between.
    """
    for attempt in range(_ATTEMPTS):
        listing = scan(folder)
        snapshot = Snapshot(folder, listing or {}, changed(listing or {}))
        try:
            pinned = snapshot.pin()
            after = scan(folder)
            # A folder that is gone, unmounted perhaps, must not look empty.
            if listing is not None and after is not None and pinned:
                snapshot.consistent = _equal(folder, before, listing, after)
        except BaseException:
            snapshot.__exit__()
            raise
        if snapshot.consistent or attempt == _ATTEMPTS - 1:
            return snapshot
        snapshot.__exit__()
        before = after or {}
    raise AssertionError("the last attempt returns")


def _equal(folder: str, before: Listing, listing: Listing, after: Listing) -> bool:
    if _identities(listing) != _identities(after):
        return False
    pointers = _pointers(listing)
    if _pointers(before) != pointers:
        return False
    try:
        return all(
            signature(os.stat(os.path.join(folder, name))) == found
            for name, found in pointers.items()
        )
    except OSError:
        return False


def _identities(listing: Listing) -> dict[str, tuple[int, int]]:
    return {name: _identity(status) for name, status in listing.items() if not is_temporary(name)}


def _pointers(listing: Listing) -> dict[str, Signature]:
    return {name: signature(status) for name, status in listing.items() if rank(name)}


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open(path: str) -> int:
    # O_NONBLOCK: should a FIFO have taken the file's place, opening it must not wait
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
