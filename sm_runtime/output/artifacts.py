"""Saves the model and the output data of a job, and says what is where.

Where the request has an ``OutputDataConfig``, artifacts go where the platform would put them (AWS
guide, "SageMaker AI folders for training inputs and outputs"): ``<uri>/<job>/output/model.tar.gz``
and ``output.tar.gz``; with compression ``NONE`` the files themselves, below ``model/`` and
``data/``. A host that does not lead appends ``-<host>`` to these names. Without one the platform
collects the folders, and all that is done here is to count. The folders are never changed. In the
end they may be given to the one who mounted them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

from sm_runtime.contract import config_files
from sm_runtime.job import location
from sm_runtime.job.dataclass import dataclass, replace
from sm_runtime.job.errors import ArtifactError
from sm_runtime.job.model import Job
from sm_runtime.job.text import human_size
from sm_runtime.output import tar

if TYPE_CHECKING:
    from sm_runtime.storage import Store

log = logging.getLogger(__name__)

_MAX_WARNINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What became of one folder."""

    what: str
    """``model``, ``output data``, ``checkpoints``, ..."""
    folder: str
    files: int = 0
    size_bytes: int = 0
    destination: str | None = None
    """The URI where it is now; None: there was nothing to save, or it is not ours to save."""
    stored_bytes: int = 0
    """How many bytes it takes there."""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    failure: str | None = None
    """Why it is not all at ``destination``, where that fails the job."""


