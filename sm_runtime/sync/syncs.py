"""All folders of a job that are synced: fetched before the script, sent while it runs and after."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping

from sm_runtime.job.errors import ConfigError, DataError
from sm_runtime.job.model import Job
from sm_runtime.output.saved import Saved, amount
from sm_runtime.storage import Store, open_store
from sm_runtime.sync import plan, restore
from sm_runtime.sync.mirror import Mirror

log = logging.getLogger(__name__)

_GLANCE_SECONDS = 0.2


class Syncs:
    """What is synced of one job: ``restore``, ``start``, ``hurry`` at a stop, ``finish``."""

    def __init__(
        self, job: Job, environ: Mapping[str, str], folders: Mapping[plan.Folder, Store | None]
    ) -> None:
        self._job = job
        self._environ = environ
        self._folders = tuple(folders)
        self._is_ending = False
        self._mirrors = {
            folder: Mirror(folder, store) for folder, store in folders.items() if store is not None
        }

    @classmethod
    def of(cls, job: Job, environ: Mapping[str, str]) -> Syncs:
        """Return what syncs the folders of ``job``; see ``sync.open_syncs``."""
        return cls(job, environ, {f: _store(job, environ, f) for f in plan.folders(job)})

    def restore(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Fetch what is in the places, on every host; files that are here already stay.

        Raises DataError where that fails, or when ``stopped`` says so: a script that starts without
        its checkpoints would begin anew.
        """
        for folder in self._folders:
            _make(folder)
            if not folder.restores:
                continue
            began = time.monotonic()
            found = restore.restore(folder, self._job, self._environ, stopped)
            mirror = self._mirrors.get(folder)
            if mirror:
                # A host that does not lead leaves to the leader what another host may have written.
                mirror.restored(found.names, owned=self._job.cluster.is_first)
            if found.kept:
                log.warning(
                    "%s: in %s already, and left as they are: %d of the files of %s",
                    folder.what,
                    folder.path,
                    found.kept,
                    folder.place,
                )
            if found.names:
                log.info(
                    "%s: restored %s from %s (%.1f s)",
                    folder.what,
                    amount(len(found.names), found.size_bytes),
                    folder.place,
                    time.monotonic() - began,
                )

    def start(self) -> None:
        """Begin to send changes, in a thread for each folder."""
        for mirror in self._mirrors.values():
            mirror.start()

    def hurry(self) -> None:
        """Look for changes five times a second from now on: a stop was asked for."""
        for mirror in self._mirrors.values():
            mirror.hurry()

    def end(self) -> None:
        """Send what is left, the script being gone, and end: ``finish`` waits for that."""
        if not self._is_ending:
            self._is_ending = True
            for mirror in self._mirrors.values():
                mirror.end(float("inf"))

    def finish(
        self, seconds: float | None = None, *, until: Callable[[], float] = lambda: float("inf")
    ) -> tuple[Saved, ...]:
        """Wait until all is sent; return what became of each folder.

        It takes ``seconds`` at most, and no longer than ``until()`` (monotonic), which is asked now
        and then: a stop may be asked for meanwhile. Without either it takes as long as it gets on.
        What is not there by then is in ``Saved``, as a failure or, for logs, as warnings.
        """
        self.end()
        last = float("inf") if seconds is None else time.monotonic() + seconds
        mirrors = self._mirrors.values()
        while not all(mirror.ended for mirror in mirrors):
            deadline = min(last, until())
            for mirror in mirrors:
                mirror.shorten(deadline)
            left = deadline - time.monotonic()
            if left <= 0:
                break
            next(m for m in mirrors if not m.ended).wait(min(_GLANCE_SECONDS, left))
        return tuple(mirror.result() for mirror in mirrors)


def _store(job: Job, environ: Mapping[str, str], folder: plan.Folder) -> Store | None:
    """Return where a folder's files are sent; None where they are not."""
    try:
        store = open_store(
            folder.uri,
            *folder.parts,
            outside=(folder.path,),
            environ=environ,
            region=job.region,
            kms_key=job.output.kms_key if job.output else None,
            stall_seconds=job.options.stall_seconds,
        )
    except ConfigError as error:
        raise ConfigError(
            [
                text.replace("OutputDataConfig.S3OutputPath", folder.setting)
                for text in error.problems
            ]
        ) from error
    return store if folder.uploads else None


def _make(folder: plan.Folder) -> None:
    try:
        os.makedirs(folder.path, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder.what}: {folder.path} cannot be made: {error.strerror}") from error
