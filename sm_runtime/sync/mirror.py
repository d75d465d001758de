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
from contextlib import nullcontext, suppress
from dataclasses import dataclass

from sm_runtime.job import location
from sm_runtime.job.errors import ArtifactError
from sm_runtime.output import tar
from sm_runtime.output.artifacts import Saved, Warnings
from sm_runtime.storage import Store
from sm_runtime.sync.snapshot import (
    Ledger,
    Listing,
    Signature,
    Snapshot,
    being_written,
    identity,
    is_growing,
    is_unchanged,
    rank,
    scan,
    signature,
    take,
)

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""From one look at the folder to the next."""
HURRY_SECONDS = 0.2
PATIENCE_SECONDS = 60.0
"""How long after the last success what fails is still tried again at the end."""
_MAX_BACKOFF_SECONDS = 60.0
_NO_KEY = "object storage cannot hold its name"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A local folder that is kept in step with a place."""

    what: str
    path: str
    uri: str
    parts: tuple[str, ...] = ()
    """The place is so much deeper than ``uri``."""
    setting: str
    """The key of the request, or the hyperparameter, that wants it."""
    restores: bool = False
    """Whether what is in the place is fetched before the script starts."""
    deletes: bool = False
    """Whether a file that is deleted here is deleted there."""
    grows: bool = False
    """Whether files are sent while they are still written to: logs that only grow."""
    required: bool = False
    """Whether the job fails when not everything gets there."""
    uploads: bool = True
    """Whether this host sends anything."""
    optional: bool = False
    """Whether a script that leaves nothing here may run though the place cannot be read."""

    @property
    def place(self) -> str:
        """The URI of the place, which ends in a slash."""
        from urllib.parse import quote

        parts = self.parts if location.is_s3(self.uri) else map(quote, self.parts)
        return "/".join((self.uri.rstrip("/"), *parts, ""))

    @property
    def prefix(self) -> str | None:
        """What the keys of the place begin with, where it is one of an object store."""
        return location.parse(self.place).path if location.is_s3(self.place) else None


class Mirror:
    """Sends the changes of ``folder`` to ``store`` from ``start`` until some time after ``end``."""

    def __init__(self, folder: Folder, store: Store, *, patience: float = PATIENCE_SECONDS) -> None:
        self.folder = folder
        self._patience = patience
        self._ledger = Ledger(folder.prefix)
        self._sender = Sender(folder, store, self._ledger)
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._hurried = self._final = self._warned = False
        self._failures = 0
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
        self._sender.deadline = deadline
        self._failures = 0
        self._ledger.finalize()
        self._final = True
        self._wake.set()

    def shorten(self, deadline: float) -> None:
        """Let the deadline be no later than this."""
        self._sender.deadline = min(self._sender.deadline, deadline)
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
        failures = []
        for names, why in (
            (missing := self._ledger.differing(listing), self._ledger.reason(missing)),
            (self._ledger.without_key(listing), _NO_KEY),
        ):
            if names:
                failures.append(
                    f"{what}: {len(names)} of {len(listing)} files are not in {place},"
                    f" {tar.shown(names[0])} for one: {why}"
                )
        return Saved(
            what=what,
            folder=path,
            files=len(listing),
            size_bytes=sum(status.st_size for status in listing.values()),
            destination=place,
            stored_bytes=self._ledger.sent_bytes,
            seconds=self._seconds,
            warnings=(
                *(f"{what}: {sentence}" for sentence in _left_out(path)),
                *(() if self.folder.required else failures),
            ),
            failure="; ".join(failures) or None if self.folder.required else None,
        )

    def _run(self) -> None:
        try:
            self._keep_in_step()
        finally:
            self._sender.close()

    def _keep_in_step(self) -> None:
        while True:
            self._wake.clear()
            final = self._final
            self._sender.is_failing = False
            try:
                done = self._look()
            except Exception as error:  # whatever it is: the next look may go better
                done = False
                self._sender.fail("", error)
            failing = self._sender.is_failing
            if self._failures and not failing:
                log.info("%s: in step with %s again", self.folder.what, self.folder.place)
            self._failures = self._failures + 1 if failing else 0
            now = time.monotonic()
            hopeless = now - self._ledger.last_success > self._patience
            deadline = self._sender.deadline
            if final and (done or hopeless or now >= deadline):
                return
            self._wake.wait(max(0.0, min(self._pause(), deadline - now)))

    def _look(self) -> bool:
        """Look at the folder once and send what can be sent; return whether nothing is left."""
        began = time.monotonic()
        listing = scan(self.folder.path)
        self._scan_seconds = time.monotonic() - began
        if listing is None:  # not made yet, or unmounted: no reason to delete anything
            return True
        self._warn_of_names(listing)
        if not self._final:
            self._sender.look_for_maps(listing)
        if not self._due(listing) and not self._sender.gone(listing):
            return True
        with take(self.folder.path, listing, self._due) as snapshot:
            self._sender.send(snapshot, is_last=self._final)
            self._seconds += time.monotonic() - began
            left = self._ledger.readable(self._due(snapshot.listing))
            return snapshot.consistent and not self._sender.is_failing and not left

    def _warn_of_names(self, listing: Listing) -> None:
        """Say once, as soon as it is seen, that the place will not be complete."""
        if not self._warned and (names := self._ledger.without_key(listing)):
            self._warned = True
            what, place = self.folder.what, self.folder.place
            log.warning(
                "%s: %s cannot be synced with %s: %s", what, tar.shown(names[0]), place, _NO_KEY
            )

    def _due(self, listing: Listing) -> list[str]:
        return self._ledger.differing(listing) if self._final else self._ledger.due(listing)

    def _pause(self) -> float:
        """Return the seconds until the next look: a tenth of a CPU at most, and backing off."""
        near = self._hurried or self._final
        pause = max(HURRY_SECONDS if near else POLL_SECONDS, 10 * min(self._scan_seconds, 1.0))
        if self._failures:
            most = 5.0 if near else _MAX_BACKOFF_SECONDS
            pause = min(most, pause * 2.0 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
        return pause


def _left_out(folder: str) -> tuple[str, ...]:
    """Return a sentence for each link that leads nowhere, and for what is no file or folder."""
    warnings = Warnings()
    with suppress(ArtifactError):  # what cannot be read is told elsewhere
        tar.count(folder, warnings)
    return warnings.all()


class Sender:
    """Brings snapshots of ``folder`` to ``store``, and has ``ledger`` know what is there."""

    def __init__(self, folder: Folder, store: Store, ledger: Ledger) -> None:
        self._folder, self._store, self._ledger = folder, store, ledger
        self.deadline = float("inf")
        """When no other file is begun (monotonic)."""
        self.is_failing = False
        """Whether something could not be sent; each look sets it back."""
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
        identities = {name: identity(listing[name]) for name in snapshot.changed}
        written = being_written(set(identities.values()))
        self._ledger.mapped(name for name, each in identities.items() if each in written.mapped)
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
            names = {identity(status): name for name, status in listing.items()}
            mapped = being_written(set(names)).mapped
            self._ledger.mapped(names[each] for each in mapped)

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
            tar.shown(name) if name else self._folder.path,
            self._folder.place,
            _reason(error),
        )


def _renamed(status: os.stat_result) -> bool:
    """Return whether something was done to a file after it was last written: writing sets both."""
    return status.st_ctime_ns > status.st_mtime_ns


def _reason(error: Exception) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text or type(error).__name__
