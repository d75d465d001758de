"""What is in a folder that is written to meanwhile, and what of it is known to be in its place.

What a pointer (``checkpoint``, ``latest``) names must be sent before the pointer is, also when the
writer has long gone on, and deleted it. So the folder is seen as it was at one moment, and the
files are opened while it is known not to have changed: what is open stays what it was.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache

from sm_runtime.storage.writing import is_part

Listing = dict[str, os.stat_result]
"""The regular files below a folder by their relative names, links followed."""
Signature = tuple[int, int, int, int, int]
"""What differs when a file's content does: device, inode, size, time of the last write, and time of
the last change of any kind, which no program can set back."""

Identity = tuple[int, int]
"""Device and inode."""
MAX_KEY_BYTES = 1024
"""The longest key of an object (S3's user guide, "Naming Amazon S3 objects")."""

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
    pending: list[tuple[str, str, tuple[Identity, ...]]]
    pending = [("", folder, (identity(status),))]
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
            elif stat.S_ISDIR(status.st_mode) and identity(status) not in above:
                # a link may lead up: what is above is not gone into again
                inside = (*above, identity(status))
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
            except OSError:  # said when it is to be sent
                continue
            self._pins[name] = pin
            found = os.fstat(pin)
            if (found.st_dev, found.st_ino) != identity(self.listing[name]):
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


def _identities(listing: Listing) -> dict[str, Identity]:
    return {name: identity(status) for name, status in listing.items() if not is_temporary(name)}


def _pointers(listing: Listing) -> dict[str, Signature]:
    return {name: signature(status) for name, status in listing.items() if rank(name)}


def identity(status: os.stat_result) -> Identity:
    """Return what tells a file from any other."""
    return status.st_dev, status.st_ino


def _open(path: str) -> int:
    # O_NONBLOCK: should a FIFO have taken the file's place, opening it must not wait
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


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
            if (written := _written(pid, number, files)) is not None:
                found.opened.add(written)
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
            known = os.makedev(int(major, 16), int(minor, 16)), int(words[4])
            if known not in files and words[5].startswith(b"/"):
                try:
                    status = os.stat(b"/proc/" + pid.encode() + b"/root" + words[5].rstrip(b"\n"))
                except OSError:  # removed, or with an odd name
                    continue
                known = status.st_dev, status.st_ino
            if known in files:
                found.add(known)
    return found


def _written(pid: str, number: str, files: set[Identity]) -> Identity | None:
    path = f"/proc/{pid}/fd/{number}"
    try:
        target = os.readlink(path)
        if not target.startswith("/") or target.startswith("/dev/"):
            return None
        status = os.stat(path)
        known = (status.st_dev, status.st_ino)
        if known not in files:
            return None
        with open(f"/proc/{pid}/fdinfo/{number}") as file:
            flags = next(line for line in file if line.startswith("flags:"))
    except (OSError, StopIteration):  # closed meanwhile
        return None
    return known if int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY else None


class Ledger:
    """What is known of a place; its methods may be called from several threads.

    ``prefix`` is what the keys of an object store begin with there; None for a file system, which
    can hold every name.
    """

    def __init__(self, prefix: str | None = None) -> None:
        self._prefix = prefix
        self._is_final = False
        self._mapped: set[str] = set()
        self.sent_bytes = 0
        self.last_success = time.monotonic()
        self._lock = threading.Lock()
        self._sent: dict[str, Signature] = {}
        self._owned: set[str] = set()
        self._errors: dict[str, str] = {}
        self._unreadable: set[str] = set()
        self._not_before: dict[str, float] = {}

    def restored(self, listing: Listing, names: Iterable[str], *, owned: bool) -> None:
        """Note files that were fetched; if ``owned`` they are ours to delete there."""
        for name in names:
            if name in listing:
                self._sent[name] = signature(listing[name])
                if owned:
                    self._owned.add(name)

    def sent(self, name: str, found: Signature, *, again_at: float | None) -> None:
        """Note that the content ``found`` is there; it is not sent again before ``again_at``."""
        with self._lock:
            self._owned.add(name)
            self._sent[name] = found
            self._errors.pop(name, None)
            self._unreadable.discard(name)
            if again_at is not None:
                self._not_before[name] = again_at
            self.sent_bytes += found[2]
            self.last_success = time.monotonic()

    def torn(self, name: str) -> None:
        """Note that something of a file is there, but not what it is now."""
        with self._lock:
            self._owned.add(name)
            self._sent.pop(name, None)

    def deleted(self, name: str) -> None:
        """Note that a file is not there any more."""
        with self._lock:
            self._owned.discard(name)
            self._sent.pop(name, None)
            self._errors.pop(name, None)
            self.last_success = time.monotonic()

    def failed(self, name: str, reason: str, *, unreadable: bool = False) -> None:
        """Note why a file could not be sent, or could not even be read."""
        with self._lock:
            self._errors[name] = reason
            if unreadable:
                self._unreadable.add(name)

    def mapped(self, names: Iterable[str]) -> None:
        """Note files that a process could write to through its memory, unseen by their times."""
        with self._lock:
            self._mapped.update(names)

    def finalize(self) -> None:
        """Note that nothing writes any more: all is complete, whatever its name is."""
        with self._lock:
            self._is_final = True
            for name in self._mapped:
                self._sent.pop(name, None)

    def differing(self, listing: Listing) -> list[str]:
        """Return the files whose content is not known to be there, though it should be."""
        with self._lock:
            return [
                name
                for name, status in listing.items()
                if self._sent.get(name) != signature(status)
                and (self._is_final or not is_temporary(name))
                and not is_part(name)
                and self._has_key(name)
            ]

    def without_key(self, listing: Listing) -> list[str]:
        """Return the files that the place cannot hold, by their names."""
        return sorted(name for name in listing if not self._has_key(name))

    def _has_key(self, name: str) -> bool:
        if self._prefix is None:
            return True
        try:
            return len((self._prefix + name).encode()) <= MAX_KEY_BYTES
        except UnicodeEncodeError:
            return False

    def due(self, listing: Listing) -> list[str]:
        """Return those of the differing files that may be sent now."""
        now = time.monotonic()
        return [n for n in self.differing(listing) if now >= self._not_before.get(n, now)]

    def readable(self, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` that could be read so far."""
        return [name for name in names if name not in self._unreadable]

    def gone(self, listing: Listing) -> list[str]:
        """Return the files that are there and ours, and not here any more."""
        return sorted(name for name in self._owned if name not in listing)

    def reason(self, names: Iterable[str]) -> str:
        """Return why the first of ``names`` for which this is known is not there."""
        with self._lock:
            reasons = (self._errors[name] for name in (*names, "") if name in self._errors)
            return next(reasons, "no time was left")
