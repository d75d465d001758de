"""Why a job failed, if it did: the first reason counts, and what fails after it is logged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from sm_runtime.job.errors import JobError, LaunchError
from sm_runtime.job.secrets import Mask
from sm_runtime.output.report import Report

if TYPE_CHECKING:
    from sm_runtime.job.failure import Failure

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
