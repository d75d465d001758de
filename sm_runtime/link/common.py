"""What the hosts of a job tell each other, and what each of them knows of the others."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from sm_runtime import __version__
from sm_runtime.failure import Failure
from sm_runtime.model import Cluster, Json

log = logging.getLogger(__name__)

LOST_WEIGHT = 0
"""The weight of a failure that explains whatever fails beside it: a host that is gone."""
NAME_LENGTH = 128
"""How much of a job's name a host says of itself."""
LIST_BYTES = 2048
"""The most bytes of a list of hosts that a host sends: what is unknown may send little."""
NOTICE_SECONDS = 10.0
"""How often the log says who is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the hosts of a job must agree on, and how long they wait for each other."""

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
    beat_seconds: float = 2.0
    """How often a host says that it is there, at the least."""
    silence_seconds: float = 20.0
    """A host that says nothing for so long is lost."""
    linger_seconds: float | None = None
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
        """How often this host says that it is there, in seconds: several times per silence."""
        return min(self.beat_seconds, self.silence_seconds / 4)

    def greeting(self) -> dict[str, Json]:
        """Return what a host says of itself in the clear."""
        text = json.dumps([self.job_name, list(self.hosts)]).encode()
        job = hashlib.sha256(text).hexdigest()[:32]
        return {"host": self.current, "job": job, "name": self.job_name[:NAME_LENGTH]}

    def hello(self) -> dict[str, Json]:
        """Return what a host says first when its connection is safe."""
        hosts = list(self.hosts)
        return {
            "type": "hello",
            "versions": {"sm-runtime": __version__, **self.versions},
            "kind": self.kind,
            "hosts": hosts if len(json.dumps(hosts)) <= LIST_BYTES else [],
        }

    def is_same(self, greeting: Mapping[str, Json]) -> bool:
        """Whether a host that says this of itself has the same job, with the same hosts."""
        return bool(greeting.get("job") == self.greeting()["job"])

    def is_alike(self, greeting: Mapping[str, Json]) -> bool:
        """Whether a host that says this of itself has the same job, though maybe other hosts."""
        same_name = greeting.get("name") == self.job_name[:NAME_LENGTH]
        return self.is_same(greeting) or same_name

    def other_job(self, greeting: Mapping[str, Json]) -> str:
        """Return, in words, how the job of a host that says this of itself is another."""
        name = str(greeting.get("name"))[:NAME_LENGTH]
        return f"its job's name is {name!r} and this one's {self.job_name!r}"

    def unlike(self, host: str, theirs: list[str]) -> str:
        """Return, in words, how the hosts that another host knows of differ from this one's."""
        more = [f"{name} only in that of {host}" for name in theirs if name not in self.hosts]
        ours = [name for name in self.hosts if name not in theirs] if theirs else []
        more += [f"{name} only in that of {self.current}" for name in ours]
        if theirs and not more:
            more = ["their order"]
        shown = f" ({', '.join(more[:5])}{', ...' if more[5:] else ''})" if more else ""
        return f"the lists of hosts of {self.current} and {host} differ{shown}"


