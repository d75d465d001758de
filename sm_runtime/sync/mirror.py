"""Keeps one place in step with one local folder, in a thread of its own.

What the place holds can be loaded at any moment: data is sent before what points to it, both of
one moment, and only then is deleted what was deleted here. What cannot be sent is tried again for
as long as the job runs; here nothing is ever changed.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext

from sm_runtime.saved import Saved
from sm_runtime.storage import Store
from sm_runtime.sync.ledger import Ledger, left_out, shown
from sm_runtime.sync.plan import Folder
from sm_runtime.sync.snapshot import (
    Listing,
    Signature,
    Snapshot,
    is_growing,
    rank,
    scan,
    signature,
    take,
)
from sm_runtime.sync.writers import open_for_writing

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""From one look at the folder to the next; also how long a file has to stay the same where it
cannot be known whether someone has it open."""
HURRY_SECONDS = 0.2
GROWING_SECONDS = 15.0
"""From one time that a growing file is sent to the next."""
PATIENCE_SECONDS = 60.0
"""How long after the last success what fails is still tried again at the end."""
_MAX_BACKOFF_SECONDS = 60.0
_COMPLAIN_SECONDS = 60.0
_THREADS = 4
_LARGE_BYTES = 8 << 20
"""Larger files are sent one after the other: a store sends several parts of one at once."""


