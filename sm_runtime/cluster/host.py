"""The processes that a host runs for a distributed job, from the leader's word to the last's end.

Each process is a child of this host's supervisor: it is told of every end as it happens. Whatever
follows from one is decided by the leader, for all hosts alike, over the link.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from sm_runtime.cluster.agreement import Priority
from sm_runtime.cluster.link import Link
from sm_runtime.job import failure
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Command, Ended, Json
from sm_runtime.processes.process import Process, StopPolicy
from sm_runtime.processes.relay import Relay
from sm_runtime.processes.supervisor import Supervisor
from sm_runtime.processes.workload import Workload

log = logging.getLogger(__name__)

ABORT_SECONDS = 3.0
"""What a script has from SIGTERM to SIGKILL when another part of the job has failed."""
SERVICE_SECONDS = 2.0
"""What a service has to end when all scripts have."""
OUTPUT_SECONDS = 2.0
"""How long the last output of a process may take before its failure is told."""
QUIET_SECONDS = 0.3
"""A process that has ended, and whose output is held open by another, has no more to say then."""
LOOK_SECONDS = 0.01
"""How often that is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPolicy:
    """How the scripts of an ensemble are treated."""

    host: str
    limits: StopPolicy
    mask: Callable[[str], str]
    keep_stacks: Callable[[bytes], None]
    serves: bool = False
    """Whether the script only serves the leader's, so that its end is no loss."""


