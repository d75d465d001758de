"""What a supervisor runs, as decisions: events go in, actions come out.

Pure: a workload starts, signals and reads nothing itself, and times are monotonic seconds that the
supervisor gives. What it does is decided by the history of events alone, and tested as one.

Each process has a key, by which events and actions name it.
"""

from __future__ import annotations

import itertools
import logging
import math
import signal
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple, Protocol

from sm_runtime.job.model import Command, Ended
from sm_runtime.processes.stop import OFFERED, PASSED, SILENT, STOPPING, Stop, StopPolicy

log = logging.getLogger(__name__)

VANISH_SECONDS = 2.0
"""How long a process may take to vanish after SIGKILL."""

# -- events ----------------------------------------------------------------------------------


class Signalled(NamedTuple):
    """A signal has come for this host's part of the job."""

    number: signal.Signals


class StopRequested(NamedTuple):
    """Something else asks for a stop, or a signal did before there was anything to stop."""

    reason: str
    number: signal.Signals = signal.SIGTERM


class Exited(NamedTuple):
    """A process has been reaped, with its exit status, or -N where signal N has ended it."""

    key: int
    status: int


class Vanished(NamedTuple):
    """Nothing is left of a process that was watched, and of what it has started."""

    key: int


class Drained(NamedTuple):
    """The last output of a process that has ended is here, or has had its time."""

    key: int
    ended: Ended


class Silent(NamedTuple):
    """A process has written nothing for the seconds that its start named."""

    key: int


class Requested(NamedTuple):
    """A process of a launcher asks for something, by a connection to this host's socket."""

    connection: int
    words: tuple[bytes, ...]


class Disconnected(NamedTuple):
    """A process whose request was taken has ended."""

    connection: int


class Due(NamedTuple):
    """Time has passed, or what the hosts agree on has changed."""


Event = (
    Signalled
    | StopRequested
    | Exited
    | Vanished
    | Drained
    | Silent
    | Requested
    | Disconnected
    | Due
)

# -- actions ---------------------------------------------------------------------------------


class Streams(Enum):
    """Where a process's output goes."""

    OURS = auto()
    """Its stdout to ours, its stderr to ours."""
    STDERR = auto()
    """Both to our stderr, together."""
    KEPT = auto()
    """Nowhere: the end of both is kept for who asks."""


class Start(NamedTuple):
    """Start a process."""

    key: int
    command: Command
    streams: Streams = Streams.OURS
    prefixes: tuple[bytes, bytes] | None = None
    """What each line of its stdout and stderr begins with; also an empty one keeps lines whole."""
    silence_seconds: float | None = None
    """The time without output that is ``Silent``."""
    owns_all: bool = False
    """Whether all that descends from us counts as its own."""
    cpus: frozenset[int] | None = None
    """The CPUs that it may use, if not ours."""


class Ask(NamedTuple):
    """Ask a process's group to stop, readers of its output last; with a reason, for all to know."""

    key: int
    number: int
    reason: str | None = None
    received: int = signal.SIGTERM
    """The signal by which the stop was asked for."""
    grace_seconds: float = 0.0


class Send(NamedTuple):
    """Send a signal to a process's group."""

    key: int
    number: int


class Offer(NamedTuple):
    """Send a signal to those of a process and its descendants that have a handler for it."""

    key: int
    number: signal.Signals


class Kill(NamedTuple):
    """Kill a process and all that it has started."""

    key: int


class Watch(NamedTuple):
    """Say when nothing is left of a process that has exited: ``Vanished``."""

    key: int
    asks_others: bool
    """Whether what is in other process groups, and has not been asked to stop yet, is asked now."""


class Drain(NamedTuple):
    """Say when the output of a process that has ended is here: ``Drained``."""

    key: int


class Answer(NamedTuple):
    """Have a launcher's process end with a status."""

    connection: int
    status: int


Action = Start | Ask | Send | Offer | Kill | Watch | Drain | Answer


