"""What the hosts of a job agree on: when to start, why to stop, why it failed, when it is over.

Pure: messages and times go in, messages come out; no clock, no socket. The leader has the one
``Agreement``. Every host, the leader included, has a ``State``, which the agreement's messages
build up; a single host uses the same two without a network.

Reports of a host: ``ready`` (with its ``ports`` and ``interface``), ``finished`` (with whether a
script ``began``), ``failed`` (with the ``failure`` and its ``priority``), ``stopped`` (with the
``reason``), ``done`` and ``pass`` (a ``message`` for another host's process runner).

``ClusterConfig`` is what has to be the same on all hosts before that, and how long they wait.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from sm_runtime import __version__
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Cluster, Json

Message = dict[str, Json]

MALFORMED = (AttributeError, KeyError, TypeError, ValueError)
"""What taking a malformed message raises."""
SETTLE_SECONDS = 0.5
"""How long other reasons of a failure are waited for: the first to arrive may be a consequence."""


class Priority(IntEnum):
    """Which of several failures is the cause of the others: the least."""

    HOST_LOST = 0
    KILLED = 1
    """A script was killed by a signal."""
    FAILED = 2
    """A script ended with a status that is not 0."""
    SERVICE = 3
    """A parameter server or a launcher ended."""
    HELPER = 4
    """What only helps a service ended."""


class State:
    """What a host knows of the job; built up by the messages of the agreement."""

    def __init__(self) -> None:
        self.start: Mapping[str, Json] | None = None
        """Set when every host is ready: by host, ``ports``, ``interfaces`` and ``addresses``."""
        self.stop_reason: str | None = None
        """Why all hosts are asked to stop, with the host that received the request."""
        self.training_done = False
        """Whether every host's part has ended well, so that artifacts can be saved."""
        self.failure: Failure | None = None
        """Why the job failed, the same on every host."""
        self.finished = False
        """Whether nothing more is to be waited for."""
        self.waiting_for = ""
        """The hosts that are not there, or not ready yet, in words."""
        self.inbox: deque[Message] = deque()
        """Messages of other hosts for what runs the processes here."""

    def apply(self, message: Message) -> None:
        """Take a message of the agreement; the first stop and the first failure count."""
        kind = message["type"]
        if kind == "wait":
            self.waiting_for = str(message["hosts"])
        elif kind == "start":
            self.start = message
        elif kind == "stop":
            self.stop_reason = self.stop_reason or str(message["reason"])
        elif kind == "training_done":
            self.training_done = True
        elif kind == "failed":
            self.failure = self.failure or Failure.from_dict(message["failure"])
        elif kind == "finished":
            self.finished = True
        elif kind == "pass":
            self.inbox.append(message["message"])