class HostProcesses(Workload):
    """The services and scripts of one host, which begin together and end as the hosts agree."""

    def __init__(
        self,
        link: Link,
        terms: HostPolicy,
        scripts: Iterable[Command] = (),
        services: Iterable[Command] = (),
    ) -> None:
        self.link, self.terms = link, terms
        self.outcome: Failure | None = None
        self.started = False
        """Whether a script has begun."""
        self.leftover_seconds = terms.limits.leftover_seconds
        self._commands, self._serving = tuple(scripts), tuple(services)
        self._scripts: dict[Process, Command] = {}
        self._services: dict[Process, Command] = {}
        self._finished = self._stopping = self._told = False
        self._ended: dict[Process, tuple[Callable[[], None], float]] = {}
        """What has ended, and what follows from it when its last output is here, or at a time."""
        self._held: list[tuple[Priority, int, Failure]] = []
        """Failures after a request to stop, which are told when all scripts have ended."""
        self._closing_at: float | None = None

    # -- what the supervisor asks ------------------------------------------------------------

    def begin(self, stage: Supervisor) -> None:
        """Start the services, then the scripts."""
        self._stage = stage
        for command in self._serving:
            self._serve(command)
        for command in self._commands:
            relays = (Relay(stage.out, "stdout"), Relay(stage.err, "stderr"))
            self._perform(command, relays)
        self.step()

    def over(self) -> bool:
        """Whether all hosts have agreed on the end and no process of this host is left."""
        if self._closing_at is None or self._live(self._scripts, self._services):
            return False
        return self.outcome is not None or not self._ended  # one of them may be a failure

    def seconds(self) -> float | None:
        """Return the seconds until the services are killed."""
        if self._ended:
            return LOOK_SECONDS
        if self._closing_at is None or self._live(self._scripts):
            return None
        return max(0.0, self._closing_at - time.monotonic())

    def ended(self, run: Process) -> None:
        """Draw the conclusion from the end of one process."""
        if run in self._services:
            self._service_ended(run, self._services[run])
        elif run in self._scripts:
            self._script_ended(run, self._scripts[run])

    def step(self) -> None:
        """Do what the hosts have agreed on."""
        link = self.link
        now = time.monotonic()
        for run, (conclude, until) in list(self._ended.items()):
            if now >= until or not run.has_output(QUIET_SECONDS):
                del self._ended[run]
                conclude()
        while link.state.inbox:
            self.receive(link.state.inbox.popleft())
        reason = self._stage.stopped_by or next(
            (run.stopped_by for run in self._scripts if run.stopped_by), None
        )
        if reason and not self._told and link.state.stop_reason is None:
            self._told = True
            link.stopped(reason)
        if (reason or link.state.stop_reason) and not self._stopping:
            self._stopping = True
            self._stop(link.state.stop_reason or reason or "")
        if self._closing_at is None and (link.state.failure or link.state.training_done):
            self._close(link.state.failure)
        if self._closing_at is not None:
            self._end_services()
        self.check_finished()

    # -- what a subclass may do otherwise ----------------------------------------------------

    def receive(self, message: Mapping[str, Json]) -> None:
        """Take a message of another host."""
        log.debug("a message that nobody waits for: %s", message.get("do"))

    def check_finished(self) -> None:
        """Say that this host's part is done, once it is."""
        if not self._finished and self._scripts and not self._live(self._scripts):
            self.finish_part()

    def rank_of(self, run: Process) -> int | None:
        """Return the rank of a script's process; None where there is none."""
        return None

    def finish(self) -> None:
        """Wait for the last output of all, when nothing is left that could write any."""
        self._stage.gather_output(run for run in self._scripts if run.status is not None)

    def release(self) -> None:
        """Let go of whatever holds the services back, the end being agreed on."""

    # -- how it is done ----------------------------------------------------------------------

    def _perform(self, command: Command, relays: tuple[Relay, Relay]) -> Process:
        """Start a script."""
        run = self._stage.start(command, self.terms.limits, relays, self.terms.keep_stacks)
        run.name = command.name
        self._scripts[run] = command
        self.started = True
        return run

    def _serve(self, command: Command) -> Process:
        """Start a service, whose output is of interest only when it fails."""
        relay = Relay(self._stage.err, command.name)
        run = self._stage.start(command, StopPolicy(grace_seconds=SERVICE_SECONDS), (relay, relay))
        run.name = command.name
        run.passes_signals = False
        self._services[run] = command
        return run

    def _script_ended(self, run: Process, command: Command) -> None:
        if run.deadline is None:  # else all of it is gone, or has had its time
            run.send_group(signal.SIGTERM)  # what it started has no purpose any more
        if run.shell_status() == 0 or run.aborted or self._closing_at is not None:
            return  # its last output has time: what it has left behind may hold the pipe

        def conclude() -> None:
            ended = run.so_far()
            found = failure.of_script(ended, command.cwd, self.terms.host, self.terms.mask)
            self._fail(replace(found, rank=self.rank_of(run)), _priority(ended))

        self._conclude(run, conclude)

    def _service_ended(self, run: Process, command: Command) -> None:
        if self._closing_at is not None or run.aborted:
            return

        def conclude() -> None:
            self._fail(self.reason(run, command), self.service_priority(command))

        self._conclude(run, conclude)

    def _conclude(self, run: Process, conclude: Callable[[], None]) -> None:
        """Draw a conclusion from an end when all of the output is here; wait for nothing now."""
        self._ended[run] = (conclude, time.monotonic() + OUTPUT_SECONDS)

    def reason(self, run: Process, command: Command) -> Failure:
        """Return why a service that has ended is the end of the job."""
        ended = run.so_far()
        found = failure.of_script(ended, command.cwd, self.terms.host, self.terms.mask)
        whole = f"the {command.name}: {found.message}"
        if "the script" in found.message:
            whole = found.message.replace("the script", f"the {command.name}", 1)
        return replace(found, name="LaunchError", message=whole, status=ended.status or 1)

    def service_priority(self, command: Command) -> Priority:
        """Return how likely the failure of a service is to be the cause of others."""
        return Priority.SERVICE

    def _fail(self, found: Failure, priority: Priority) -> None:
        log.error("%s", found.headline())
        if self._stopping or self._stage.stopped_by or self.link.state.stop_reason:
            # Each of the others has its grace: nobody's end is hastened by another's.
            self._held.append((priority, len(self._held), found))
        else:
            self._finished = True
            self.link.failed(found, priority)

    def finish_part(self) -> None:
        """Say that this host's part is done, unless it is still to be told why it failed."""
        if self._ended:
            return
        self._finished = True
        if self._held:
            priority, _, found = min(self._held, key=lambda held: held[:2])
            self.link.failed(found, priority)
        else:
            self.link.finished(began=self.started)

    def _stop(self, reason: str) -> None:
        """Ask this host's scripts to stop: what reached another host reaches them, too."""
        for run in self._live(self._scripts):
            if run.stopped_by is None:
                run.stop(reason, signal.SIGTERM)

    def _close(self, found: Failure | None) -> None:
        """Begin to end: at once where the job has failed, else what still serves."""
        self.outcome = found
        self._closing_at = time.monotonic() + SERVICE_SECONDS
        live = self._live(self._scripts)
        if found and live:
            names = ", ".join(run.name for run in live)
            log.error("ending %s: the job has failed on %s", names, found.host)
        elif live and not self.terms.serves:
            names = ", ".join(run.name for run in live)
            log.warning("ending %s: the script of %s is done", names, self.link.config.leader)
        for run in live:
            run.end(ABORT_SECONDS)

    def _end_services(self) -> None:
        """End the services when no script needs them."""
        if self._live(self._scripts):
            assert self._closing_at is not None
            self._closing_at = max(self._closing_at, time.monotonic() + SERVICE_SECONDS)
            return
        late = time.monotonic() >= (self._closing_at or 0.0)
        for run in self._live(self._services):
            if late or self.outcome is not None:
                run.send_group(signal.SIGKILL)
            elif not run.aborted:
                self.dismiss(run)
        self.release()

    def dismiss(self, run: Process) -> None:
        """Ask a service to end."""
        run.end(SERVICE_SECONDS)

    @staticmethod
    def _live(*groups: dict[Process, Command]) -> list[Process]:
        return [run for group in groups for run in group if run.status is None]


def _priority(ended: Ended) -> Priority:
    return Priority.KILLED if ended.signal and not ended.stopped_by else Priority.FAILED
