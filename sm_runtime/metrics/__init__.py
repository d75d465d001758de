"""What is measured while a script runs: the metrics in its output, and what its host gives.

Both are files below ``output/metrics``; nothing here may cost the job its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sm_runtime.job.model import Job

if TYPE_CHECKING:
    from sm_runtime.metrics.host import HostSampler
    from sm_runtime.metrics.reader import MetricsReader
    from sm_runtime.processes.supervisor import Supervisor

log = logging.getLogger(__name__)


class Measurement:
    """What is measured of one attempt at a job."""

    def __init__(self) -> None:
        self._reader: MetricsReader | None = None
        self._sampler: HostSampler | None = None

    def start(self, job: Job, secrets: Sequence[str], supervisor: Supervisor) -> None:
        """Begin, before the script starts; ``secrets`` are masked in lines that are kept."""
        if job.metrics:
            from sm_runtime.metrics.reader import MetricsReader

            try:
                self._reader = MetricsReader(job, secrets)
            except Exception as error:  # a job runs without them
                log.warning("metrics are not read: %s", error)
            else:
                supervisor.exclude(self._reader.pid)
                supervisor.tap = self._reader.tap
        if job.options.host_metrics:
            from sm_runtime.metrics.host import HostSampler

            sampler = HostSampler(job)
            try:
                sampler.start()
            except (RuntimeError, MemoryError) as error:  # no more threads, or no memory for one
                log.debug("the host is not sampled: %s", error)
            else:
                self._sampler = sampler

    def finish(self, is_stopped: Callable[[], bool]) -> None:
        """End, the script being gone; log what was found. Nothing is raised.

        What is left of the output has ``FINISH_SECONDS``, after a stop ``STOPPED_SECONDS``.
        """
        try:
            lines = self._reader.finish(is_stopped) if self._reader else []
            lines += self._sampler.finish() if self._sampler else []
        except Exception as error:  # whatever is wrong with them, the job has ended as it has
            log.warning("metrics are not summed up: %s: %s", type(error).__name__, error)
            return
        for line in lines:
            log.info("%s", line)