class Workload(Protocol):
    """What a supervisor runs."""

    @property
    def leftover_seconds(self) -> float:
        """From the end to SIGKILL for what the processes left behind."""

    def begin(self, now: float) -> Sequence[Action]:
        """Start the first processes."""

    def on(self, event: Event, now: float) -> Sequence[Action]:
        """Return what an event leads to."""

    def next_time(self) -> float:
        """Return when ``Due`` has something to do; infinity: never."""

    def is_done(self, now: float) -> bool:
        """Whether nothing more is to be waited for."""

    def deadline(self) -> float:
        """Return until when what is left of processes that were asked to stop has time; else 0."""


def shell_status(status: int) -> int:
    """Return an exit status as a shell gives it."""
    return 128 - status if status < 0 else status


class ProcessState:
    """One process as its workload knows it, from its start to its end."""

    def __init__(self, key: int, name: str, stop: Stop | None) -> None:
        self.key, self.name, self.stop = key, name, stop
        self.status: int | None = None
        """How it ended; None as long as it, or what it has left behind with time to stop, lives."""
        self.is_asked = False
        """Whether a request to stop has reached it."""
        self.aborted = False
        """Whether it was ended for the sake of others, so that its status means nothing."""
        self._exited: int | None = None
        self._end_at = math.inf
        self._killed_at = self._again_at = -math.inf

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.status is None

    @property
    def is_success(self) -> bool:
        """Whether it has ended well: not so after a silence that is a failure."""
        reason = self.stop.reason if self.stop and self.is_asked else None
        return self.status == 0 and not (reason or "").startswith(SILENT)

    @property
    def kill_at(self) -> float:
        """When it is killed; infinity: it need not end."""
        return min(self._end_at, self.stop.kill_at if self.stop and self.is_asked else math.inf)

    def ask(self, number: int, stop: Stop) -> list[Action]:
        """Ask it to stop, once."""
        self.is_asked = True
        return [
            Ask(
                key=self.key,
                number=number,
                reason=stop.reason,
                received=stop.received,
                grace_seconds=stop.policy.grace_seconds,
            )
        ]

    def end(self, seconds: float, now: float) -> list[Action]:
        """Ask it to end, for another's sake, and have it killed after ``seconds``."""
        has_signal = self.is_asked or self.aborted  # a second one would end a handler
        self._end_at = min(self._end_at, now + seconds)
        self.aborted = True
        return [] if has_signal else [Ask(key=self.key, number=signal.SIGTERM)]

    def exited(self, status: int) -> list[Action]:
        """Take its exit status: that is its end, unless others have time to stop.

        After a request to stop, what it leaves behind keeps the rest of its time, and gets no
        second signal; what is in another process group has not got the first one yet.
        """
        self._exited = status
        if self.kill_at == math.inf:
            self.status = status
            return []
        return [Watch(self.key, asks_others=self._killed_at == -math.inf)]

    def vanished(self) -> None:
        """Take it that nothing is left of it."""
        self.status = self._exited

    def due(self, now: float) -> list[Action]:
        """Kill it where its time is over; what does not vanish after that is given up."""
        if not self.is_live or now < self.next_time():
            return []
        if self._killed_at == -math.inf:
            self._killed_at = now
        elif self._exited is not None:
            self.status = self._exited
            return []
        self._again_at = now + VANISH_SECONDS
        return [Kill(self.key)]

    def next_time(self) -> float:
        """Return when ``due`` has something to do; infinity: never."""
        return max(self.kill_at, self._again_at) if self.is_live else math.inf


