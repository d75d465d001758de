"""A job from start to end, top to bottom."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sm_runtime import channels, programs, sync
from sm_runtime.code import fetch
from sm_runtime.configure import configure, paths_of
from sm_runtime.contract import config_files, environment
from sm_runtime.contract.config_files import ConfigFiles
from sm_runtime.inputs import Inputs
from sm_runtime.install import install
from sm_runtime.job.errors import ConfigError, JobError, LaunchError
from sm_runtime.job.model import Command, Ended, Hardware, Job
from sm_runtime.job.secrets import Mask
from sm_runtime.launch import distribution
from sm_runtime.output import artifacts, ownership
from sm_runtime.output.report import Report
from sm_runtime.output.saved import summary_lines
from sm_runtime.processes import hardware
from sm_runtime.processes.process import StopPolicy
from sm_runtime.processes.supervisor import Supervisor
from sm_runtime.timeline import Timeline

if TYPE_CHECKING:
    from sm_runtime.cluster.session import Session
    from sm_runtime.install.pip import Run
    from sm_runtime.job.failure import Failure

log = logging.getLogger(__name__)

INJECTED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inject")
"""The folder of the ``sitecustomize`` that lets SIGUSR1 dump the stacks of Python processes."""


class StoppedError(JobError):
    """A stop was asked for before the script started."""

    status = 143


def train(variables: Mapping[str, str], supervisor: Supervisor, mask: Mask) -> int:
    """Run the job that ``variables`` and the files below the base folder describe.

    Returns the exit status: the script's own where it failed, and 0 only when the script succeeded
    and everything that belongs to the job was saved.
    """
    return _Attempt(variables, supervisor, mask).run()


class _Attempt:
    """One attempt at a job: what its phases leave for each other."""

    def __init__(self, variables: Mapping[str, str], supervisor: Supervisor, mask: Mask) -> None:
        self.variables, self.supervisor, self.mask = variables, supervisor, mask
        self.timeline = Timeline()
        self.report = Report(paths_of(variables))
        self.job: Job | None = None
        self.devices = Hardware(cpus=1)
        self.session: Session | None = None
        self.inputs: Inputs | None = None
        self.config_files = ConfigFiles()
        self.started = False
        """Whether the script has begun, so that there may be something to save."""

    def run(self) -> int:
        """Do all of it; return the exit status."""
        failed = self._guarded(self._until_the_end)
        # The status is decided here: from now on it can only turn from success to failure.
        if failed and self.session:
            failed = self.session.report_failure(failed)
        if failed:
            self._tell(failed)
        if self.started:
            failed = self._also(failed, self._guarded(self._save))
        if self.session:
            failed = self._also(failed, self.session.leave(failed))
            self.session.close()
        if not failed and self.job:
            failed = self._also(None, self._guarded(self.report.succeeded))
        if self.job:
            ownership.hand_over(self.job)
        self.config_files.close()
        log.info("timeline: %s", self.timeline)
        log.info("Reporting training %s", "FAILURE" if failed else "SUCCESS")
        self.supervisor.drain_output(self.inputs.deadline() if self.inputs else 0.0)
        return failed.status if failed else 0

    def _until_the_end(self) -> Failure | None:
        """Do what comes before the script's end; return why that is a failure, if it is."""
        with self.timeline.phase("config"):
            self.report.prepare()
            job = self.job = configure(self.variables, self.mask)
            plan = distribution.plan(job, self.devices)
        if plan.kind != distribution.PLAIN:
            job = self.job = self._join(job)
        with self.timeline.phase("config"):
            artifacts.check(job, self.variables)
            channels.check(job)
            sync.check(job, self.variables)
            _warn(channels.absent(job))
            if not config_files.is_inside(job.paths, self.variables):
                self.config_files.write(job, config_files.request_file(job.paths, self.variables))
        self._check_stop()
        inputs = Inputs(job, self.variables, self.supervisor, self.timeline, self._fail)
        with inputs:
            self.inputs = inputs
            inputs.fetch()
            inputs.wait_for_code()
            with self.timeline.phase("code"):
                code = fetch.fetch(job, self.variables, self._is_stopped)
            _warn(code.warnings)
            self._check_stop()
            if install.needs_channels(job, code, self.variables):
                inputs.wait()
            with self.timeline.phase("install"):
                run = _captured(self.supervisor)
                installed = install.install(
                    job, code, self.variables, sys.executable, run, self._is_stopped
                )
            log.info("%s", installed.summary)
            inputs.wait()
            self._check_stop()
            if self.session:
                with self.timeline.phase("wait"):
                    self.session.wait_for_peers()
            with self.timeline.phase("launch"):
                command = self._command(job, code, installed.environ)
                inputs.open(self.session.plan.processes_per_host if self.session else 1)
            with self.timeline.phase("train"):
                return self._train(job, command)

    def _join(self, job: Job) -> Job:
        """Begin to look for the other hosts; return the job with what is found out on the way."""
        from sm_runtime.cluster.session import Session

        self.devices = hardware.count({**self.variables, **job.environment})
        plan = distribution.plan(job, self.devices)
        self.session = Session(job, plan, self.variables, self.supervisor, self.mask)
        self.session.check()
        return self.session.job

    def _command(self, job: Job, code: fetch.Code, installed: Mapping[str, str]) -> Command:
        """Return how the script is started."""
        if problems := environment.oversized(job):
            raise ConfigError(problems)
        argv, extra = self._entry(job, code)
        variables = {**self.variables, **installed, **extra}
        variables |= environment.tensorflow_variables(job, variables)
        self.devices = hardware.count({**variables, **job.environment})
        search_path = (*code.search_path, INJECTED)
        env, warnings = environment.process_environment(job, self.devices, variables, search_path)
        _warn(warnings)
        # Word by word: the quotes that a shell needs would hide a secret from the mask.
        shown = shlex.join(map(self.mask, argv))
        folder = _working_folder(job, code)
        log.info("Invoking user script in %s: %s", folder, shown)
        return Command(argv=argv, cwd=folder, env=env)

    def _entry(self, job: Job, code: fetch.Code) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return the argv to start, and the variables by which a framework finds the script."""
        hook = programs.start(sys.executable, job.hook) if job.hook else ()
        if hook and job.program is None:
            return hook, {}
        arguments = environment.arguments(job)
        entry = fetch.entry_command(job, code, arguments, sys.executable, self.variables)
        if hook:
            return hook, {"SM_RUNTIME_COMMAND": json.dumps(entry.argv)}
        if job.entry_point:
            return entry.argv, {config_files.INSIDE: job.paths.base}
        if self.session:
            return self.session.roles.launcher(entry, self.devices), {}
        return entry.argv, {}

    def _train(self, job: Job, command: Command) -> Failure | None:
        """Run the script; return why it failed, if it did."""

        def keep_stacks(stacks: bytes) -> None:
            self.report.keep_stacks(stacks, self.mask)

        self._check_stop()
        if self.session:
            failed = self.session.run(command, _limits(job), keep_stacks)
            self.started = self.session.started
            return failed
        self.started = True
        ended = self.supervisor.run(command, _limits(job), keep_stacks=keep_stacks)
        if not ended.ok:
            return _why(ended, command.cwd, job.cluster.current_host, self.mask)
        if ended.stopped_by:
            log.info("the script ended well after it was stopped by %s", ended.stopped_by)
        return None

    def _save(self) -> Failure | None:
        """Save what the script has left, and say what is where."""
        assert self.job and self.inputs
        with self.timeline.phase("upload"):
            # Side by side: after a stop there is little time for both.
            self.inputs.end()
            saved = artifacts.save(
                self.job,
                threads=self.devices.cpus,
                environ=self.variables,
                rest=self.inputs.finish,
                is_over=self.inputs.is_over,
            )
        for line in summary_lines(self.job, saved):
            log.info("%s", line)
        return None

    def _guarded(self, action: Callable[[], Failure | None]) -> Failure | None:
        """Do something; return why that failed, whatever it is."""
        try:
            return action()
        except Exception as error:
            if not self.started and (stopped := _stopped(self.supervisor)):
                log.info("%s", error)
                error = stopped
            return _failure(error, self.job, self.mask)

    def _also(self, failed: Failure | None, late: Failure | None) -> Failure | None:
        """Return the reason of the failure, where something more may have failed."""
        if late is None or failed == late:
            return failed
        if failed:
            log.error("%s", late.headline())
            return failed
        self._tell(late)
        return late

    def _tell(self, failed: Failure) -> None:
        """Log why the job failed and leave it in the output folder."""
        for line in failed.last_lines if failed.phase == "config" else ():
            log.error("%s", line)
        log.error("%s", failed.headline())
        try:
            self.report.failed(failed, self.mask)
        except Exception as error:  # nothing may turn a failure into anything else
            log.error("the failure cannot be reported: %s", error)

    def _fail(self, reason: str) -> None:
        """Have the script stop, from any thread: its data is not all that it takes it for."""
        if self.session:
            self.session.fail(reason)
        else:
            self.supervisor.ask(reason)

    def _is_stopped(self) -> bool:
        return self.supervisor.stopped_by is not None

    def _check_stop(self) -> None:
        if error := _stopped(self.supervisor):
            raise error


def _working_folder(job: Job, code: fetch.Code) -> str:
    """Return where the script runs.

    That is the code folder; for an entry point of the request where the image says, as on the
    platform, unless the image says nothing or the job brings code.
    """
    if job.entry_point and not job.submit_directory and (own := _own_folder()) != "/":
        return own
    return code.directory if os.path.isdir(code.directory) else "/"


def _own_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return "/"


def _limits(job: Job) -> StopPolicy:
    """Return what the script is allowed, in the supervisor's terms."""
    options = job.options
    return StopPolicy(
        grace_seconds=job.stop_grace_seconds,
        max_seconds=job.max_runtime_seconds,
        leftover_seconds=options.leftover_grace_seconds,
        silence_seconds=options.silence_seconds,
        silence_fails=options.silence_fails,
        stop_signal=signal.Signals[f"SIG{options.stop_signal}"],
    )


