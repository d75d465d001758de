"""A job of one process on one host: what a ``Session`` is where there is nobody to agree with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from sm_runtime.job.model import Command, Ended, Entry
from sm_runtime.job.secrets import Mask
from sm_runtime.processes.stop import StopPolicy
from sm_runtime.processes.supervisor import Supervisor
from sm_runtime.processes.workload import SingleProcess

if TYPE_CHECKING:
    from sm_runtime.job.failure import Failure

log = logging.getLogger(__name__)


class SingleHost:
    """The host of a job that is not distributed; ``host`` is its name, once that is known."""

    is_distributed, kind = False, "plain"
    processes_per_host = 1

    def __init__(self, supervisor: Supervisor, mask: Mask, host: str = "") -> None:
        self._supervisor, self._mask, self._host = supervisor, mask, host
        self.hosts = (host,)
        self.started = False
        """Whether the script has begun, so that there may be something to save."""

    def launcher(self, entry: Entry) -> tuple[str, ...]:
        """Return the entry's argument vector: nothing else starts it."""
        return entry.argv

    def wait_for_peers(self) -> None:
        """Return at once."""

    def run(
        self, script: Command, policy: StopPolicy, keep_stacks: Callable[[bytes], None]
    ) -> Failure | None:
        """Run the script to its end; return why it failed, if it did."""
        self.started = True
        workload = SingleProcess(script, policy)
        [ended] = self._supervisor.run(workload, keep_stacks=keep_stacks).values()
        if not ended.ok:
            return self._failure(ended, script)
        if ended.stopped_by:
            log.info("the script ended well after it was stopped by %s", ended.stopped_by)
        return None

    def fail(self, reason: str) -> None:
        """Have the script stop, from any thread: its data is not all that it takes it for."""
        self._supervisor.ask(reason)

    def report_failure(self, failure: Failure) -> Failure:
        """Return the failure: nobody else has another."""
        return failure

    def leave(self, failure: Failure | None) -> Failure | None:
        """Return the failure, if there is one."""
        return failure

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _failure(self, ended: Ended, command: Command) -> Failure:
        """Return the failure that the script's end is."""
        from sm_runtime.job import failure  # only a job that fails pays for it

        try:
            return failure.of_script(ended, command, self._host, self._mask)
        except Exception as error:  # whatever the script wrote, its status stands
            log.error("the reason of the failure cannot be determined", exc_info=error)
            message = f"the script ended with exit code {ended.status}"
            name = "ExecuteUserScriptError"
            return failure.Failure(
                name=name, message=message, phase="train", status=ended.status, host=self._host
            )
