"""How a job went: why it failed, if it did, how long its phases took, and the files that say so.

``Report`` owns the success and failure files and must work when all else failed. What is known of a
job at its end is in ``output/metrics/job.json``.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sm_runtime import __version__
from sm_runtime.contract import environment
from sm_runtime.job.dataclass import fields
from sm_runtime.job.errors import ArtifactError, ConfigError, JobError, LaunchError
from sm_runtime.job.model import Paths
from sm_runtime.job.secrets import Mask

if TYPE_CHECKING:
    from sm_runtime.job.failure import Failure
    from sm_runtime.job.model import Channel, Job, Json, Options

log = logging.getLogger(__name__)


class Outcome:
    """How a job ends: with success, until a failure is added."""

    def __init__(self, report: Report, mask: Mask) -> None:
        self._report, self._mask = report, mask
        self.failure: Failure | None = None
        self.host: str | None = None
        """The host that failures of ours name."""

    @property
    def status(self) -> int:
        """The exit status of the job."""
        return self.failure.status if self.failure else 0

    def add(self, late: Failure | None) -> None:
        """Take a failure: the first is the job's, and is left in the output folder."""
        if late is None or late == self.failure:
            return
        if self.failure is None:
            self.failure = late
            for line in late.last_lines if late.phase == "config" else ():
                log.error("%s", line)
        log.error("%s", late.headline())
        if self.failure is not late:
            return
        try:
            self._report.failed(late, self._mask)
        except Exception as error:  # nothing may turn a failure into anything else
            log.error("the failure cannot be reported: %s", error)

    def guard(
        self,
        action: Callable[[], Failure | None],
        instead: Callable[[], JobError | None] = lambda: None,
    ) -> Failure | None:
        """Do something; return why that failed, whatever it is.

        What it raises is logged only where ``instead`` returns what has led to it.
        """
        try:
            return action()
        except Exception as error:
            if cause := instead():
                log.info("%s", error)
                error = cause
            return self._failure(error)

    def _failure(self, error: Exception) -> Failure:
        """Return the failure that an exception of ours is; an unforeseen one is logged whole."""
        from sm_runtime.job import failure  # only a job that fails pays for it
        from sm_runtime.processes import shortage

        if reason := shortage.reason(error):
            error = LaunchError(reason)
        if not isinstance(error, JobError):
            log.error("the runtime itself failed", exc_info=error)
            error = JobError(f"{type(error).__name__}: {error}")
        return failure.of_error(error, self.host, self._mask)


RESERVED_BYTES = 2**16
"""Disk space that is kept free from the start, so that a full disk can still hold the reason."""


_NO_FALLOCATE = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a seccomp profile that forbids fallocate, or a file system without it, answers."""


def _reserve(path: str) -> OSError | None:
    """Make a file with its blocks; return why fallocate did not, where it is not available."""
    fd = _opener(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.posix_fallocate(fd, 0, RESERVED_BYTES)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise
        os.write(fd, bytes(RESERVED_BYTES))
        return error
    finally:
        os.close(fd)
    return None


def _opener(path: str, flags: int) -> int:
    """Open a file without ever waiting: the script may have put a FIFO there."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


class Report:
    """The files by which a job says how it ended.

    For ``failure`` and ``failure.json`` there are files of 64 KiB from the start; when the job
    fails, they are overwritten in place and renamed, which needs no free block and no free inode.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._document = paths.under("output", "data", "failure.json")
        # Both outside output/data, which is uploaded and may be so at any time.
        self._reserves = {
            paths.failure: paths.under("output", ".failure-reserve"),
            self._document: paths.under("output", ".failure.json-reserve"),
        }

    def prepare(self) -> None:
        """Make the folders, remove what an earlier job left, and reserve space.

        Raises ConfigError where nothing could ever be written; a disk that is full for now is only
        a warning.
        """
        try:
            for folder in (self._paths.output_data, self._paths.model):
                os.makedirs(folder, exist_ok=True)
            for stale in (self._paths.failure, self._paths.success, self._document):
                with suppress(FileNotFoundError):
                    os.unlink(stale)
            for stale in self._paths.measured:
                with suppress(OSError):  # what is measured fails no job
                    os.unlink(stale)
            refused, _ = map(_reserve, self._reserves.values())
            if refused:
                log.info(
                    "without fallocate (%s), space for a failure is reserved by writing",
                    refused.strerror,
                )
        except OSError as error:
            path = error.filename or self._paths.output
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                log.warning("cannot reserve space in %s: %s", path, error.strerror)
                return
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    def failed(self, failure: Failure, mask: Callable[[str], str]) -> None:
        """Write ``output/failure``, unless the script wrote its own, and ``failure.json``."""
        failure = failure.masked(mask)
        if os.path.exists(self._paths.failure):
            log.info("%s is the script's own and is kept", self._paths.failure)
        else:
            self._attempt(self._paths.failure, failure.text())
        self._attempt(self._document, failure.document())
        self._drop_reserves()

    def succeeded(self) -> None:
        """Write ``output/success``; raises ArtifactError where that cannot be done."""
        self._drop_reserves()
        try:
            os.makedirs(self._paths.output, exist_ok=True)  # the script may have removed it
            with open(self._paths.success, "wb", opener=_opener):
                pass
        except OSError as error:
            message = f"{self._paths.success}: cannot be written: {error.strerror}"
            raise ArtifactError(message) from None

    def keep_stacks(self, stacks: bytes, mask: Callable[[str], str]) -> None:
        """Append the stacks of the user's processes to ``output/data/stacks.txt``."""

        path = self._paths.under("output", "data", "stacks.txt")
        try:
            with open(path, "a", errors="backslashreplace", opener=_opener) as file:
                file.write(mask(stacks.decode("utf-8", "backslashreplace")))
        except OSError as error:
            _complain(path, error)

    def _attempt(self, path: str, text: str) -> None:
        reserve = self._reserves[path]
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                _write_over(reserve, text)
                os.rename(reserve, path)
            except OSError as error:
                if error.errno != errno.EXDEV:  # output/data may be a mount of its own
                    raise
                _write_over(path + ".part", text)
                os.rename(path + ".part", path)
        except OSError as error:
            _complain(path, error)
            with suppress(OSError):
                os.unlink(path + ".part")

    def _drop_reserves(self) -> None:
        for reserve in self._reserves.values():
            with suppress(OSError):
                os.unlink(reserve)


