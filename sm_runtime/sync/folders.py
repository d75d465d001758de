"""Which folders of a job are synced: fetched before the script, sent while it runs and after."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sm_runtime.job import location
from sm_runtime.job.errors import ConfigError, DataError
from sm_runtime.job.model import Job
from sm_runtime.output.artifacts import Saved, amount
from sm_runtime.storage import Blob, Origin, Store, open_origin, open_store
from sm_runtime.storage.writing import is_part
from sm_runtime.sync.mirror import Folder, Mirror

log = logging.getLogger(__name__)

_GLANCE_SECONDS = 0.2
_SPARE_BYTES = 64 << 20


class Syncs:
    """What is synced of one job: ``restore``, ``start``, ``hurry`` at a stop, ``finish``."""

    def __init__(
        self, job: Job, environ: Mapping[str, str], folders: Mapping[Folder, Store | None]
    ) -> None:
        self._job = job
        self._environ = environ
        self._folders = tuple(folders)
        self._is_ending = False
        self._unread: dict[Folder, tuple[str, dict[str, tuple[int, int]]]] = {}
        """Optional folders whose places could not be read: why, and what was in them before."""
        self._mirrors = {
            folder: Mirror(folder, store) for folder, store in folders.items() if store is not None
        }

    @classmethod
    def of(cls, job: Job, environ: Mapping[str, str]) -> Syncs:
        """Return what syncs the folders of ``job``; see ``sync.open_syncs``."""
        return cls(job, environ, {f: _store(job, environ, f) for f in folders(job)})

    def restore(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Fetch what is in the places, on every host; files that are here already stay.

        Raises DataError where that fails, or when ``stopped`` says so: a script that starts without
        its checkpoints would begin anew.
        """
        for folder in self._folders:
            _make(folder)
            if not folder.restores:
                continue
            began, before = time.monotonic(), _versions(folder.path) if folder.optional else {}
            try:
                found = _fetch(folder, self._job, self._environ, stopped)
            except DataError as error:
                if not folder.optional or stopped():
                    raise
                for name in _versions(folder.path).keys() - before:  # half of it is worse than none
                    os.unlink(os.path.join(folder.path, name))
                log.warning("%s is not restored, and nothing of it is sent: %s", folder.what, error)
                self._unread[folder] = str(error), before
                self._mirrors.pop(folder, None)
                continue
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
        return (*(mirror.result() for mirror in mirrors), *self._unsent())

    def _unsent(self) -> Iterator[Saved]:
        """Yield what the script has left in folders that could not be synced: a failure.

        To send it would be to put it in the place of what could not be read.
        """
        for folder, (why, before) in self._unread.items():
            files = len(_versions(folder.path).items() - before.items())
            if files and folder.uploads:
                said = f"{folder.what}: {files} files are left in {folder.path} and not sent: {why}"
                yield Saved(what=folder.what, folder=folder.path, files=files, failure=said)


def _store(job: Job, environ: Mapping[str, str], folder: Folder) -> Store | None:
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


def _versions(folder: str) -> dict[str, tuple[int, int]]:
    """Return size and time of modification of each file below a folder, by its path there."""
    found = {}
    for top, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(top, name)
            status = os.lstat(path)
            found[os.path.relpath(path, folder)] = status.st_size, status.st_mtime_ns
    return found


def _make(folder: Folder) -> None:
    try:
        os.makedirs(folder.path, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder.what}: {folder.path} cannot be made: {error.strerror}") from error


