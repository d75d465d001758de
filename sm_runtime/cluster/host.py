"""What a host does with its processes in a distributed job, from the start to the agreed end.

Decisions only, as those of any workload: what happens to the processes goes in as events, what
follows from it goes to the leader, which decides for all hosts alike, as reports over the link.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sm_runtime.cluster.agreement import Priority
from sm_runtime.cluster.link import Link
from sm_runtime.job import failure
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Command, Ended, Json
from sm_runtime.processes.stop import StopPolicy
from sm_runtime.processes.workload import (
    Action,
    Drain,
    Drained,
    Event,
    Processes,
    ProcessState,
    Send,
    Start,
)

log = logging.getLogger(__name__)

ABORT_SECONDS = 3.0
"""What a script has from SIGTERM to SIGKILL when another part of the job has failed."""
SERVICE_SECONDS = 2.0
"""What a service has to end when all scripts have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPolicy:
    """How the scripts of a host are treated."""

    host: str
    stop: StopPolicy
    mask: Callable[[str], str]
    ends_with_leader: bool = False
    """Whether the scripts only serve the leader's, so that their end is no loss."""


class HostProcesses:
    """The services and scripts of one host, which start together and end as the hosts agree."""

    def __init__(
        self,
        link: Link,
        policy: HostPolicy,
        scripts: Iterable[Command] = (),
        services: Iterable[Command] = (),
    ) -> None:
        self.link, self.policy = link, policy
        self.outcome: Failure | None = None
        self.started = False
        """Whether a script runs or has run: one that cannot be started has not."""
        self._has_begun = False
        """Whether a script's start was decided."""
        self.processes = Processes(policy.stop)
        self.commands: dict[int, Command] = {}
        self._first = tuple(scripts), tuple(services)
        self._actions: list[Action] = []
        self.is_finished = self._is_stop_reported = False
        self._concluding: set[int] = set()
        """What has ended, and something follows from it when its last output is here."""
        self._held: list[tuple[Priority, int, Failure]] = []
        """Failures after a request to stop, which are reported when all scripts have ended."""
        self.closing_at = math.inf
        """When services are killed, once the end is agreed on."""

    # -- what the supervisor asks ------------------------------------------------------------

    @property
    def leftover_seconds(self) -> float:
        """From the end to SIGKILL for what the processes left behind."""
        return self.policy.stop.leftover_seconds

    def begin(self, now: float) -> Sequence[Action]:
        """Start the services, then the scripts."""
        scripts, services = self._first
        for command in services:
            self.serve(command)
        for command in scripts:
            self.start(self.processes.start(command, now))
        return self._taken()

    def on(self, event: Event, now: float) -> Sequence[Action]:
        """Return what an event leads to."""
        self.started = self._has_begun  # what was decided before has been done by now
        live = self.processes.live()
        self.do(self.processes.on(event, now))
        self.take(event, now)
        for state in live:
            if not state.is_live:
                self.ended(state)
        self._step(now)
        return self._taken()

    def next_time(self) -> float:
        """Return when something is due; infinity: never."""
        closing = math.inf if self.processes.live_scripts() else self.closing_at
        return min(self.processes.next_time(), closing)

    def is_done(self, now: float) -> bool:
        """Whether all hosts have agreed on the end and no process of this host is left."""
        if self.closing_at == math.inf or self.processes.live():
            return False
        return self.outcome is not None or not self._concluding  # one of them may be a failure

    def deadline(self) -> float:
        """Return until when what is left of processes that were asked to stop has time; else 0."""
        return self.processes.deadline()

    # -- what happens ------------------------------------------------------------------------

    def take(self, event: Event, now: float) -> None:
        """Take an event, the states of the processes being up to date."""
        if isinstance(event, Drained) and event.key in self._concluding:
            self._concluding.remove(event.key)
            self.conclude(self.processes[event.key], event.ended)

    def receive(self, message: Mapping[str, Json]) -> None:
        """Take a message of another host."""
        log.debug("unexpected message of another host: %s", message.get("do"))

    def ended(self, state: ProcessState) -> None:
        """Take the end of a process: a failure is told when its last output is here."""
        if state.stop and state.kill_at == math.inf:  # else all of it is gone, or had its time
            self.do([Send(state.key, signal.SIGTERM)])  # what it started has no purpose any more
        is_failure = not (state.stop and state.is_success)
        if is_failure and not state.aborted and not self.is_closing:
            self.await_output(state)

    def await_output(self, state: ProcessState) -> None:
        """Have ``conclude`` called when the last output of a process is here, or had its time."""
        self._concluding.add(state.key)
        self.do([Drain(state.key)])

    def conclude(self, state: ProcessState, ended: Ended) -> None:
        """Draw the conclusion from the end of a process."""
        if state.stop is None:
            self.fail(self.service_failure(state, ended), self.service_priority(state))
            return
        found = self.failure_of(state, ended)
        is_killed = ended.signal and not ended.stopped_by
        priority = Priority.KILLED if is_killed else Priority.FAILED
        self.fail(replace(found, rank=self.rank_of(state.key)), priority)

    def failure_of(self, state: ProcessState, ended: Ended) -> Failure:
        """Return the failure that the end of a process is."""
        command = self.commands[state.key]
        return failure.of_script(ended, command, self.policy.host, self.policy.mask)

    def service_failure(self, state: ProcessState, ended: Ended) -> Failure:
        """Return why a service that has ended is the end of the job."""
        found = self.failure_of(state, ended)
        whole = f"the {state.name}: {found.message}"
        if "the script" in found.message:
            whole = found.message.replace("the script", f"the {state.name}", 1)
        status = ended.status or 1
        return replace(found, name="LaunchError", message=whole, status=status, command=None)

    def service_priority(self, state: ProcessState) -> Priority:
        """Return how likely the failure of a service is to be the cause of others."""
        return Priority.SERVICE

    def rank_of(self, key: int) -> int | None:
        """Return the rank of a script's process; None where there is none."""
        return None

    # -- what follows ------------------------------------------------------------------------

    def do(self, actions: Iterable[Action]) -> None:
        """Have the supervisor do something."""
        self._actions += actions

    def start(self, start: Start) -> ProcessState:
        """Start a script."""
        self.commands[start.key] = start.command
        self._has_begun = True
        self.do([start])
        return self.processes[start.key]

    def serve(self, command: Command) -> ProcessState:
        """Start a service."""
        start = self.processes.serve(command)
        self.commands[start.key] = command
        self.do([start])
        return self.processes[start.key]

    @property
    def is_closing(self) -> bool:
        """Whether the hosts have agreed on the end."""
        return self.closing_at < math.inf

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for, here or on another host."""
        return bool(self.processes.stop.reason or self.link.state.stop_reason)

    def fail(self, found: Failure, priority: Priority) -> None:
        """Report a failure: at once, or after a request to stop when all scripts have ended."""
        log.error("%s", found.headline())
        if self.is_stopping:
            # Each of the others has its grace: nobody's end is hastened by another's.
            self._held.append((priority, len(self._held), found))
        else:
            self.is_finished = True
            self.link.failed(found, priority)

    def check_finished(self) -> None:
        """Report that this host's part is done, once it is."""
        if self._has_begun and not self.processes.live_scripts():
            self.finish_part()

    def finish_part(self) -> None:
        """Report that this host's part is done, unless it is still to be told why it failed."""
        if self._concluding:
            return
        self.is_finished = True
        if self._held:
            priority, _, found = min(self._held, key=lambda held: held[:2])
            self.link.failed(found, priority)
        else:
            self.link.finished(began=self.started)

    def _step(self, now: float) -> None:
        """Do what the hosts have agreed on."""
        state, stop = self.link.state, self.processes.stop
        while state.inbox:
            self.receive(state.inbox.popleft())
        if stop.reason and not self._is_stop_reported and state.stop_reason is None:
            self._is_stop_reported = True
            self.link.stopped(stop.reason)
        if state.stop_reason and stop.reason is None:
            self.do(self.processes.request(state.stop_reason, signal.SIGTERM, now))
        if not self.is_closing and (state.failure or state.training_done):
            self._close(state.failure, now)
        if self.is_closing:
            self._end_services(now)
        if not self.is_finished:
            self.check_finished()

    def _close(self, found: Failure | None, now: float) -> None:
        """Begin to end: at once where the job has failed, else what still serves."""
        self.outcome = found
        self.closing_at = now + SERVICE_SECONDS
        live = self.processes.live_scripts()
        names = ", ".join(state.name for state in live)
        if found and live:
            log.error("ending %s: the job has failed on %s", names, found.host)
        elif live and not self.policy.ends_with_leader:
            log.warning("ending %s: the script of %s is done", names, self.link.config.leader)
        for state in live:
            self.do(state.end(ABORT_SECONDS, now))

    def _end_services(self, now: float) -> None:
        """End the services when no script needs them."""
        if self.processes.live_scripts():
            self.closing_at = max(self.closing_at, now + SERVICE_SECONDS)
            return
        for state in self.processes.live():
            if now >= self.closing_at or self.outcome is not None:
                self.do([Send(state.key, signal.SIGKILL)])
            elif not state.aborted:
                self.dismiss(state, now)
        self.release()

    def dismiss(self, state: ProcessState, now: float) -> None:
        """End a service, which has nothing to save and takes no other signal."""
        state.aborted = True
        self.do([Send(state.key, signal.SIGKILL)])

    def release(self) -> None:
        """Let go of whatever holds the services back, the end being agreed on."""

    def _taken(self) -> list[Action]:
        taken, self._actions = self._actions, []
        return taken
