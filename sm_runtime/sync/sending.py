"""Sends what has changed in a folder, in the order in which a reader needs it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from contextlib import nullcontext

from sm_runtime.storage import Store
from sm_runtime.sync.ledger import Ledger, shown
from sm_runtime.sync.plan import Folder
from sm_runtime.sync.snapshot import (
    Listing,
    Signature,
    Snapshot,
    is_growing,
    is_unchanged,
    rank,
    signature,
)
from sm_runtime.sync.writers import Identity, being_written

log = logging.getLogger(__name__)

SETTLED_SECONDS = 1.0
"""How long a file has to stay the same where it cannot be known whether someone has it open."""
GROWING_SECONDS = 15.0
"""From one time that a growing file is sent to the next."""
MAPS_SECONDS = 10.0
"""How often all files are looked for in the memory of processes: some file systems (tmpfs) do not
change the times of a file that is written to there."""
_COMPLAIN_SECONDS = 60.0
_THREADS = 4
_LARGE_BYTES = 8 << 20
"""Larger files are sent one after the other: a store sends several parts of one at once."""


class Sender:
    """Brings snapshots of ``folder`` to ``store``, and has ``ledger`` know what is there."""

    def __init__(self, folder: Folder, store: Store, ledger: Ledger) -> None:
        self._folder, self._store, self._ledger = folder, store, ledger
        self.deadline = float("inf")
        """When no other file is begun (monotonic)."""
        self.is_failing = False
        """Whether something could not be sent; whoever looks next sets it back."""
        self._large = threading.Lock()
        self._seen: dict[str, tuple[Signature, float]] = {}
        self._complained = float("-inf")
        self._next_maps = 0.0

    def close(self) -> None:
        """Close the connections."""
        self._store.close()

    def gone(self, listing: Listing) -> list[str]:
        """Return what is to be deleted there."""
        return self._ledger.gone(listing) if self._folder.deletes else []

    def send(self, snapshot: Snapshot, *, is_last: bool) -> None:
        """Send what is complete; if it ``is_last`` all is, and nobody writes any more."""
        everything = is_last or self._folder.grows
        ready, unsettled = (snapshot.changed, False) if everything else self._ready(snapshot)
        groups: dict[int, list[str]] = {0: [], 1: [], 2: []}
        for name in sorted(ready, key=lambda n: (snapshot.listing[n].st_ctime_ns, n)):
            groups[rank(name)].append(name)
        for level, names in groups.items():
            if level and (unsettled or not snapshot.consistent):
                return
            if not self._upload(snapshot, names, _THREADS if level < 2 else 1):
                return
        if snapshot.consistent and not unsettled:
            self._delete(snapshot.listing)

    def _ready(self, snapshot: Snapshot) -> tuple[list[str], bool]:
        """Return the changed files that are complete, and whether it is unknown of some others."""
        listing = snapshot.listing
        identities = {name: _identity(listing[name]) for name in snapshot.changed}
        written = being_written(set(identities.values()))
        self._ledger.mapped(n for n, identity in identities.items() if identity in written.mapped)
        ready, unsettled = [], False
        for name in snapshot.changed:
            status = listing[name]
            if is_growing(name):
                ready.append(name)
            elif identities[name] in written.opened | written.mapped:
                continue
            elif written.whole or _renamed(status) or self._settled(name, signature(status)):
                ready.append(name)
            else:
                unsettled = True
        return ready, unsettled

    def look_for_maps(self, listing: Listing) -> None:
        """Note now and then which files are in the memory of a process that may write there."""
        now = time.monotonic()
        if listing and now >= self._next_maps:
            self._next_maps = now + MAPS_SECONDS
            identities = {_identity(status): name for name, status in listing.items()}
            mapped = being_written(set(identities)).mapped
            self._ledger.mapped(identities[identity] for identity in mapped)

    def _settled(self, name: str, found: Signature) -> bool:
        now = time.monotonic()
        before, since = self._seen.get(name, (None, now))
        if before != found:
            since = now
        self._seen[name] = (found, since)
        return now - since >= SETTLED_SECONDS

    def _upload(self, snapshot: Snapshot, names: list[str], threads: int) -> bool:
        """Send ``names``; return whether nothing that a pointer may name is missing."""
        todo, missing = deque(names), list[str]()

        def work() -> None:
            while time.monotonic() < self.deadline:
                try:
                    name = todo.popleft()
                except IndexError:
                    return
                if not self._upload_one(snapshot, name):
                    missing.append(name)

        others = [
            threading.Thread(target=work, name="sync", daemon=True)
            for _ in range(min(threads, len(names)) - 1)
        ]
        for thread in others:
            thread.start()
        work()
        for thread in others:
            thread.join()
        return not missing and not todo

    def _upload_one(self, snapshot: Snapshot, name: str) -> bool:
        """Send a file; return whether it is there, or nothing that a pointer could name."""
        growing = self._folder.grows or is_growing(name)
        began = time.monotonic()
        try:
            source = snapshot.open(name)
        except FileNotFoundError:
            return growing
        except OSError as error:  # nothing that the script itself could load
            self._ledger.failed(name, _reason(error), unreadable=True)
            self._complain(name, error)
            return True
        try:
            found = os.fstat(source) if growing else snapshot.listing[name]
            if not (growing or is_unchanged(found, os.fstat(source))):
                return False
            with self._large if found.st_size > _LARGE_BYTES else nullcontext():
                self._store.put(name, source, found.st_size)
            whole = growing or is_unchanged(found, os.fstat(source))
        except Exception as error:  # a store's library may raise anything
            self.fail(name, error)
            return growing
        finally:
            os.close(source)
        if not whole:
            self._ledger.torn(name)
            return False
        now = time.monotonic()
        again_at = now + max(GROWING_SECONDS, 10 * (now - began)) if growing else None
        self._ledger.sent(name, signature(found), again_at=again_at)
        self._seen.pop(name, None)
        return True

    def _delete(self, listing: Listing) -> None:
        for name in self.gone(listing):
            if time.monotonic() >= self.deadline:
                return
            try:
                self._store.delete(name)
            except Exception as error:
                self.fail(name, error)
                return
            self._ledger.deleted(name)

    def fail(self, name: str, error: Exception) -> None:
        """Take note of a failure; ``name`` is empty where it is of the whole folder."""
        self.is_failing = True
        self._ledger.failed(name, _reason(error))
        self._complain(name, error)

    def _complain(self, name: str, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained < _COMPLAIN_SECONDS:
            return
        self._complained = now
        log.warning(
            "%s: %s cannot be synced with %s, tried again: %s",
            self._folder.what,
            shown(name) if name else self._folder.path,
            self._folder.place,
            _reason(error),
        )


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _renamed(status: os.stat_result) -> bool:
    """Return whether something was done to a file after it was last written: writing sets both."""
    return status.st_ctime_ns > status.st_mtime_ns


def _reason(error: Exception) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text or type(error).__name__