def _why(ended: Ended, code: str, host: str, mask: Mask) -> Failure:
    """Return the failure that a script's end is."""
    from sm_runtime.job import failure  # only a job that fails pays for it

    try:
        return failure.of_script(ended, code, host, mask)
    except Exception as error:  # whatever the script wrote, its status stands
        log.error("the reason of the failure cannot be determined", exc_info=error)
        message = f"the script ended with exit code {ended.status}"
        name = "ExecuteUserScriptError"
        return failure.Failure(
            name=name, message=message, phase="train", status=ended.status, host=host
        )


def _failure(error: Exception, job: Job | None, mask: Mask) -> Failure:
    """Return the failure that an exception of ours is; an unforeseen one is logged whole."""
    from sm_runtime.job import failure
    from sm_runtime.processes import shortage

    if reason := shortage.reason(error):
        error = LaunchError(reason)
    if not isinstance(error, JobError):
        log.error("the runtime itself failed", exc_info=error)
        error = JobError(f"{type(error).__name__}: {error}")
    return failure.of_error(error, job.cluster.current_host if job else None, mask)


def _captured(supervisor: Supervisor) -> Run:
    """Return how the installer is run: as a child of the supervisor, its output kept."""

    def run(argv: tuple[str, ...], env: Mapping[str, str], cwd: str) -> tuple[int, bytes]:
        command = Command(argv=argv, cwd=cwd, env=env, name="installer")
        ended = supervisor.capture(command, StopPolicy(grace_seconds=5.0))
        return ended.status, ended.tail

    return run


def _stopped(supervisor: Supervisor) -> StoppedError | None:
    """Return the error that a stop before the script's start is, whatever else it led to."""
    reason = supervisor.stopped_by
    return StoppedError(f"stopped by {reason} before the script started") if reason else None


def _warn(texts: tuple[str, ...]) -> None:
    for text in texts:
        log.warning("%s", text)