def _write_over(path: str, text: str) -> None:
    """Write a file in the place that it has, if it is there."""
    fd = _opener(path, os.O_WRONLY | os.O_CREAT)
    try:
        data = text.encode("utf-8", "backslashreplace")
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def _complain(path: str, error: OSError) -> None:
    log.error("cannot write %s: %s", error.filename or path, error.strerror)


JOB_FILE = "job.json"


def describe(
    job: Job,
    *,
    kind: str,
    hosts: tuple[str, ...],
    processes_per_host: int,
    timeline: Timeline,
    failure: Failure | None,
    saved: list[str],
    mask: Callable[[str], str],
) -> None:
    """Write the file, secrets masked; raises OSError where that cannot be done."""
    cluster = job.cluster
    document = {
        "runtime": __version__,
        "python": sys.version.partition(" ")[0],
        "name": job.name,
        "managed": job.managed,
        "status": "failure" if failure else "success",
        "exit": failure.status if failure else 0,
        "started": round(timeline.started_at, 3),
        "seconds": round(timeline.seconds(), 3),
        "phases": [
            {"name": name, "begin": round(begun, 4), "end": round(ended, 4)}
            for name, begun, ended in timeline.spans
        ],
        "failure": failure.as_dict() if failure else None,
        "kind": kind,
        "host": cluster.current_host,
        "hosts": list(hosts),
        "processes_per_host": processes_per_host,
        "program": job.program,
        "arguments": list(environment.arguments(job)),
        "hyperparameters": dict(job.hyperparameters),
        "channels": [_channel(channel) for channel in job.channels],
        "output": job.output.uri if job.output else None,
        "options": _set_options(job.options),
        "saved": saved,
    }
    path = job.paths.under("output", "metrics", JOB_FILE)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".part", "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(_masked(document, mask), default=str))  # indented it takes ten times
    os.replace(path + ".part", path)


def _channel(channel: Channel) -> dict[str, Json]:
    source = channel.source
    return {
        "name": channel.name,
        "mode": channel.mode,
        "from": source.uri if source is not None else None,
    }


def _set_options(options: Options) -> dict[str, Json]:
    """Return the options that are not as they are by themselves."""
    pairs = ((each.name, getattr(options, each.name), each.default) for each in fields(options))
    return {name: value for name, value, default in pairs if value != default}


def _masked(value: Any, mask: Callable[[str], str]) -> Any:
    """Return a JSON value with its texts and numbers masked."""
    if isinstance(value, Mapping):
        return {str(key): _masked(item, mask) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(item, mask) for item in value]
    if value is None or isinstance(value, bool):
        return value
    text = mask(str(value))
    return value if text == str(value) else text


class Timeline:
    """The phases of a job, in the order of their first ends; some overlap."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, float, float]] = []
        """Each phase, or part of one: its name, and from when to when, in seconds."""
        self.started_at = time.time()
        """When the job began, in seconds since 1970."""
        self._started = time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done inside as the phase ``name``, or as more of it."""
        begun = self.seconds()
        try:
            yield
        finally:
            self.spans.append((name, begun, self.seconds()))

    def seconds(self) -> float:
        """Return how long it is since the start."""
        return time.monotonic() - self._started

    def __str__(self) -> str:
        phases: dict[str, float] = {}
        for name, begun, ended in list(self.spans):
            phases[name] = phases.get(name, 0.0) + ended - begun
        shown = ", ".join(f"{name} {duration(seconds)}" for name, seconds in phases.items())
        return f"{shown}; total {duration(self.seconds())}"


def duration(seconds: float) -> str:
    """Return how long something took, as one reads it."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
