"""Keeps account of what a place holds, what it lacks, and why."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from sm_runtime.storage.parts import is_part
from sm_runtime.sync.snapshot import Listing, Signature, is_temporary, signature

MAX_KEY_BYTES = 1024
"""The longest key of an object (S3's user guide, "Naming Amazon S3 objects")."""


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


def shown(name: str) -> str:
    """Return ``name`` as one line of text can hold it."""
    return name if name.isprintable() else ascii(name)
