"""A job from start to end, top to bottom."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sm_runtime import artifacts, channels, environ, hardware, install, ownership, source
from sm_runtime.configure import configure, paths_of
from sm_runtime.errors import ConfigError, JobError
from sm_runtime.launch import distribution
from sm_runtime.model import Command, Ended, Hardware, Job
from sm_runtime.redact import Mask
from sm_runtime.report import Report
from sm_runtime.running import Limits
from sm_runtime.supervise import Supervisor

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from sm_runtime.failure import Failure
    from sm_runtime.installer import Run

log = logging.getLogger(__name__)

INJECTED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inject")
"""The folder of the ``sitecustomize`` that lets SIGUSR1 dump the stacks of Python processes."""


class StoppedError(JobError):
    """A stop was asked for before the script started."""

    status = 143


class Timeline:
    """How long each phase of the job took."""

    def __init__(self) -> None:
        self._phases: list[tuple[str, float]] = []
        self._started = time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done inside as the phase ``name``."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._phases.append((name, time.monotonic() - begun))

    def __str__(self) -> str:
        total = time.monotonic() - self._started
        phases = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in self._phases)
        return f"{phases}; total {_duration(total)}"


def train(variables: Mapping[str, str], supervisor: Supervisor, mask: Mask) -> int:
    """Run the job that ``variables`` and the files below the base folder describe.

    Returns the exit status: the script's own where it failed, and 0 only when the script succeeded
    and everything that belongs to the job was saved.
    """
    timeline = Timeline()
    report = Report(paths_of(variables))
    job: Job | None = None
    ended: Ended | None = None
    devices = Hardware(cpus=1)
    started = False
    try:
        with timeline.phase("config"):
            report.prepare()
            job = configure(variables, mask)
            artifacts.check(job)
            if problems := distribution.problems(job):
                raise ConfigError(problems)
        command, devices = _prepare(job, variables, supervisor, mask, timeline)
        _check_stop(supervisor)
        with timeline.phase("train"):
            started = True
            ended = supervisor.run(
                command,
                _limits(job),
                keep_stacks=lambda stacks: report.keep_stacks(stacks, mask),
            )
        host = job.cluster.current_host
        failed = None if ended.ok else _why(ended, command.cwd, host, mask)
    except Exception as error:
        if not started and (stopped := _stopped(supervisor)):
            log.info("%s", error)
            failed = _failure(stopped, job, mask)
        else:
            failed = _failure(error, job, mask)
    # The status is decided here: from now on it can only turn from success to failure.
    if failed:
        _report(failed, report, mask)
    elif ended and ended.stopped_by:
        log.info("the script ended well after it was stopped by %s", ended.stopped_by)
    if job and ended:
        try:
            _save(job, devices, timeline)
            if not failed:
                report.succeeded()
        except Exception as error:
            late = _failure(error, job, mask)
            if failed:
                log.error("%s", late.headline())
            else:
                failed = late
                _report(failed, report, mask)
    if job:
        ownership.hand_over(job)
    log.info("timeline: %s", timeline)
    log.info("Reporting training %s", "FAILURE" if failed else "SUCCESS")
    return failed.status if failed else 0


def _prepare(
    job: Job,
    variables: Mapping[str, str],
    supervisor: Supervisor,
    mask: Mask,
    timeline: Timeline,
) -> tuple[Command, Hardware]:
    """Do all that comes before the script's start, and return how to start it."""
    _check_stop(supervisor)
    with timeline.phase("download"):
        channels.prepare(job)
    with timeline.phase("code"):
        code = source.fetch(job, variables)
    _warn(code.warnings)
    _check_stop(supervisor)
    with timeline.phase("install"):
        installed = install.install(job, code, variables, sys.executable, _captured(supervisor))
    log.info("%s", installed.summary)
    with timeline.phase("launch"):
        if problems := environ.oversized(job):
            raise ConfigError(problems)
        arguments = environ.arguments(job)
        argv, extra = _entry(job, code, arguments)
        variables = {**variables, **installed.environ, **extra}
        devices = hardware.count({**variables, **job.environment})
        search_path = (*code.search_path, INJECTED)
        env, warnings = environ.process_environment(job, devices, variables, search_path)
    _warn(warnings)
    # Word by word: the quotes that a shell needs would hide a secret from the mask.
    log.info("Invoking user script in %s: %s", code.directory, shlex.join(map(mask, argv)))
    folder = code.directory if os.path.isdir(code.directory) else "/"
    return Command(argv=argv, cwd=folder, env=env), devices


