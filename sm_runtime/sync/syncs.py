"""All folders of a job that are synced: fetched before the script, sent while it runs and after."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping

from sm_runtime.errors import ConfigError, DataError
from sm_runtime.model import Job
from sm_runtime.saved import Saved, amount
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
            found = restore.restore(folder, self._environ, self._job.region, stopped)
            mirror = self._mirrors.get(folder)
            if mirror:
                # A host that does not lead leaves to the leader what another host may have written.
                mirror.restored(found.names, owned=self._job.cluster.is_leader)
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

    def finish(
        self,
        seconds: float | None = None,
        *,
        stopped: Callable[[], bool] = lambda: False,
        grace_seconds: float = 20.0,
    ) -> tuple[Saved, ...]:
        """Send what is left, the script being gone, and end; return what became of each folder.

        It takes ``seconds`` at most; with None as long as it gets on, or ``grace_seconds`` where a
        stop was asked for already, and ``grace_seconds`` at most from a stop meanwhile. What is not
        there by then is in ``Saved``, as a failure or, for logs, as warnings.
        """
        began = time.monotonic()
        deadline = float("inf") if seconds is None else began + seconds
        mirrors = self._mirrors.values()
        for mirror in mirrors:
            mirror.end(deadline)
        # ``seconds`` are what a stop before has left.
        shortened = seconds is not None and stopped()
        for mirror in mirrors:
            while not mirror.ended and time.monotonic() < deadline:
                mirror.wait(min(_GLANCE_SECONDS, max(0.0, deadline - time.monotonic())))
                if not shortened and stopped():
                    shortened = True
                    deadline = min(deadline, time.monotonic() + grace_seconds)
                    for other in mirrors:
                        other.shorten(deadline)
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