class Processes:
    """The processes of a workload: scripts, which share its stop, and services, which have none."""

    def __init__(self, policy: StopPolicy) -> None:
        self.stop = Stop(policy)
        self._keys = itertools.count()
        self._states: dict[int, ProcessState] = {}
        self._is_silent: set[int] = set()

    def start(
        self,
        command: Command,
        now: float,
        *,
        streams: Streams = Streams.OURS,
        prefixes: tuple[bytes, bytes] | None = None,
        owns_all: bool = False,
        cpus: frozenset[int] | None = None,
    ) -> Start:
        """Return how a script is started; its key is a new one."""
        self.stop.start(now)
        return Start(
            key=self._add(command.name, self.stop).key,
            command=command,
            streams=streams,
            prefixes=prefixes,
            silence_seconds=self.stop.policy.silence_seconds,
            owns_all=owns_all,
            cpus=cpus,
        )

    def serve(self, command: Command) -> Start:
        """Return how a service is started, whose output is of interest only when it fails."""
        return Start(key=self._add(command.name, None).key, command=command, streams=Streams.STDERR)

    def _add(self, name: str, stop: Stop | None) -> ProcessState:
        state = ProcessState(next(self._keys), name, stop)
        self._states[state.key] = state
        return state

    def __getitem__(self, key: int) -> ProcessState:
        return self._states[key]

    def live(self) -> list[ProcessState]:
        """Return those that have not ended."""
        return [state for state in self._states.values() if state.is_live]

    def live_scripts(self) -> list[ProcessState]:
        """Return the scripts that have not ended."""
        return [state for state in self.live() if state.stop]

    def request(self, reason: str, number: signal.Signals, now: float) -> list[Action]:
        """Ask the scripts to stop."""
        sent = self.stop.request(reason, number, now)
        if sent is None:
            return []
        return [
            action
            for state in self.live_scripts()
            for action in (
                [Send(state.key, sent)] if state.is_asked else state.ask(sent, self.stop)
            )
        ]

    def on(self, event: Event, now: float) -> list[Action]:
        """Do what an event means for the processes themselves."""
        match event:
            case Signalled(number) if number in STOPPING:
                return self.request(number.name, number, now)
            case Signalled(number) if number in OFFERED:
                return [Offer(state.key, number) for state in self.live_scripts()]
            case Signalled(number) if number in PASSED:
                return [Send(state.key, number) for state in self.live_scripts()]
            case StopRequested(reason, number):
                return self.request(reason, number, now)
            case Exited(key, status):
                return self._states[key].exited(status)
            case Vanished(key):
                self._states[key].vanished()
            case Silent(key):
                return self._silent(key, now)
            case Due():
                return self._due(now)
        return []

    def _silent(self, key: int, now: float) -> list[Action]:
        if key in self._is_silent or not self._states[key].is_live:
            return []
        if self.stop.policy.silence_fails:
            self._is_silent.add(key)
        log.warning("no output for %g s", self.stop.policy.silence_seconds)
        self.stop.silent(now)
        return [Offer(key, signal.SIGUSR1)]

    def _due(self, now: float) -> list[Action]:
        reason = self.stop.due(now) if self.live_scripts() else None
        actions = self.request(reason, signal.SIGTERM, now) if reason else []
        return [*actions, *(action for state in self.live() for action in state.due(now))]

    def next_time(self) -> float:
        """Return when something is due; infinity: never."""
        times = [state.next_time() for state in self.live()]
        if self.live_scripts():
            times.append(self.stop.next_time())
        return min(times, default=math.inf)

    def deadline(self) -> float:
        """Return until when what is left of processes that were asked to stop has time; else 0."""
        times = (state.kill_at for state in self._states.values())
        return max((time for time in times if time < math.inf), default=0.0)


class SingleProcess:
    """One process, and its end is the end; ``seconds`` after its start it is ended."""

    def __init__(
        self,
        command: Command,
        policy: StopPolicy,
        streams: Streams = Streams.OURS,
        seconds: float = math.inf,
    ) -> None:
        self._processes = Processes(policy)
        self._command, self._streams = command, streams
        self._seconds, self._end_at = seconds, math.inf
        self.leftover_seconds = policy.leftover_seconds

    def begin(self, now: float) -> Sequence[Action]:
        """Start the process."""
        self._end_at = now + self._seconds
        start = self._processes.start(self._command, now, streams=self._streams, owns_all=True)
        self._state = self._processes[start.key]
        return [start]

    def on(self, event: Event, now: float) -> Sequence[Action]:
        """Return what an event leads to."""
        actions = self._processes.on(event, now)
        if now >= self._end_at:
            self._end_at = math.inf
            actions += self._state.end(self._processes.stop.policy.grace_seconds, now)
        return actions

    def next_time(self) -> float:
        """Return when something is due."""
        return min(self._end_at, self._processes.next_time())

    def is_done(self, now: float) -> bool:
        """Whether it has ended."""
        return not self._state.is_live

    def deadline(self) -> float:
        """Return until when what it has left behind has time."""
        return self._processes.deadline()
