"""The side of the host that leads: it lets the others in, hears from all, and decides for all."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

from sm_runtime.errors import LaunchError
from sm_runtime.failure import Failure
from sm_runtime.link import network
from sm_runtime.link.common import BEAT_SECONDS, LOST_WEIGHT, Link, Notice, Terms
from sm_runtime.link.secure import Conversation, PeerError
from sm_runtime.link.wire import Wire
from sm_runtime.link.worker import PORTS

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from sm_runtime.model import Json

log = logging.getLogger(__name__)

GREETING_SECONDS = 10.0
"""How long somebody unknown may take to become known."""
MAX_UNKNOWN = 64
"""How many may try at once; the oldest goes first."""
SETTLE_SECONDS = 0.5
"""How long other reasons for a failure are waited for: the first that is heard may be a result."""


class Leader(Link):
    """The link of the host that leads, which listens at ``address`` while the job starts."""

    def __init__(self, terms: Terms, notify: Callable[[], None], address: str) -> None:
        super().__init__(terms, notify)
        self._peers: dict[str, Wire] = {}
        self._unknown: list[Wire] = []
        self._ports: dict[str, dict[str, int]] = {}
        self._interfaces: dict[str, str] = {}
        self._finished: set[str] = set()
        self._done: set[str] = set()
        self._gone: set[str] = set()
        self._causes: dict[str, str] = {}
        self._reasons: list[tuple[int, int, Failure]] = []
        self._settled_at: float | None = None
        self._linger_until: float | None = None
        self._listener = _listen(address, terms.port)

    def _run(self) -> None:
        beat, notice = 0.0, Notice()
        self._selector.register(self._listener, 1)
        while not self._closing:
            now = time.monotonic()
            if now >= beat:
                beat = now + BEAT_SECONDS
                self._say_who(notice)
                self._broadcast({"type": "beat", "waiting": self.waiting})
                self._look_for_silence()
            self._decide()
            for wire in self._wires():
                self._selector.modify(wire, wire.interest)
            for ready in self._select(self._seconds(beat)):
                if ready is self._listener:
                    self._accept()
                elif isinstance(ready, Wire) and ready in self._wires():
                    self._serve(ready)
        self._stop_listening()
        for wire in self._wires():
            self._drop(wire)

    def _shut(self) -> None:
        self._stop_listening()
        super()._shut()

    def _wires(self) -> list[Wire]:
        return [*self._peers.values(), *self._unknown]

    def _others(self) -> tuple[str, ...]:
        return self.terms.hosts[1:]

    def _seconds(self, beat: float) -> float:
        due = [beat]
        if self._settled_at is not None and self.failure is None and not self._stopping():
            due.append(self._settled_at)
        if self._linger_until is not None and not self.over:
            due.append(self._linger_until)
        return min(due) - time.monotonic()

    def _stopping(self) -> bool:
        return self.stop is not None and self.going is not None

    # -- who may come in ---------------------------------------------------------------------

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            sock, remote = self._listener.accept()
            if len(self._unknown) >= MAX_UNKNOWN:
                self._drop(self._unknown[0])
            conversation = Conversation(self.terms.greeting(), self.terms.secret, leads=True)
            wire = Wire(sock, str(remote[0]), conversation)
            self._unknown.append(wire)
            self._selector.register(wire, wire.interest)

    def _serve(self, wire: Wire) -> None:
        """Read and write what goes on one connection."""
        try:
            wire.flush()
            unknown = wire.conversation.peer is None
            for message in wire.receive():
                if wire.host:
                    self._hear(wire.host, message)
                else:
                    wire.held.append(message)
            if unknown and wire.conversation.peer is not None:
                self._examine(wire)
            self._admit(wire)
        except PeerError as error:
            self._close(wire, str(error))

    def _examine(self, wire: Wire) -> None:
        """Check what somebody says of himself; without a secret, his address against his name."""
        host = self._claimed(wire)
        peer = wire.conversation.peer or {}
        if host not in self._others() or peer.get("job") != self.terms.greeting()["job"]:
            raise PeerError("it belongs to another job")
        if host in self._peers or host in self._gone:
            raise PeerError(f"{host} has come already")
        if self.terms.secret:
            wire.at_home = True
        else:
            look = threading.Thread(target=self._resolve, args=(wire, host), daemon=True)
            look.start()

    def _resolve(self, wire: Wire, host: str) -> None:
        """Look the host's name up in a thread of its own: a name server may take seconds."""
        addresses, cause = network.resolve(host)

        def judge() -> None:
            if wire not in self._unknown:
                return
            wire.at_home = wire.address in addresses
            try:
                if not wire.at_home:
                    stands = f"stands for {', '.join(addresses)}" if addresses else cause
                    raise PeerError(f"it is not at the address of {host}, which {stands}")
                self._admit(wire)
            except PeerError as error:
                self._close(wire, str(error))

        self._order(judge)

    def _admit(self, wire: Wire) -> None:
        """Let in who has said hello and is who he says."""
        if wire.host or not wire.at_home or not wire.held:
            return
        host = self._claimed(wire)
        if host in self._peers or host in self._gone:
            raise PeerError(f"{host} has come already")
        hello, *rest = wire.held
        if hello.get("type") != "hello":
            raise PeerError("it does not say hello")
        wire.host = host
        self._unknown.remove(wire)
        self._peers[host] = wire
        self._compare(host, hello)
        if self.stop is not None:
            self._send(host, {"type": "stop", "reason": self.stop})
        if self.failure is not None:
            self._send(host, {"type": "abort", "failure": self.failure.as_dict()})
        for message in rest:
            self._hear(host, message)
        if len(self._peers) + len(self._gone) == len(self._others()):
            self._stop_listening()
            for unknown in list(self._unknown):
                self._drop(unknown)

    @staticmethod
    def _claimed(wire: Wire) -> str:
        return str((wire.conversation.peer or {}).get("host", ""))

    def _compare(self, host: str, hello: dict[str, Json]) -> None:
        """Compare what must be the same on all hosts."""
        own, theirs = self.terms.hello(), hello
        for name, version in own["versions"].items():
            other = theirs.get("versions", {}).get(name)
            if other != version:
                leader = self.terms.leader
                text = f"{name} is {version} on {leader} and {other or 'missing'} on {host}"
                self._blame(_different(host, text), LOST_WEIGHT)
        if own["kind"] != theirs.get("kind"):
            text = f"{self.terms.leader} runs {own['kind']} and {host} {theirs.get('kind')}"
            self._blame(_different(host, text), LOST_WEIGHT)

    def _stop_listening(self) -> None:
        if self._listener.fileno() >= 0:
            with contextlib.suppress(KeyError, ValueError, RuntimeError):
                self._selector.unregister(self._listener)
            self._listener.close()

    def _close(self, wire: Wire, why: str) -> None:
        """End a connection: a host's is the end of the job, anybody else's means nothing."""
        self._drop(wire)
        host = wire.host
        if host:
            self._peers.pop(host, None)
            self._gone.add(host)
            self.everybody_left = not self._peers
            self._changed()
            if host in self._done or self.farewell:
                return
            failed = any(failure.host == host for _, _, failure in self._reasons)
            if not failed and self.failure is None:
                self._blame(
                    self._broken(host, f"{host} ({wire.address}) is lost: {why}"), LOST_WEIGHT
                )
            return
        claimed = self._claimed(wire)
        if claimed in self._others() and claimed not in self._peers:
            self._causes[claimed] = f"{wire.address} was turned away: {why}"
            if "SM_RUNTIME_CLUSTER_SECRET" in why and wire.address in network.resolve(claimed)[0]:
                self._blame(
                    self._broken(claimed, f"{claimed} ({wire.address}): {why}"), LOST_WEIGHT
                )
        log.warning("a connection from %s was closed: %s", wire.address, why)

    def _drop(self, wire: Wire) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(wire)
        if wire in self._unknown:
            self._unknown.remove(wire)
        wire.close()

    def _look_for_silence(self) -> None:
        now = time.monotonic()
        for wire in list(self._unknown):
            if now - wire.opened > GREETING_SECONDS:
                self._close(wire, "it does not say who it is")
        for wire in list(self._peers.values()):
            if now - wire.heard > self.terms.silence_seconds:
                self._close(wire, f"it has been silent for {self.terms.silence_seconds:g} s")

    def _say_who(self, notice: Notice) -> None:
        """Say who is missing, and give up when that has taken too long."""
        missing = [host for host in self._others() if host not in (*self._peers, *self._gone)]
        unready = [host for host in self.terms.hosts if host not in self._ports]
        self.waiting = ", ".join(missing or unready)
        if self.failure or self.going or not missing:
            if self.waiting and self.terms.current in self._ports and notice.due():
                log.info("waiting for %s to be ready (%.0f s)", self.waiting, notice.seconds)
            return
        due, spent = notice.due(), notice.seconds >= self.terms.wait_seconds
        if not due and not spent:
            return

        def tell() -> None:  # in a thread: names may take long to resolve
            causes = "; ".join(f"{host}: {self._cause(host)}" for host in missing)
            if spent:
                first = missing[0]
                text = f"{causes} for {self.terms.wait_seconds:g} s"
                self._order(lambda: self._blame(self._broken(first, text), LOST_WEIGHT))
            else:
                seconds, limit = notice.seconds, self.terms.wait_seconds
                log.info("waiting for %s (%.0f s / %g s): %s", self.waiting, seconds, limit, causes)

        threading.Thread(target=tell, name="link-missing", daemon=True).start()

    def _cause(self, host: str) -> str:
        addresses, cause = network.resolve(host)
        if turned_away := self._causes.get(host):
            return turned_away
        return cause or f"has not connected (resolved {', '.join(addresses)})"

    # -- what the hosts say ------------------------------------------------------------------

    def _tell(self, message: dict[str, Json]) -> None:
        self._hear(self.terms.current, message)

    def _hear(self, host: str, message: dict[str, Json]) -> None:
        """Take what a host, this one included, says."""
        kind = message.get("type")
        if kind == "ready":
            self._ports[host] = message["ports"]
            self._interfaces[host] = str(message.get("interface", ""))
        elif kind == "finished":
            self._finished.add(host)
        elif kind == "failed":
            self._blame(Failure.from_dict(message["failure"]), int(message["weight"]))
            self._finished.add(host)
        elif kind == "stopped" and self.stop is None:
            reason = str(message["reason"])
            # Not said back to who said it first.
            self.stop = reason if host == self.terms.current else f"{reason} on {host}"
            shown = self.stop if host != self.terms.current else f"{reason} on {host}"
            for other in self._peers:
                if other != host:
                    self._send(other, {"type": "stop", "reason": shown})
            self._changed()
        elif kind == "done":
            self._done.add(host)
        elif kind == "pass":
            self.inbox.append({**message["message"], "host": host})
            self._changed()

    def _blame(self, failure: Failure, weight: int) -> None:
        """Take a reason for the job's failure."""
        self._reasons.append((weight, len(self._reasons), failure))
        if self._settled_at is None:
            self._settled_at = time.monotonic() + SETTLE_SECONDS

    # -- what all hosts do -------------------------------------------------------------------

    def _decide(self) -> None:
        """Draw the conclusions from all that is known."""
        hosts = self.terms.hosts
        if self.going is None and self.failure is None and len(self._ports) == len(hosts):
            self.going = {"type": "go", "ports": self._ports, "interfaces": self._interfaces}
            self._broadcast(self.going)
            self._changed()
        if self._reasons and self.failure is None and self._settled():
            failure = min(self._reasons, key=lambda reason: reason[:2])[2]
            self._broadcast({"type": "abort", "failure": failure.as_dict()})
            self._fail(failure)
        if not self.over and self.failure is None and not self._reasons and self._all_finished():
            self.over = True
            self._broadcast({"type": "over"})
            self._changed()
        if not self.farewell and all(host in self._done | self._gone for host in hosts):
            self.farewell = True
            self._broadcast({"type": "bye"})
            self._changed()

    def _settled(self) -> bool:
        """Whether the reason for the failure is as certain as it will become.

        After a request to stop each host has its grace: nobody's end is hastened by another's.
        """
        assert self._settled_at is not None
        if self._stopping():
            certain = self._finished | self._gone
            return all(host in certain for host in self.terms.hosts)
        return time.monotonic() >= self._settled_at

    def _all_finished(self) -> bool:
        hosts, leader = self.terms.hosts, self.terms.leader
        if self.going is None:
            return False
        if all(host in self._finished for host in hosts):
            return True
        if leader not in self._finished or self.terms.linger_seconds is None:
            return False
        if self._linger_until is None:
            self._linger_until = time.monotonic() + self.terms.linger_seconds
        return time.monotonic() >= self._linger_until

    def _broadcast(self, message: dict[str, Json]) -> None:
        for host in list(self._peers):
            self._send(host, message)

    def _send(self, host: str, message: dict[str, Json]) -> None:
        wire = self._peers.get(host)
        if wire is None:
            return
        try:
            wire.send(message)
        except PeerError as error:
            self._close(wire, str(error))

    def _pass_on(self, host: str, message: dict[str, Json]) -> None:
        self._send(host, message)


def _listen(address: str, first: int) -> socket.socket:
    """Return a socket that listens at ``address``, on the first of ten ports that is free."""
    problem = ""
    for port in range(first, first + PORTS):
        listener = socket.socket(network.family_of(address), socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            problem = error.strerror or str(error)
            continue
        listener.setblocking(False)
        return listener
    raise LaunchError(
        f"{address}: cannot listen on ports {first} to {first + PORTS - 1}: {problem}"
    )


def _different(host: str, text: str) -> Failure:
    return Failure(
        name="PeerError",
        message=f"{text}: all hosts of a job need the same",
        phase="launch",
        status=1,
        host=host,
    )