class Link:
    """A host's side of the talk between hosts: state for the main thread, a thread for the sockets.

    The main thread asks and tells; ``notify`` is called from the thread whenever something changed.
    A subclass is the leader's or a worker's side.
    """

    def __init__(self, terms: Terms, notify: Callable[[], None]) -> None:
        self.terms = terms
        self.going: dict[str, Json] | None = None
        """What the leader said when every host was ready: by host, ``ports``, ``interfaces`` and
        ``addresses``."""
        self.stop: str | None = None
        """Why all hosts are asked to stop, with the host that was told so."""
        self.over = False
        """Whether every part is done, so that artifacts can be saved."""
        self.failure: Failure | None = None
        """Why the job failed, the same on every host."""
        self.farewell = False
        """Whether nothing more is to be waited for."""
        self.everybody_left = False
        """Whether no other host is connected any more, on the leader."""
        self.joined = False
        """Whether the leader has let this host in."""
        self.waiting = ""
        """Who is waited for, in words."""
        self.inbox: deque[dict[str, Json]] = deque()
        """Messages for whoever runs the processes: ``launch``, ``exited``, ``signal``."""
        self._notify = notify
        self._orders: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._main, name="link", daemon=True)
        self._closing = self._is_shut = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to look for the others."""
        self._thread.start()

    def ready(self, ports: Mapping[str, int], interface: str = "") -> None:
        """Say that this host could start, with what is free and in use on it."""
        message = {"type": "ready", "ports": dict(ports), "interface": interface}
        self._order(lambda: self._tell(message))

    def finished(self, *, began: bool = True) -> None:
        """Say that this host's part ended well, and whether a script ever ``began`` here."""
        self._order(lambda: self._tell({"type": "finished", "began": began}))

    def failed(self, failure: Failure, weight: int = 2) -> None:
        """Say that this host's part failed; of several reasons the one of least weight counts."""
        message = {"type": "failed", "failure": failure.as_dict(), "weight": weight}
        self._order(lambda: self._tell(message))

    def stopped(self, reason: str) -> None:
        """Say that this host was asked to stop."""
        self._order(lambda: self._tell({"type": "stopped", "reason": reason}))

    def done(self) -> None:
        """Say that nothing is left to do on this host."""
        self._order(lambda: self._tell({"type": "done"}))

    def send(self, host: str, message: dict[str, Json]) -> None:
        """Send a message into the inbox of another host: of any, as leader, or of the leader."""
        self._order(lambda: self._pass_on(host, {"type": "pass", "message": message}))

    def close(self, seconds: float = 2.0) -> None:
        """End the thread and close every socket."""

        def end() -> None:
            self._closing = True

        if self._thread.is_alive():
            self._order(end)
            self._thread.join(seconds)
        else:
            self._shut()

    def _order(self, action: Callable[[], None]) -> None:
        with self._lock:
            if self._is_shut:  # the descriptor may be another file's by now
                return
            self._orders.append(action)
            with suppress(BlockingIOError):
                os.write(self._waker, b"\0")

    def _main(self) -> None:
        try:
            self._run()
        except Exception as error:
            log.exception("the link between the hosts failed")
            self._fail(self._broken(self.terms.current, f"{type(error).__name__}: {error}"))
        finally:
            self._shut()
            self.farewell = self.everybody_left = True
            self._changed()

    def _shut(self) -> None:
        with self._lock:
            if not self._is_shut:
                self._is_shut = True
                os.close(self._wakeup)
                os.close(self._waker)
                self._selector.close()

    def _select(self, seconds: float) -> list[object]:
        """Wait, carry out the main thread's orders, and return what is ready."""
        found: list[object] = []
        for key, _ in self._selector.select(max(0.0, seconds)):
            if key.fd == self._wakeup:
                with suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
            else:
                found.append(key.fileobj)
        while self._orders:
            self._orders.popleft()()
        return found

    def _changed(self) -> None:
        self._notify()

    def _fail(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure
            self._changed()

    def _broken(self, host: str, message: str) -> Failure:
        """Return the failure that a host is lost or never came."""
        return Failure(
            name="HostLostError" if self.going else "PeerError",
            message=message,
            phase="train" if self.going else "launch",
            status=1,
            host=host,
        )

    def _run(self) -> None:
        raise NotImplementedError

    def _tell(self, message: dict[str, Json]) -> None:
        """Bring a message of this host to the leader."""
        raise NotImplementedError

    def _pass_on(self, host: str, message: dict[str, Json]) -> None:
        raise NotImplementedError


def never_began(reason: str, host: str) -> Failure:
    """Return the failure that a stop is where no host's script had begun."""
    return Failure(
        name="StoppedError",
        message=f"stopped by {reason} before the script started",
        phase="launch",
        status=143,
        host=host,
    )


class Notice:
    """Says when it is time for a line in the log: every 10 s."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._next = self.started + NOTICE_SECONDS

    def due(self) -> bool:
        """Return whether a line is due."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + NOTICE_SECONDS
        return True

    @property
    def seconds(self) -> float:
        """How long it has been."""
        return time.monotonic() - self.started