class Agreement:
    """Decides for all hosts by what each has reported, the leader being the first of ``hosts``.

    ``take`` returns the messages that have to be sent, in their order; they are also the leader's
    own. Times are seconds of any one clock. When the leader has finished, the others may go on for
    ``patience_seconds`` (None: to their own end), those that are ``awaited`` in any case.
    """

    def __init__(
        self,
        hosts: tuple[str, ...],
        *,
        patience_seconds: float | None = None,
        awaited: tuple[str, ...] = (),
    ) -> None:
        self.hosts, self._patience_seconds, self._awaited = hosts, patience_seconds, awaited
        self._outgoing: list[tuple[str | None, Message]] = []
        self._ready: dict[str, Message] = {}
        self._addresses: dict[str, str] = {}
        self._finished: set[str] = set()
        self._began: set[str] = set()
        """The hosts on which a script has run."""
        self._done: set[str] = set()
        self._gone: set[str] = set()
        self._reasons: list[tuple[int, int, Failure]] = []
        """Why the job may have failed: priority, number, failure."""
        self._settled_at = self._patient_until = math.inf
        self._stop: tuple[str, str] | None = None
        """Why the job is stopped, and the host that received the request."""
        self._failure: Failure | None = None
        self._has_started = self._is_training_done = self._is_finished = False

    # -- what happens ------------------------------------------------------------------------

    def joined(self, host: str, address: str) -> None:
        """Note that a host is connected, from an address; it learns what has happened so far."""
        self._addresses[host] = address
        if self._stop:
            self._say(self._stop_message(host), host)
        if self._failure:
            self._say({"type": "failed", "failure": self._failure.as_dict()}, host)

    def report(self, host: str, message: Message, now: float) -> None:
        """Take the report of a host; one that is malformed changes nothing."""
        kind = message["type"]
        if kind == "ready":
            self._ready[host] = {
                "ports": {str(name): int(port) for name, port in message["ports"].items()},
                "interface": str(message["interface"]),
            }
        elif kind == "finished":
            if message["began"]:
                self._began.add(host)
            self._finished.add(host)
        elif kind == "failed":
            failure, priority = Failure.from_dict(message["failure"]), int(message["priority"])
            self._give_reason(failure, priority, now)
            self._finished.add(host)
        elif kind == "stopped":
            if self._stop is None:
                self._stop = str(message["reason"]), host
                for other in self.hosts:
                    self._say(self._stop_message(other), other)
        elif kind == "done":
            self._done.add(host)
        elif kind == "pass":
            receiver = message["to"] if host == self.hosts[0] else self.hosts[0]
            self._say({"type": "pass", "message": {**message["message"], "host": host}}, receiver)
        self.decide(now)

    def blame(self, host: str, why: str, now: float) -> None:
        """Take it that a host is why the job fails: it cannot take part, or no more."""
        failure = peer_failure(host, why, has_started=self._has_started)
        self._give_reason(failure, Priority.HOST_LOST, now)
        self.decide(now)

    def absent(self, hosts: tuple[str, ...], why: str, now: float) -> None:
        """Give up hosts that have never connected."""
        self._gone.update(hosts)
        self.blame(hosts[0], why, now)

    def lost(self, host: str, why: str, now: float) -> None:
        """Note that the connection to a host has ended: its end where it had nothing left to do."""
        self._gone.add(host)
        is_blamed = any(failure.host == host for _, _, failure in self._reasons)
        if not (host in self._done or self._is_finished or self._failure or is_blamed):
            self.blame(host, f"{host} ({self._addresses.get(host, '')}) is lost: {why}", now)
        self.decide(now)

    # -- what follows ------------------------------------------------------------------------

    def take(self) -> list[tuple[str | None, Message]]:
        """Return the messages to send since the last call, each with its host; None: all."""
        taken, self._outgoing = self._outgoing, []
        return taken

    def next_time(self, now: float) -> float:
        """Return when ``decide`` has something to do though nothing happens; infinity: never."""
        times = []
        if self._failure is None and not self._is_stopping():
            times.append(self._settled_at)
        if not (self._is_training_done or self._reasons or self._stop):
            times.append(self._patient_until)
        return min((time for time in times if time > now), default=math.inf)

    def unready(self) -> list[str]:
        """Return the hosts that are not ready to start."""
        return [host for host in self.hosts if host not in self._ready]

    def decide(self, now: float) -> None:
        """Draw the conclusions from all that is known at this time."""
        self._start()
        if self._stop and not self._reasons and self._all_finished(now) and not self._began:
            self._give_reason(never_began(*self._stop), Priority.HOST_LOST, now)
        if self._reasons and self._failure is None and self._is_settled(now):
            self._failure = min(self._reasons, key=lambda reason: reason[:2])[2]
            self._say({"type": "failed", "failure": self._failure.as_dict()})
        if not (self._is_training_done or self._reasons) and self._all_finished(now):
            self._is_training_done = True
            self._say({"type": "training_done"})
        is_certain = self._failure is not None or not self._reasons
        has_left = self._done | self._gone
        if not self._is_finished and is_certain and has_left.issuperset(self.hosts):
            self._is_finished = True
            self._say({"type": "finished"})

    def _start(self) -> None:
        if self._has_started or self._reasons or self.unready():
            return
        self._has_started = True
        self._say(
            {
                "type": "start",
                "ports": {host: ready["ports"] for host, ready in self._ready.items()},
                "interfaces": {host: ready["interface"] for host, ready in self._ready.items()},
                "addresses": self._addresses,
            }
        )

    def _give_reason(self, failure: Failure, priority: int, now: float) -> None:
        if not self._reasons:
            self._settled_at = now + SETTLE_SECONDS
        self._reasons.append((priority, len(self._reasons), failure))

    def _is_stopping(self) -> bool:
        return self._stop is not None and self._has_started

    def _is_settled(self, now: float) -> bool:
        """Whether the reason for the failure is as certain as it will become.

        After a request to stop each host has its grace: the end of one does not hasten another's.
        """
        if self._is_stopping():
            return (self._finished | self._gone | self._done).issuperset(self.hosts)
        return now >= self._settled_at or len(self.hosts) == 1

    def _all_finished(self, now: float) -> bool:
        if not self._has_started:
            return False
        if self._finished.issuperset(self.hosts):
            return True
        seconds = self._patience_seconds
        if self.hosts[0] not in self._finished or seconds is None or self._stop:
            return False  # after a request to stop each host has its grace
        self._patient_until = min(self._patient_until, now + seconds)
        return now >= self._patient_until and self._finished.issuperset(self._awaited)

    def _stop_message(self, host: str) -> Message:
        assert self._stop is not None
        reason, received_by = self._stop
        shown = reason if host == received_by else f"{reason} on {received_by}"
        return {"type": "stop", "reason": shown}

    def _say(self, message: Message, host: str | None = None) -> None:
        self._outgoing.append((host, message))


def peer_failure(host: str, message: str, *, has_started: bool) -> Failure:
    """Return the failure that a host is lost, or never came."""
    return Failure(
        name="HostLostError" if has_started else "PeerError",
        message=message,
        phase="train" if has_started else "launch",
        status=1,
        host=host,
    )


