"""A job from start to end, top to bottom."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sm_runtime import channels, script, sync
from sm_runtime.cluster.single_host import SingleHost
from sm_runtime.code import fetch
from sm_runtime.configure import configure, paths_of
from sm_runtime.contract import config_files, environment
from sm_runtime.contract.config_files import ConfigFiles
from sm_runtime.inputs import Inputs
from sm_runtime.install import install
from sm_runtime.job.errors import JobError
from sm_runtime.job.model import Command, Hardware, Job
from sm_runtime.job.secrets import Mask
from sm_runtime.launch import distribution
from sm_runtime.metrics import Measurement
from sm_runtime.output import artifacts
from sm_runtime.output.artifacts import summary_lines
from sm_runtime.output.outcome import Outcome
from sm_runtime.output.report import Report
from sm_runtime.processes import hardware
from sm_runtime.processes.stop import StopPolicy
from sm_runtime.processes.supervisor import Supervisor
from sm_runtime.timeline import Timeline

if TYPE_CHECKING:
    from sm_runtime.cluster.session import Session
    from sm_runtime.job.failure import Failure

log = logging.getLogger(__name__)


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
        self.outcome = Outcome(self.report, mask)
        self.session: Session | SingleHost = SingleHost(supervisor, mask)
        self.config_files = ConfigFiles()
        self.measurement = Measurement()
        self.job: Job | None = None
        self.saved: list[str] = []
        self.inputs: Inputs | None = None

    def run(self) -> int:
        """Do all of it; return the exit status."""
        outcome = self.outcome
        # The status is decided here: from now on it can only turn from success to failure.
        if failure := outcome.guard(self._until_the_end, self._stopped):
            outcome.add(self.session.report_failure(failure))
        if self.session.started:
            outcome.add(outcome.guard(self._save))
        outcome.add(self.session.leave(outcome.failure))
        self.session.close()
        self.measurement.finish(self._is_stopped)
        if self.job:
            if not outcome.failure:
                outcome.add(outcome.guard(self.report.succeeded))
            self._describe(self.job)
            artifacts.hand_over(self.job)
        self.config_files.close()
        log.info("timeline: %s", self.timeline)
        log.info("Reporting training %s", "FAILURE" if outcome.failure else "SUCCESS")
        self.supervisor.drain_output(self.inputs.deadline() if self.inputs else 0.0)
        return outcome.status

    def _until_the_end(self) -> Failure | None:
        """Do what comes before the script's end; return why that is a failure, if it is."""
        timeline, variables = self.timeline, self.variables
        with timeline.phase("config"):
            self.report.prepare()
            job = self.job = configure(variables, self.mask)
            self.outcome.host = job.cluster.current_host
            self.supervisor.collapses = job.options.collapse_repeats
            if job.signalled_whole:
                self.supervisor.expect_signals_for_all()
        job = self.job = self._join(job)
        with timeline.phase("config"):
            self._check(job)
        self._check_stop()
        self.inputs = Inputs(job, variables, self.supervisor, timeline, self.session.fail)
        with self.inputs as inputs:
            inputs.fetch()
            inputs.wait_for_code()
            with timeline.phase("code"):
                code = fetch.fetch(job, variables, self._is_stopped)
            _warn(code.warnings)
            self._check_stop()
            if install.needs_channels(job, code, variables):
                inputs.wait()
            with timeline.phase("install"):
                installed = install.install(
                    job, code, variables, sys.executable, self._run_pip, self._is_stopped
                )
            log.info("%s", installed.summary)
            inputs.wait()
            self._check_stop()
            if self.session.is_distributed:
                with timeline.phase("wait"):
                    self.session.wait_for_peers()
            with timeline.phase("launch"):
                command = script.command(
                    job, code, variables, installed.environ, self.session.launcher, self.mask
                )
                inputs.open(self.session.processes_per_host)
                secrets = environment.secrets(job, variables)
                self.measurement.start(job, secrets, self.supervisor)
            self._check_stop()
            with timeline.phase("train"):
                return self.session.run(command, StopPolicy.of_script(job), self._keep_stacks)

    def _join(self, job: Job) -> Job:
        """Begin to look for other hosts; return the job with what is found out on the way."""
        supervisor, mask = self.supervisor, self.mask
        if distribution.plan(job, Hardware(cpus=1)).kind == distribution.PLAIN:
            self.session = SingleHost(supervisor, mask, job.cluster.current_host)
            return job
        from sm_runtime.cluster.session import Session

        session = self.session = Session(job, self.variables, supervisor, mask)
        session.check()
        return session.job

    def _check(self, job: Job) -> None:
        """Look for what would fail later, and write the files that the script expects."""
        artifacts.check(job, self.variables)
        channels.check(job)
        sync.check(job, self.variables)
        _warn(channels.absent(job))
        if not config_files.is_inside(job.paths, self.variables):
            self.config_files.write(job, config_files.request_file(job.paths, self.variables))

    def _save(self) -> None:
        """Save what the script has left, and say what is where."""
        assert self.job and self.inputs
        with self.timeline.phase("upload"):
            # Side by side: after a stop there is little time for both.
            self.inputs.end()
            saved = artifacts.save(
                self.job,
                threads=hardware.cpus(),
                environ=self.variables,
                rest=self.inputs.finish,
                is_over=self.inputs.is_over,
            )
        self.saved = summary_lines(self.job, saved)
        for line in self.saved:
            log.info("%s", line)

    def _describe(self, job: Job) -> None:
        """Leave what is known of the job for `sm-runtime report`, and save that report, too."""
        from sm_runtime.metrics import record

        session = self.session
        try:
            record.write(
                job,
                kind=session.kind,
                hosts=session.hosts,
                processes_per_host=session.processes_per_host,
                timeline=self.timeline,
                failure=self.outcome.failure,
                saved=self.saved,
                mask=self.mask,
            )
            if job.output and job.options.report:
                self._save_report(job)
        except Exception as error:  # the job's end is decided
            log.warning("the job's report is not saved: %s", error)

    def _save_report(self, job: Job) -> None:
        """Have the report made, which may fail or hang in a process of its own, and save it."""
        from sm_runtime.metrics import report

        assert self.inputs
        signalled_at, is_over = self.supervisor.signalled_at, self.inputs.is_over

        def is_wanted() -> bool:
            return self.supervisor.signalled_at == signalled_at and not is_over()

        if path := report.made_apart(job.paths, is_wanted):
            artifacts.save_report(job, path, self.variables, is_over)

    def _run_pip(
        self, argv: tuple[str, ...], env: Mapping[str, str], cwd: str
    ) -> tuple[int, bytes]:
        """Run pip as a child of the supervisor; return its status and the end of its output."""
        command = Command(argv=argv, cwd=cwd, env=env, name="the installer")
        ended = self.supervisor.capture(command, StopPolicy(grace_seconds=5.0))
        return ended.status, ended.tail

    def _keep_stacks(self, stacks: bytes) -> None:
        self.report.keep_stacks(stacks, self.mask)

    def _is_stopped(self) -> bool:
        return self.supervisor.stopped_by is not None

    def _stopped(self) -> StoppedError | None:
        """Return the error that a stop before the script's start is, whatever else it led to."""
        reason = None if self.session.started else self.supervisor.stopped_by
        return StoppedError(f"stopped by {reason} before the script started") if reason else None

    def _check_stop(self) -> None:
        if error := self._stopped():
            raise error


def _warn(texts: tuple[str, ...]) -> None:
    for text in texts:
        log.warning("%s", text)
