"""The files that describe a job: read as bytes, and written where no platform has written them.

What they say is the business of ``load``. Those of ``input/config`` that scripts open follow, in a
self-managed job, from the request, in the platform's shape; what is there wins, key by key. A
record beside them says which were written here and what was there before: the next job on the same
folder reads them as they were, else the first request would win over every later one. The record is
written before the files and read after them, so that no runtime that shares the folder takes
another's file for the user's.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
from collections.abc import Mapping
from contextlib import suppress

from sm_runtime.contract.reader import Document
from sm_runtime.job import location
from sm_runtime.job.dataclass import dataclass, field
from sm_runtime.job.errors import ConfigError, DataError
from sm_runtime.job.model import Job, Json, Paths

log = logging.getLogger(__name__)


MAX_BYTES = 16 << 20
"""The most that a file of configuration may hold."""
REFERENCE = "$file"
"""The only key of a value by reference, which is the path of a file that holds it."""
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_regular(path: str) -> bytes | None:
    """Return what the file ``path`` holds; None if there is no such file.

    A FIFO is refused, which would wait for a writer, and a device is not even opened, which may do
    something. Raises ConfigError where it is no regular file, too large, or cannot be read.
    """
    try:
        _check(path, os.stat(path).st_mode)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            _check(path, os.fstat(fd).st_mode)  # another may have taken its place
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES >> 20} MiB")
    return data


def _check(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise ConfigError(f"{path}: is {kind}, it must be a file")


_FILES = {
    "hyperparameters": "hyperparameters.json",
    "inputdataconfig": "inputdataconfig.json",
    "resourceconfig": "resourceconfig.json",
    "job": "job.json",
    "checkpointconfig": "checkpointconfig.json",
}
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION", "SAGEMAKER_REGION")
VARIABLE = "SM_RUNTIME_JOB"
"""Names the request, or holds it, instead of ``input/config/job.json``."""
INSIDE = "SM_RUNTIME_INSIDE"
"""Names the base folder whose job runs an entry point: for a runtime that this one starts."""


def collect(paths: Paths, environ: Mapping[str, str]) -> tuple[dict[str, Document], dict[str, str]]:
    """Return the documents that exist, and a sentence for each one that cannot be read.

    Their keys are ``hyperparameters``, ``inputdataconfig``, ``resourceconfig``, ``job`` and
    ``checkpointconfig``.

    What an earlier job has written is as it was before that: see ``Record``.
    """
    found: dict[str, Document] = {}
    problems: dict[str, str] = {}
    inside = is_inside(paths, environ)
    for key, name in _FILES.items():
        path = f"{paths.config}/{name}"
        try:
            if key == "job" and inside:
                continue
            if key == "job" and environ.get(VARIABLE, "").strip():
                found[key] = _named(environ[VARIABLE].strip(), environ)
                continue
            if key == "checkpointconfig" and "job" not in found:
                continue  # a platform's, of which only the script makes something
            data = read_regular(path)
            if data is not None:
                found[key] = Document(path, data)
        except ConfigError as error:
            found[key] = Document(path, None)
            problems[key] = str(error)
    record = Record() if inside else read_record(paths.config)
    for key in record.files.keys() & found.keys() - problems.keys():
        data = record.original(key, found[key].data)
        if data is None:
            del found[key]
        else:
            found[key] = Document(found[key].path, data)
    return found, problems


def is_inside(paths: Paths, environ: Mapping[str, str]) -> bool:
    """Return whether a runtime has started this one as the entry point of its request.

    To it that one is the platform: the files are there, the data is placed, and what is left will
    be saved. With the request it would start itself again, without an end.
    """
    return environ.get(INSIDE) == paths.base


def request_file(paths: Paths, environ: Mapping[str, str]) -> str | None:
    """Return the file in the folder of the configuration that holds the request, if one does."""
    return None if environ.get(VARIABLE, "").strip() else f"{paths.config}/job.json"


def _named(value: str, environ: Mapping[str, str]) -> Document:
    """Return the request that ``SM_RUNTIME_JOB`` names or holds."""
    if value.startswith("{"):
        return Document(VARIABLE, value.encode("utf-8", "surrogateescape"))
    if "{" in value:  # not shown: what is meant for JSON may hold secrets
        raise ConfigError(f"environment: {VARIABLE}: is neither a path, a URI nor a JSON object")
    if location.scheme(value) and not location.is_file(value):
        return Document(value, _fetch(value, environ))
    try:
        path = location.parse(value).path if location.is_file(value) else value
    except ValueError as error:
        raise ConfigError(f"environment: {VARIABLE}: {error}") from None
    data = read_regular(path)
    if data is None:
        raise ConfigError(f"environment: {VARIABLE}: the file {path!r} does not exist")
    return Document(path, data)


def _fetch(uri: str, environ: Mapping[str, str]) -> bytes:
    """Return the request from object storage, with the credentials that ``environ`` leads to."""
    if not location.is_s3(uri):
        raise ConfigError(
            f"environment: {VARIABLE}: {uri!r} must be a path, a file:// or s3:// URI, or a JSON"
            " object"
        )
    from sm_runtime.storage import s3

    region = next((environ[name] for name in _REGIONS if environ.get(name)), "")
    try:
        return s3.read(uri, environ, region, MAX_BYTES)
    except DataError as error:
        raise ConfigError(f"environment: {VARIABLE}: {error}") from error


RECORD = ".sm-runtime.json"
LOCK = ".sm-runtime.lock"
_NAMES = ("hyperparameters", "inputdataconfig", "resourceconfig", "checkpointconfig")
_PART = ".sm-runtime-"
_KEPT = 8
"""How many contents a file is known by: a job that was killed may have left the one before."""
_LOCK_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file that was written here."""

    digests: tuple[str, ...]
    """The SHA-256 of its contents, the last one last."""
    before: Json
    """The object that the user had there; None: no file."""


