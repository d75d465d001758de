"""What must be the same on all hosts of a job, and how long they wait for each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from sm_runtime import __version__
from sm_runtime.job.model import Cluster, Json

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