def never_began(reason: str, host: str) -> Failure:
    """Return the failure that a stop is where no host's script had begun."""
    return Failure(
        name="StoppedError",
        message=f"stopped by {reason} before the script started",
        phase="launch",
        status=143,
        host=host,
    )


PORTS = 10
"""How many ports the leader tries, its own being taken."""
NAME_LENGTH = 128
"""How much of a job's name a host says of itself."""
LIST_BYTES = 2048
"""The most bytes of a list of hosts that a host sends before it is admitted."""
NOTICE_SECONDS = 10.0
"""How often the log says who is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The hosts of a job as one of them is configured."""

    cluster: Cluster
    hosts: tuple[str, ...]
    """The hosts that take part, the leader first."""
    job_name: str = ""
    kind: str = ""
    """How the job is distributed."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """What must be the same on all hosts, beside the runtime's own version."""
    secret: bytes = b""
    port: int = 7117
    """The TCP port that the leader listens on, or the first of ten that is free."""
    wait_seconds: float = 300.0
    """How long a host waits for the others to appear."""
    notice_seconds: float = NOTICE_SECONDS
    """How often the log says who is waited for."""
    greeting_seconds: float = 10.0
    """How long a client may take until it is admitted."""
    beat_seconds: float = 2.0
    """How often a host sends something, at the least."""
    silence_seconds: float = 20.0
    """A host from which nothing arrives for so long is lost."""
    patience_seconds: float | None = None
    """When the leader's part is done: how long the others' may go on; None: to their end."""
    awaited: tuple[str, ...] = ()
    """The hosts whose part may always go on to its end."""

    @property
    def current(self) -> str:
        """This host."""
        return self.cluster.current_host

    @property
    def leader(self) -> str:
        """The host that leads."""
        return self.hosts[0]

    @property
    def beat(self) -> float:
        """How often this host sends something, in seconds: several times per silence."""
        return min(self.beat_seconds, self.silence_seconds / 4)

    def greeting(self) -> dict[str, Json]:
        """Return what a host says of itself in the clear."""
        text = json.dumps([self.job_name, list(self.hosts)]).encode()
        job = hashlib.sha256(text).hexdigest()[:32]
        return {"host": self.current, "job": job, "name": self.job_name[:NAME_LENGTH]}

    def hello(self) -> dict[str, Json]:
        """Return the first message of a host that wants to be admitted."""
        hosts = list(self.hosts)
        return {
            "type": "hello",
            "versions": {"sm-runtime": __version__, **self.versions},
            "kind": self.kind,
            "hosts": hosts if len(json.dumps(hosts)) <= LIST_BYTES else [],
        }

    def other_job(self, greeting: Mapping[str, Json]) -> str:
        """Return, in words, how the job of a host with this greeting is another; empty: it is not.

        Hosts whose lists of hosts differ belong to one job by its name, and are told how they do.
        """
        name, own = str(greeting.get("name"))[:NAME_LENGTH], self.greeting()
        if greeting.get("job") == own["job"] or name == own["name"]:
            return ""
        return f"its job's name is {name!r} and this one's {self.job_name!r}"

    def differences(self, greeting: Mapping[str, Json], hello: Mapping[str, Json]) -> list[str]:
        """Return, in words, what is not the same on another host as on this one."""
        found, host = [], str(greeting["host"])
        if greeting.get("job") != self.greeting()["job"]:
            found.append(self._other_hosts(host, list(map(str, hello.get("hosts") or ()))))
        versions = hello.get("versions") or {}
        for name, own in self.hello()["versions"].items():
            if (other := versions.get(name)) != own:
                own, other = own or "missing", other or "missing"
                found.append(f"{name} is {own} on {self.current} and {other} on {host}")
        if self.kind != hello.get("kind"):
            found.append(f"{self.current} runs {self.kind} and {host} {hello.get('kind')}")
        return found

    def _other_hosts(self, host: str, theirs: list[str]) -> str:
        more = [f"{name} only in that of {host}" for name in theirs if name not in self.hosts]
        ours = [name for name in self.hosts if name not in theirs] if theirs else []
        more += [f"{name} only in that of {self.current}" for name in ours]
        if theirs and not more:
            more = ["their order"]
        shown = f" ({', '.join(more[:5])}{', ...' if more[5:] else ''})" if more else ""
        return f"the lists of hosts of {self.current} and {host} differ{shown}"


class Notice:
    """Says when a line in the log is due, and how long the wait has been; times are monotonic."""

    def __init__(self, now: float, every_seconds: float = NOTICE_SECONDS) -> None:
        self._started = now
        self._every, self._next = every_seconds, now + every_seconds

    def is_due(self, now: float) -> bool:
        """Return whether a line is due, once for each."""
        if now < self._next:
            return False
        self._next = now + self._every
        return True

    def seconds(self, now: float) -> float:
        """Return how long it has been."""
        return now - self._started