@dataclass(frozen=True, slots=True)
class Record:
    """Which files of a folder were written here, by their names without ``.json``."""

    files: Mapping[str, Written] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    """The folders that were made for them."""

    def original(self, name: str, data: bytes | None) -> bytes | None:
        """Return what the user has in a file that holds ``data`` now; None: no file."""
        if not self.wrote(name, data):
            return data
        before = self.files[name].before
        return None if before is None else _text(before).encode()

    def wrote(self, name: str, data: bytes | None) -> bool:
        """Whether ``data`` was written here; an empty file is what a crash has left of it."""
        entry = self.files.get(name)
        return (
            entry is not None and data is not None and (not data or _digest(data) in entry.digests)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What a file is to hold, and why."""

    target: Json
    """The object; None: there is to be no file."""
    before: Json
    ours: bool
    """Whether what it holds now was written here."""


def read_record(folder: str) -> Record:
    """Return the record of a folder; an empty one where there is none that can be read."""
    path = f"{folder}/{RECORD}"
    try:
        found = json.loads(read_regular(path) or b"{}")
        files = {
            name: Written(digests=tuple(entry["digests"]), before=entry["before"])
            for name, entry in found.get("files", {}).items()
        }
        return Record(files, tuple(map(str, found.get("folders", ()))))
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning("%s: is not followed: %s", path, error)
        return Record()


def left_in(folder: str) -> tuple[str, ...]:
    """Return the paths of all that was made in and for a folder of configuration."""
    record = read_record(folder)
    if not record.files:
        return ()
    names = (*(f"{name}.json" for name in record.files), RECORD, LOCK)
    paths = (*(f"{folder}/{name}" for name in names), *record.folders)
    return tuple(path for path in paths if os.path.lexists(path))


class ConfigFiles:
    """The files that a job writes; ``close`` says that this job uses the folder no more."""

    def __init__(self) -> None:
        self._lock = -1

    def write(self, job: Job, request: str | None) -> None:
        """Write what is missing, and take back what an earlier job has written.

        ``request`` is the file of the request, if it is one: hyperparameters are as private as it
        is. A folder that cannot be written is one line in the log.
        """
        folder = job.paths.config
        record = read_record(folder)
        if job.managed and not record.files:
            return
        changes: dict[str, _Change] = {}
        try:
            changes = _changes(job, record)
            if changes or record.files:
                made = tuple(dict.fromkeys((*record.folders, *_make(folder))))
                alone = self._take(f"{folder}/{LOCK}")
                record = Record(read_record(folder).files, made)
                changes = _changes(job, record)
                if alone:
                    _sweep(folder)
                else:
                    changes = _left_to_others(folder, changes)
                _apply(folder, changes, record, request)
                with suppress(OSError):
                    fcntl.flock(self._lock, fcntl.LOCK_SH)
        except (OSError, ConfigError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            names = ", ".join(f"{name}.json" for name in changes)
            log.warning("%s: cannot be written: %s; scripts miss: %s", folder, reason, names)

    def close(self) -> None:
        """Give the folder up."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take(self, path: str) -> bool:
        """Hold the folder, and return True; False where another runtime that runs uses it."""
        import threading

        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._lock = os.open(path, flags, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # It writes, for a moment, and then holds its share until its job is over.
            share = threading.Thread(
                target=fcntl.flock, args=(self._lock, fcntl.LOCK_SH), daemon=True
            )
            share.start()
            share.join(_LOCK_SECONDS)
            return False
        except OSError:  # read-only, another user's, or a file system without locks
            return True
        return True


def _wanted(job: Job) -> dict[str, Json]:
    """Return what a platform would have written for the job."""
    if job.managed:
        return {}
    found: dict[str, Json] = {
        "hyperparameters": job.hyperparameter_config,
        "inputdataconfig": job.input_data_config,
        "resourceconfig": job.resource_config,
    }
    if job.checkpoints:
        sync = job.checkpoints
        found["checkpointconfig"] = {"LocalPath": sync.local_path, "S3Uri": sync.uri}
    return found


def _changes(job: Job, record: Record) -> dict[str, _Change]:
    """Return the files that do not hold what they are to hold."""
    wanted = _wanted(job)
    found: dict[str, _Change] = {}
    for name in _NAMES:
        data = read_regular(f"{job.paths.config}/{name}.json")
        ours = record.wrote(name, data)
        if name not in wanted and not ours:
            continue
        original = record.original(name, data)
        before = None if original is None else json.loads(original)
        target = _merged(wanted[name], before) if name in wanted else before
        now = json.loads(data) if data else None
        if json.dumps(target, sort_keys=True) != json.dumps(now, sort_keys=True):
            found[name] = _Change(target=target, before=before, ours=ours)
    return found


def _merged(wanted: Json, before: Json) -> Json:
    """Return ``wanted`` with what the user had, key by key, also within each channel."""
    if not isinstance(before, dict):
        return wanted
    inner = {
        key: {**wanted[key], **value}
        for key, value in before.items()
        if isinstance(value, dict) and isinstance(wanted.get(key), dict)
    }
    return {**wanted, **before, **inner}


def _left_to_others(folder: str, changes: Mapping[str, _Change]) -> dict[str, _Change]:
    """Return what is not another's: who shares a folder would only take it from each other."""
    theirs = [f"{name}.json" for name, change in changes.items() if change.ours]
    if theirs:
        log.warning(
            "%s: another runtime uses this folder at the same time, and %s there is of its job or"
            " host: scripts of this one have to read SM_RESOURCE_CONFIG and the other variables"
            " instead, or each host needs a folder of its own",
            folder,
            " and ".join(theirs),
        )
    return {name: change for name, change in changes.items() if not change.ours}


def _apply(
    folder: str, changes: Mapping[str, _Change], record: Record, request: str | None
) -> None:
    if not changes:
        return
    files = dict(record.files)
    restored = [name for name, change in changes.items() if change.target == change.before]
    for name, change in changes.items():
        if name not in restored:
            old = files[name].digests if name in files else ()
            digests = (*old, _digest(_text(change.target).encode()))[-_KEPT:]
            files[name] = Written(digests=digests, before=change.before)
    _keep(folder, Record(files, record.folders))
    for name, change in changes.items():
        path = f"{folder}/{name}.json"
        if change.target is None:
            with suppress(FileNotFoundError):
                os.unlink(path)
        else:
            mode = _mode(request) if name == "hyperparameters" else 0o666
            _replace(path, _text(change.target), mode, keep=change.before is not None)
    if restored:
        kept = {name: entry for name, entry in files.items() if name not in restored}
        _keep(folder, Record(kept, record.folders))
    if names := [f"{name}.json" for name in changes if name not in restored]:
        log.info("wrote %s to %s", ", ".join(names), folder)


def _keep(folder: str, record: Record) -> None:
    """Write the record; what it holds of the user's files may be secret."""
    path = f"{folder}/{RECORD}"
    if not record.files:
        for unused in (path, f"{folder}/{LOCK}"):
            with suppress(FileNotFoundError):
                os.unlink(unused)
        return
    files = {
        name: {"digests": entry.digests, "before": entry.before}
        for name, entry in record.files.items()
    }
    _replace(path, _text({"files": files, "folders": record.folders}), 0o600, keep=False)


def _replace(path: str, text: str, mode: int, *, keep: bool) -> None:
    """Let ``path`` hold ``text``, all of it or what it held, readable for whom ``mode`` lets.

    ``keep`` leaves it its owner, and what others may do with it already.
    """
    part = f"{os.path.dirname(path)}/{_PART}{os.urandom(6).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(part, flags, 0o600 if keep else mode), "wb") as file:
        try:
            file.write(text.encode())
            if keep:
                old = os.stat(path)
                with suppress(PermissionError):
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) & mode)
            file.flush()
            os.rename(part, path)
        except OSError:
            with suppress(OSError):
                os.unlink(part)
            raise


def _sweep(folder: str) -> None:
    """Remove what a killed job has left half written."""
    for name in os.listdir(folder):
        if name.startswith(_PART):
            with suppress(OSError):
                os.unlink(f"{folder}/{name}")


def _mode(request: str | None) -> int:
    """Return the mode of a file that holds what the request holds."""
    try:
        return stat.S_IMODE(os.stat(request).st_mode) & 0o666 if request else 0o600
    except OSError:
        return 0o600


def _make(folder: str) -> tuple[str, ...]:
    """Make a folder, and return those that had to be made."""
    missing = []
    above = folder
    while not os.path.lexists(above):
        missing.append(above)
        above = os.path.dirname(above)
    os.makedirs(folder, exist_ok=True)
    return tuple(missing)


def _digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _text(value: Json) -> str:
    """Return ``value`` as it is written: the order of keys is that of the request."""
    return json.dumps(value)


def reference(value: Json) -> str | None:
    """Return the path of a reference; None for any other value."""
    if isinstance(value, str) and REFERENCE in value:
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, Mapping) or set(value) != {REFERENCE}:
        return None
    path = value[REFERENCE]
    return path if isinstance(path, str) else None