def _entry(
    job: Job, code: source.Code, arguments: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the argv to start, and the variables by which a framework finds the script."""
    if job.training_module is None:
        return source.entry_command(job, code, arguments, sys.executable), {}
    hook = (sys.executable, "-m", "sm_runtime.framework", job.training_module)
    if job.program is None:
        return hook, {}
    argv = source.entry_command(job, code, arguments, sys.executable)
    return hook, {"SM_RUNTIME_COMMAND": json.dumps(argv)}


def _limits(job: Job) -> Limits:
    """Return what the script is allowed, in the supervisor's terms."""
    options = job.options
    return Limits(
        grace_seconds=job.stop_grace_seconds,
        max_seconds=job.max_runtime_seconds,
        leftover_seconds=options.leftover_grace_seconds,
        silence_seconds=options.silence_seconds,
        silence_fails=options.silence_fails,
        stop_signal=signal.Signals[f"SIG{options.stop_signal}"],
    )


def _save(job: Job, devices: Hardware, timeline: Timeline) -> None:
    """Save the artifacts and say what is where."""
    with timeline.phase("upload"):
        saved = artifacts.save(job, threads=devices.cpus)
    for line in artifacts.summary_lines(job, saved):
        log.info("%s", line)


def _why(ended: Ended, code: str, host: str, mask: Mask) -> Failure:
    """Return the failure that a script's end is."""
    from sm_runtime import failure  # only a job that fails pays for it

    try:
        return failure.of_script(ended, code, host, mask)
    except Exception as error:  # whatever the script wrote, its status stands
        log.error("the reason of the failure cannot be told", exc_info=error)
        message = f"the script ended with exit code {ended.status}"
        name = "ExecuteUserScriptError"
        return failure.Failure(
            name=name, message=message, phase="train", status=ended.status, host=host
        )


def _failure(error: Exception, job: Job | None, mask: Mask) -> Failure:
    """Return the failure that an exception of ours is; an unforeseen one is logged whole."""
    from sm_runtime import failure

    if not isinstance(error, JobError):
        log.error("the runtime itself failed", exc_info=error)
        error = JobError(f"{type(error).__name__}: {error}")
    return failure.of_error(error, job.cluster.current_host if job else None, mask)


def _report(failed: Failure, report: Report, mask: Mask) -> None:
    """Log why the job failed and leave it in the output folder."""
    for line in failed.last_lines if failed.phase == "config" else ():
        log.error("%s", line)
    log.error("%s", failed.headline())
    try:
        report.failed(failed, mask)
    except Exception as error:  # nothing may turn a failure into anything else
        log.error("the failure cannot be reported: %s", error)


def _captured(supervisor: Supervisor) -> Run:
    """Return how the installer is run: as a child of the supervisor, its output kept."""

    def run(argv: tuple[str, ...], env: Mapping[str, str], cwd: str) -> tuple[int, bytes]:
        command = Command(argv=argv, cwd=cwd, env=env, name="installer")
        ended = supervisor.capture(command, Limits(grace_seconds=5.0))
        return ended.status, ended.tail

    return run


def _stopped(supervisor: Supervisor) -> StoppedError | None:
    """Return the error that a stop before the script's start is, whatever else it led to."""
    reason = supervisor.stopped_by
    return StoppedError(f"stopped by {reason} before the script started") if reason else None


def _check_stop(supervisor: Supervisor) -> None:
    if error := _stopped(supervisor):
        raise error


def _warn(texts: tuple[str, ...]) -> None:
    for text in texts:
        log.warning("%s", text)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