class Mirror:
    """Sends the changes of ``folder`` to ``store`` from ``start`` until some time after ``end``."""

    def __init__(self, folder: Folder, store: Store, *, patience: float = PATIENCE_SECONDS) -> None:
        self.folder = folder
        self._store = store
        self._patience = patience
        self._ledger = Ledger()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._hurried = self._final = self._failing = False
        self._deadline = float("inf")
        self._large = threading.Lock()
        self._seen: dict[str, tuple[Signature, float]] = {}
        self._failures = 0
        self._complained = float("-inf")
        self._seconds = self._scan_seconds = 0.0

    def restored(self, names: Iterable[str], *, owned: bool) -> None:
        """Note files that were fetched: they are there, and if ``owned`` ours to delete there."""
        self._ledger.restored(scan(self.folder.path) or {}, names, owned=owned)

    def start(self) -> None:
        """Begin to look for changes."""
        # A daemon: when all deadlines have passed, it must not keep the process.
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Look more often from now on: the end is near."""
        self._hurried = True
        self._wake.set()

    def end(self, deadline: float) -> None:
        """Send what is left, which is complete now, and end; until ``deadline`` (monotonic)."""
        self._ledger.last_success = time.monotonic()
        self._deadline = deadline
        self._failures = 0
        self._final = True
        self._wake.set()

    def shorten(self, deadline: float) -> None:
        """Let the deadline be no later than this."""
        self._deadline = min(self._deadline, deadline)
        self._wake.set()

    @property
    def ended(self) -> bool:
        """Whether all is done."""
        return self._thread is None or not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait for the end, ``seconds`` at most."""
        if self._thread is not None:
            self._thread.join(seconds)

    def result(self) -> Saved:
        """Return what is in the place and what is not."""
        what, path, place = self.folder.what, self.folder.path, self.folder.place
        try:
            listing = scan(path) or {}
        except OSError as error:
            return Saved(what=what, folder=path, failure=f"{what}: {path} cannot be read: {error}")
        missing = self._ledger.differing(listing)
        warnings = [f"{what}: {sentence}" for sentence in left_out(listing)]
        failure = None
        if missing:
            failure = (
                f"{what}: {len(missing)} of {len(listing)} files are not in {place},"
                f" {shown(missing[0])} for one: {self._ledger.reason(missing)}"
            )
            if not self.folder.required:
                warnings.append(failure)
        return Saved(
            what=what,
            folder=path,
            files=len(listing),
            size_bytes=sum(status.st_size for status in listing.values()),
            destination=place,
            stored_bytes=self._ledger.sent_bytes,
            seconds=self._seconds,
            warnings=tuple(warnings),
            failure=failure if self.folder.required else None,
        )

    def _run(self) -> None:
        try:
            self._keep_in_step()
        finally:
            self._store.close()

    def _keep_in_step(self) -> None:
        while True:
            self._wake.clear()
            final = self._final
            self._failing = False
            try:
                done = self._look()
            except Exception as error:  # whatever it is: the next look may go better
                done = False
                self._fail("", error)
            if self._failures and not self._failing:
                log.info("%s: in step with %s again", self.folder.what, self.folder.place)
            self._failures = self._failures + 1 if self._failing else 0
            now = time.monotonic()
            hopeless = now - self._ledger.last_success > self._patience
            if final and (done or hopeless or now >= self._deadline):
                return
            self._wake.wait(max(0.0, min(self._pause(), self._deadline - now)))

    def _look(self) -> bool:
        """Look at the folder once and send what can be sent; return whether nothing is left."""
        began = time.monotonic()
        listing = scan(self.folder.path)
        self._scan_seconds = time.monotonic() - began
        if listing is None:  # not made yet, or unmounted: no reason to delete anything
            return True
        if not self._due(listing) and not self._gone(listing):
            return True
        with take(self.folder.path, listing, self._due) as snapshot:
            self._send(snapshot)
            self._seconds += time.monotonic() - began
            left = self._ledger.readable(self._due(snapshot.listing))
            return snapshot.consistent and not self._failing and not left

    def _due(self, listing: Listing) -> list[str]:
        return self._ledger.differing(listing) if self._final else self._ledger.due(listing)

    def _gone(self, listing: Listing) -> list[str]:
        return self._ledger.gone(listing) if self.folder.deletes else []

    def _send(self, snapshot: Snapshot) -> None:
        ready, unsettled = self._ready(snapshot)
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
        if self._final or self.folder.grows:
            return snapshot.changed, False
        identities = {(listing[n].st_dev, listing[n].st_ino) for n in snapshot.changed}
        written, whole = open_for_writing(identities)
        ready, unsettled = [], False
        for name in snapshot.changed:
            status = listing[name]
            if is_growing(name):
                ready.append(name)
            elif (status.st_dev, status.st_ino) in written:
                continue
            elif whole or _renamed(status) or self._settled(name, signature(status)):
                ready.append(name)
            else:
                unsettled = True
        return ready, unsettled

    def _settled(self, name: str, found: Signature) -> bool:
        now = time.monotonic()
        before, since = self._seen.get(name, (None, now))
        if before != found:
            since = now
        self._seen[name] = (found, since)
        return now - since >= POLL_SECONDS

    def _upload(self, snapshot: Snapshot, names: list[str], threads: int) -> bool:
        """Send ``names``; return whether nothing that a pointer may name is missing."""
        todo, missing = deque(names), list[str]()

        def work() -> None:
            while time.monotonic() < self._deadline:
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
        growing = self.folder.grows or is_growing(name)
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
            found = signature(os.fstat(source))
            if found != signature(snapshot.listing[name]) and not growing:
                return False
            with self._large if found[2] > _LARGE_BYTES else nullcontext():
                self._store.put(name, source, found[2])
            whole = growing or signature(os.fstat(source)) == found
        except Exception as error:  # a store's library may raise anything
            self._fail(name, error)
            return growing
        finally:
            os.close(source)
        if not whole:
            self._ledger.torn(name)
            return False
        now = time.monotonic()
        again_at = now + max(GROWING_SECONDS, 10 * (now - began)) if growing else None
        self._ledger.sent(name, found, again_at=again_at)
        self._seen.pop(name, None)
        return True

    def _delete(self, listing: Listing) -> None:
        for name in self._gone(listing):
            if time.monotonic() >= self._deadline:
                return
            try:
                self._store.delete(name)
            except Exception as error:
                self._fail(name, error)
                return
            self._ledger.deleted(name)

    def _fail(self, name: str, error: Exception) -> None:
        self._failing = True
        self._ledger.failed(name, _reason(error))
        self._complain(name, error)

    def _complain(self, name: str, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained < _COMPLAIN_SECONDS:
            return
        self._complained = now
        log.warning(
            "%s: %s cannot be synced with %s, tried again: %s",
            self.folder.what,
            shown(name) if name else self.folder.path,
            self.folder.place,
            _reason(error),
        )

    def _pause(self) -> float:
        """Return the seconds until the next look: a tenth of a CPU at most, and backing off."""
        near = self._hurried or self._final
        pause = max(HURRY_SECONDS if near else POLL_SECONDS, 10 * min(self._scan_seconds, 1.0))
        if self._failures:
            most = 5.0 if near else _MAX_BACKOFF_SECONDS
            pause = min(most, pause * 2.0 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
        return pause


def _renamed(status: os.stat_result) -> bool:
    """Return whether something was done to a file after it was last written: writing sets both."""
    return status.st_ctime_ns > status.st_mtime_ns


def _reason(error: Exception) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text or type(error).__name__
