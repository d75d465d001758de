"""Keeps one place in step with one local folder, in a thread of its own.

What the place holds can be loaded at any moment: data is sent before what points to it, both of
one moment, and only then is deleted what was deleted here. What cannot be sent is tried again for
as long as the job runs; here nothing is ever changed.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from sm_runtime.job.errors import ArtifactError
from sm_runtime.output import tar
from sm_runtime.output.saved import Saved, Warnings
from sm_runtime.storage import Store
from sm_runtime.sync.ledger import Ledger, shown
from sm_runtime.sync.plan import Folder
from sm_runtime.sync.sending import Sender
from sm_runtime.sync.snapshot import Listing, scan, take

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""From one look at the folder to the next."""
HURRY_SECONDS = 0.2
PATIENCE_SECONDS = 60.0
"""How long after the last success what fails is still tried again at the end."""
_MAX_BACKOFF_SECONDS = 60.0
_NO_KEY = "object storage cannot hold its name"


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
                    f" {shown(names[0])} for one: {why}"
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
                "%s: %s cannot be synced with %s: %s", what, shown(names[0]), place, _NO_KEY
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