def folders(job: Job) -> tuple[Folder, ...]:
    """Return the folders of ``job`` that are synced.

    Raises ConfigError where a setting wants a place of an unknown kind.
    """
    found = []
    if job.checkpoints:
        found.append(
            Folder(
                what="checkpoints",
                path=os.path.normpath(job.checkpoints.local_path),
                uri=job.checkpoints.uri,
                setting="CheckpointConfig.S3Uri",
                restores=True,
                deletes=True,
                required=True,
            )
        )
    if job.model_dir:
        found.append(
            Folder(
                what="model_dir",
                path=job.model_dir.local_path,
                uri=job.model_dir.uri,
                setting="hyperparameters: model_dir",
                restores=True,
                deletes=True,
                required=True,
                # All hosts are given the same one: others' files would take the place of these.
                uploads=job.cluster.is_first,
                optional=job.model_dir.optional,
            )
        )
    if job.tensorboard:
        found.append(
            Folder(
                what="TensorBoard logs",
                path=os.path.normpath(job.tensorboard.local_path),
                uri=job.tensorboard.uri,
                # where the SageMaker SDK looks for them (latest_job_tensorboard_artifacts_path)
                parts=(*([job.name] if job.name else []), "tensorboard-output"),
                setting="TensorBoardOutputConfig.S3OutputPath",
                grows=True,
            )
        )
    return (*found, *_intermediate(job))


def _intermediate(job: Job) -> tuple[Folder, ...]:
    """Return the folder of intermediate output, if it is ours to sync.

    Where the folder is there already, the platform syncs it (SageMaker training toolkit).
    """
    uri = job.reserved.get("sagemaker_s3_output")
    if not uri or os.path.lexists(job.paths.intermediate):
        return ()
    setting = "hyperparameters: sagemaker_s3_output"
    if not (location.is_s3(uri) or location.is_file(uri)):
        raise ConfigError(f"{setting}: {uri!r} is no s3:// or file:// URI")
    return (
        Folder(
            what="intermediate output",
            path=job.paths.intermediate,
            uri=str(uri),
            parts=(*([job.name] if job.name else []), "output", "intermediate"),
            setting=setting,
            # A file: URI means a folder that its author collects (SageMaker training toolkit).
            uploads=location.is_s3(uri),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Restored:
    """What was fetched."""

    names: tuple[str, ...] = ()
    size_bytes: int = 0
    kept: int = 0
    """How many files were here already."""


def _fetch(
    folder: Folder, job: Job, environ: Mapping[str, str], stopped: Callable[[], bool]
) -> _Restored:
    """Fetch the files of ``folder.place`` that are not in the folder.

    Nothing there is fine. Raises DataError where something cannot be fetched or does not fit.
    """
    if _nothing_there(folder):
        return _Restored()
    origin = open_origin(folder.place, environ, job.region, stall_seconds=job.options.stall_seconds)
    try:
        found = _named(folder, origin, stopped)
        wanted = {
            name: blob
            for name, blob in found.items()
            if not os.path.lexists(os.path.join(folder.path, name))
        }
        size_bytes = sum(blob.size_bytes for blob in wanted.values())
        _check_space(folder, size_bytes)
        origin.fetch(
            ((blob, os.path.join(folder.path, name)) for name, blob in wanted.items()),
            stopped=stopped,
        )
    finally:
        origin.close()
    return _Restored(names=tuple(wanted), size_bytes=size_bytes, kept=len(found) - len(wanted))


def _nothing_there(folder: Folder) -> bool:
    if not location.is_file(folder.place):
        return False
    from sm_runtime.storage.files import path_of

    return not os.path.isdir(path_of(folder.place))


def _named(folder: Folder, origin: Origin, stopped: Callable[[], bool]) -> dict[str, Blob]:
    """Return the objects of the place by the names that they get in the folder."""
    prefix = _prefix(folder)
    found = {}
    for blob in origin.list(folder.place, stopped=stopped):
        name = blob.key.removeprefix(prefix)
        if blob.key.endswith("/") or is_part(name):  # a folder's mark; a copy never completed
            continue
        if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise DataError(f"{folder.what}: {blob.uri} cannot be the name of a file: {name!r}")
        found[name] = blob
    return found


def _prefix(folder: Folder) -> str:
    if (prefix := folder.prefix) is not None:
        return prefix
    from sm_runtime.storage.files import path_of

    return path_of(folder.place).rstrip("/") + "/"


def _check_space(folder: Folder, size_bytes: int) -> None:
    status = os.statvfs(folder.path)
    free_bytes = status.f_bavail * status.f_frsize
    if size_bytes + _SPARE_BYTES > free_bytes and size_bytes:
        raise DataError(
            f"{folder.what}: {folder.place} has {size_bytes} bytes, {folder.path} has room for"
            f" {free_bytes}"
        )