class Warnings:
    """Keeps the first sentences and counts the rest."""

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._count = 0

    def __call__(self, sentence: str) -> None:
        """Take a sentence."""
        self._count += 1
        if self._count <= _MAX_WARNINGS:
            self._sentences.append(sentence)

    def all(self) -> tuple[str, ...]:
        """Return the sentences, and one about those that are not among them."""
        more = self._count - len(self._sentences)
        return (*self._sentences, *([f"... and {more} more like these"] if more else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A folder that is saved, and its names at the destination."""

    what: str
    folder: str
    archive: str
    plain: str


def check(job: Job, environ: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raise ConfigError if the job's destination can be seen to be unusable; nothing is written.

    ``environ`` says how storage is reached, as for ``storage.open_store``; no request is sent.
    """
    _store(job, environ)


def save(
    job: Job,
    *,
    threads: int | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
    rest: Callable[[], Iterable[Saved]] = tuple,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[Saved, ...]:
    """Save the artifacts with ``threads`` (default: one for each CPU that may be used).

    ``rest`` is asked at the end what became of the folders that are synced by others: a part of
    what is returned, its failures a part of what fails. When ``is_over`` says so there is no time
    left, and what is not in the object store by then has failed. Warnings are logged here. Raises
    ArtifactError, when all has been tried, if anything could not be saved, or if there is no model
    where ``require_model`` wants one; ConfigError as ``check``.
    """
    threads = threads or len(os.sched_getaffinity(0))
    store: Store | None = None
    saved: list[Saved] = []
    failures: list[str] = []
    try:
        store = _store(job, environ, is_over)
        for part in _parts(job):
            try:
                saved.append(_save(job, store, part, threads))
            except ArtifactError as error:
                failures.append(str(error))
    finally:
        if store:
            store.close()
        synced = tuple(rest())
    if all(one.what != "checkpoints" for one in synced):
        saved.append(_checkpoints(job))
    saved += synced
    failures += (one.failure for one in synced if one.failure)
    for one in saved:
        for warning in one.warnings:
            log.warning("%s", warning)
    if any(one.what == "model" and not one.files for one in saved) and _wants_model(job):
        failures.append(f"require_model is set and {job.paths.model} is empty")
    if failures:
        for line in summary_lines(job, saved):
            log.info("%s", line)
        raise ArtifactError("; ".join(failures))
    return tuple(saved)


def save_report(
    job: Job, path: str, environ: Mapping[str, str], is_over: Callable[[], bool]
) -> None:
    """Save the job's report beside its model; raises OSError and JobError where that fails."""
    store = _store(job, environ, is_over)
    assert store is not None
    host = "" if job.cluster.is_first else f"-{job.cluster.current_host}"
    with closing(store), open(path, "rb") as file:
        store.put(f"report{host}.html", file.fileno(), os.fstat(file.fileno()).st_size)


def _parts(job: Job) -> tuple[_Part, ...]:
    cluster, paths = job.cluster, job.paths
    host = "" if cluster.is_first else f"-{cluster.current_host}"
    model = _Part(
        what="model", folder=paths.model, archive=f"model{host}.tar.gz", plain=f"model{host}"
    )
    data = _Part(
        what="output data",
        folder=paths.output_data,
        archive=f"output{host}.tar.gz",
        plain=f"data{host}",
    )
    return model, data


def _store(
    job: Job, environ: Mapping[str, str], is_over: Callable[[], bool] = lambda: False
) -> Store | None:
    if job.output is None:
        return None
    # a request without a name is refused earlier; a model that exists already is not lost for that
    name = job.name or time.strftime("sm-runtime-%Y-%m-%d-%H-%M-%S", time.gmtime())
    folders = tuple(part.folder for part in _parts(job))
    from sm_runtime.storage import open_store

    return open_store(
        job.output.uri,
        name,
        "output",
        outside=folders,
        environ=environ,
        region=job.region,
        kms_key=job.output.kms_key,
        stall_seconds=job.options.stall_seconds,
        stopped=is_over,
    )


def _save(job: Job, store: Store | None, part: _Part, threads: int) -> Saved:
    warnings = Warnings()
    if part.what == "model":
        _warn_of_versions(part.folder, warnings)
    if job.output is None or store is None:
        counted = _count_in_place(part, warnings)
        if not counted.files:
            _warn_of_nothing(job, part, warnings)
        return _saved(part, counted, warnings)
    plain = job.output.compression == "NONE"
    key = part.plain if plain else part.archive
    destination = store.locate(key)
    begun = time.monotonic()
    try:
        if not _has_files(part.folder):
            counted = tar.count(part.folder, warnings)
            _warn_of_nothing(job, part, warnings)
            with suppress(OSError):  # a role may not be allowed to look, and nothing is lost
                if store.exists(key):
                    warnings(f"{destination} is of an earlier attempt: {part.folder} is empty now")
            return _saved(part, counted, warnings)
        if plain:
            counted = _save_files(part, store, key, warnings)
            stored_bytes = counted.size_bytes
        else:
            counted, stored_bytes = _save_archive(part, store, key, warnings, threads)
    except (OSError, MemoryError, RuntimeError) as error:  # RuntimeError: no more threads
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ArtifactError(
            f"the {part.what} cannot be saved to {destination}: {reason}"
        ) from error
    except ArtifactError as error:
        raise ArtifactError(f"the {part.what} is not saved: {error}") from error
    seconds = time.monotonic() - begun
    saved = _saved(part, counted, warnings)
    return replace(saved, destination=destination, stored_bytes=stored_bytes, seconds=seconds)


def _warn_of_versions(folder: str, warnings: Warnings) -> None:
    """Warn of a SavedModel that hosting will not find: it looks for folders that are numbers.

    Source: TensorFlow Serving, and what SageMaker's TensorFlow training toolkit warns of.
    """
    for path, _, names in os.walk(folder):
        is_model = "saved_model.pb" in names or "saved_model.pbtxt" in names
        if is_model and not os.path.basename(path).isdecimal():
            warnings(
                f"{path} is a SavedModel, but not in a folder whose name is a number, as hosting"
                f" wants it: {os.path.join(folder, '1')}"
            )


def _save_archive(
    part: _Part, store: Store, key: str, warnings: Warnings, threads: int
) -> tuple[tar.Count, int]:
    from sm_runtime.output.tar import GzipWriter

    found = tar.count(part.folder, lambda _: None)
    # What cannot be compressed grows, and each file has a header or two.
    most_bytes = found.size_bytes + found.size_bytes // 64 + found.files * 4096
    with (
        store.stream(key, most_bytes) as sink,
        GzipWriter(sink, threads=threads) as writer,
    ):
        counted = tar.write_tar(part.folder, writer, warnings)
        writer.close()
    return counted, writer.written_bytes


def _save_files(part: _Part, store: Store, key: str, warnings: Warnings) -> tar.Count:
    """Send the files themselves; a store that has to wait sends several at once."""
    counted = tar.Count()
    with store.tree(key) as tree:
        for entry in tar.walk(part.folder, warnings):
            if entry.is_folder:
                continue  # an object store knows no folders
            source, size_bytes = tar.open_file(entry.path)
            try:
                copied = tree.add(entry.name, source, size_bytes, executable=entry.executable)
            finally:
                os.close(source)
            if copied != size_bytes:
                raise tar.shrank(entry.path, size_bytes, copied)
            counted = counted.plus(size_bytes)
    return counted


def _count_in_place(part: _Part, warnings: Warnings) -> tar.Count:
    """Count what is left for others to save; that a part cannot be read is no failure of ours."""
    counted, links = tar.Count(), 0
    try:
        for entry in tar.walk(part.folder, warnings):
            links += entry.is_link
            if not entry.is_folder:
                counted = counted.plus(entry.size_bytes)
    except ArtifactError as error:
        warnings(f"the files of {part.folder} cannot all be counted: {error}")
    if links:
        warnings(
            f"{part.folder} has {links} symbolic link{'s' * (links > 1)}:"
            " what collects or serves it may not follow them"
        )
    return counted


def _checkpoints(job: Job) -> Saved:
    folder, warnings = _checkpoint_folder(job), Warnings()
    counted = tar.Count()
    try:
        counted = tar.count(folder, lambda _: None)
    except ArtifactError as error:
        warnings(f"the checkpoints cannot be counted: {error}")
    return Saved(
        what="checkpoints",
        folder=folder,
        files=counted.files,
        size_bytes=counted.size_bytes,
        warnings=warnings.all(),
    )


def _checkpoint_folder(job: Job) -> str:
    return job.checkpoints.local_path if job.checkpoints else job.paths.checkpoints


def _saved(part: _Part, counted: tar.Count, warnings: Warnings) -> Saved:
    return Saved(
        what=part.what,
        folder=part.folder,
        files=counted.files,
        size_bytes=counted.size_bytes,
        warnings=warnings.all(),
    )


def _has_files(folder: str) -> bool:
    return any(not entry.is_folder for entry in tar.walk(folder, lambda _: None))


def _wants_model(job: Job) -> bool:
    """Return whether an empty model folder fails the job: only the leader's counts."""
    return job.options.require_model and job.cluster.is_first


def _warn_of_nothing(job: Job, part: _Part, warnings: Warnings) -> None:
    """Say that there is no model; hosts that do not lead, and output data, need not have any."""
    if part.what != "model" or not job.cluster.is_first:
        return
    given = job.hyperparameters.get("model_dir")
    elsewhere = job.model_dir.uri if job.model_dir else given
    if location.is_s3(elsewhere):
        hint = f"hyperparameter model_dir is {elsewhere}: the script may have written it there"
    else:
        hint = "the script writes to SM_MODEL_DIR what is to be kept"
    warnings(f"{part.folder} is empty, so no model is saved; {hint}")


def summary_lines(job: Job, saved: Iterable[Saved]) -> list[str]:
    """Return a line for each folder that says how much is in it and where it is saved."""
    lines = []
    for one in saved:
        if one.files == 0:
            if one.what in ("model", "output data"):
                lines.append(f"{one.what}: no files in {one.folder}")
            continue
        held = f"{one.what}: {amount(one.files, one.size_bytes)}"
        if one.destination:
            cost = f"{human_size(one.stored_bytes)}, {one.seconds:.1f} s"
            lines.append(f"{held} -> {one.destination} ({cost})")
        elif one.what == "checkpoints" or not job.managed:
            lines.append(f"{held} in {one.folder}")
        else:
            lines.append(f"{held} in {one.folder}, for the platform to save")
    return lines


def amount(files: int, size_bytes: int) -> str:
    """Return ``3 files, 1.2 MiB``."""
    return f"{files} file{'s' * (files != 1)}, {human_size(size_bytes)}"


def hand_over(job: Job) -> None:
    """Give all that the job left to ``options.chown``: folders and local artifacts."""
    owner = job.options.chown
    if owner is None:
        return
    tops = [job.paths.model, job.paths.output, _checkpoint_folder(job)]
    if job.output and location.is_file(job.output.uri):
        from sm_runtime.storage.files import path_of

        destination = path_of(job.output.uri)
        # Below the base folder the destination is ours to give as well; elsewhere only the job's.
        ours = destination.startswith(f"{job.paths.base}/")
        tops.append(destination if ours else os.path.join(destination, job.name or ""))
    failed = ""
    written = [*config_files.left_in(job.paths.config)]
    if os.path.exists(job.paths.shell_variables):
        written.append(job.paths.shell_variables)
    for path in (*_below(tops), *written):
        try:
            os.chown(path, *owner, follow_symlinks=False)
        except OSError as error:
            failed = failed or f"{path}: {error.strerror}"
    if failed:
        log.warning("SM_RUNTIME_CHOWN: not everything could be given away: %s", failed)


def _below(tops: Iterable[str]) -> Iterator[str]:
    for top in tops:
        for folder, _, files in os.walk(top):
            yield folder
            yield from (os.path.join(folder, name) for name in files)
