"""The side of the host that leads: it lets the others in, hears from all, and decides for all."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sm_runtime.failure import Failure
from sm_runtime.link import network
from sm_runtime.link.common import LOST_WEIGHT, Link, Notice, Terms, never_began
from sm_runtime.link.gate import Gate
from sm_runtime.link.secure import PeerError
from sm_runtime.link.wire import Wire

if TYPE_CHECKING:
    from sm_runtime.model import Json

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.5
"""How long other reasons for a failure are waited for: the first that is heard may be a result."""


class Leader(Link):
    """The link of the host that leads, which listens at ``address`` while the job starts."""

    def __init__(self, terms: Terms, notify: Callable[[], None], address: str) -> None:
        super().__init__(terms, notify)
        self._address = address
        self._peers: dict[str, Wire] = {}
        self._ports: dict[str, dict[str, int]] = {}
        self._interfaces: dict[str, str] = {}
        self._finished: set[str] = set()
        self._began: set[str] = set()
        """Where a script has run."""
        self._stopped_on = ""
        self._done: set[str] = set()
        self._gone: set[str] = set()
        self._reasons: list[tuple[int, int, Failure]] = []
        self._settled_at: float | None = None
        self._linger_until: float | None = None
        self._gate = Gate(terms, address, self._selector, self._order, self._admit, self._accuse)

    def _run(self) -> None:
        beat, notice, gate = 0.0, Notice(), self._gate
        while not self._closing:
            self._decide()
            for wire in (*self._peers.values(), *gate.wires):
                self._selector.modify(wire, wire.interest)
            for ready in self._select(self._seconds(beat)):
                if ready is gate.listener:
                    gate.accept()
                elif isinstance(ready, Wire):
                    if ready in gate.wires:
                        gate.serve(ready)
                    elif ready.host in self._peers:
                        self._serve(ready)
            # After reading: where this process was suspended, words of the others are waiting.
            if time.monotonic() >= beat:
                beat = time.monotonic() + self.terms.beat
                self._say_who(notice)
                self._broadcast({"type": "beat", "waiting": self.waiting})
                gate.expire()
                self._look_for_silence()

    def _shut(self) -> None:
        if not self._is_shut:
            self._gate.close()
            for wire in self._peers.values():
                wire.close()
        super()._shut()

    def _seconds(self, beat: float) -> float:
        due = [beat]
        if self.failure is None:
            if self._settled_at is not None and not self._stopping():
                due.append(self._settled_at)
            lingers = not self.over and not self._reasons and not self.stop
            if lingers and self._linger_until and self._linger_until > time.monotonic():
                due.append(self._linger_until)
        return min(due) - time.monotonic()

    def _stopping(self) -> bool:
        return self.stop is not None and self.going is not None

    # -- who comes and who goes --------------------------------------------------------------

    def _admit(self, host: str, wire: Wire) -> None:
        """Take in a host, and tell it what has happened."""
        self._peers[host] = wire
        hello = wire.held.pop()
        if not self.terms.is_same(wire.conversation.peer or {}):
            text = self.terms.unlike(host, list(map(str, hello.get("hosts") or ())))
            self._blame(_different(host, text), LOST_WEIGHT)
        self._compare(host, hello)
        self._send(host, {"type": "welcome"})
        if self.stop is not None:
            self._send(host, {"type": "stop", "reason": self.stop})
        if self.failure is not None:
            self._send(host, {"type": "abort", "failure": self.failure.as_dict()})

    def _accuse(self, host: str, why: str) -> None:
        self._blame(self._broken(host, why), LOST_WEIGHT)

    def _serve(self, wire: Wire) -> None:
        """Read and write what goes on a host's connection."""
        try:
            wire.flush()
            for message in wire.receive():
                self._hear(wire.host, message)
        except PeerError as error:
            self._close(wire, str(error))
        except (AttributeError, KeyError, TypeError, ValueError):
            self._close(wire, "what it says makes no sense")

    def _compare(self, host: str, hello: dict[str, Json]) -> None:
        """Compare what must be the same on all hosts."""
        own, theirs = self.terms.hello(), hello
        for name, version in own["versions"].items():
            other = theirs.get("versions", {}).get(name)
            if other != version:
                leader = self.terms.leader
                own_version, other = version or "missing", other or "missing"
                text = f"{name} is {own_version} on {leader} and {other} on {host}"
                self._blame(_different(host, text), LOST_WEIGHT)
        if own["kind"] != theirs.get("kind"):
            text = f"{self.terms.leader} runs {own['kind']} and {host} {theirs.get('kind')}"
            self._blame(_different(host, text), LOST_WEIGHT)

    def _close(self, wire: Wire, why: str) -> None:
        """End the connection of a host: unless it had nothing left to do, the job's end."""
        host = wire.host
        if self._peers.pop(host, None) is None:
            return
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(wire)
        wire.close()
        self._gone.add(host)
        self.everybody_left = not self._peers
        self._changed()
        if host in self._done or self.farewell or self.failure is not None:
            return
        if not any(failure.host == host for _, _, failure in self._reasons):
            text = f"{host} ({wire.address}) is lost: {why}"
            self._blame(self._broken(host, text), LOST_WEIGHT)

    def _look_for_silence(self) -> None:
        for wire in list(self._peers.values()):
            if wire.is_silent(self.terms.silence_seconds):
                self._serve(wire)  # suspended ourselves, we may have missed its words
                if wire.is_silent(self.terms.silence_seconds):
                    self._close(wire, f"it has been silent for {self.terms.silence_seconds:g} s")

    def _say_who(self, notice: Notice) -> None:
        """Say who is missing, and give up when that has taken too long."""
        missing = tuple(self._gate.missing)
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
                text = f"{causes} for {self.terms.wait_seconds:g} s"
                self._order(lambda: self._give_up(missing[0], text))
            else:
                seconds, limit = notice.seconds, self.terms.wait_seconds
                log.info("waiting for %s (%.0f s / %g s): %s", self.waiting, seconds, limit, causes)

        threading.Thread(target=tell, name="link-missing", daemon=True).start()

    def _give_up(self, host: str, why: str) -> None:
        """Wait no longer for those who have not come; one may have come by now."""
        if self._gate.missing and self.failure is None:
            self._blame(self._broken(host, why), LOST_WEIGHT)
            self._gone.update(self._gate.missing)

    def _cause(self, host: str) -> str:
        addresses, cause = network.resolve(host)
        if turned_away := self._gate.causes.get(host):
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
            if message["began"]:
                self._began.add(host)
        elif kind == "failed":
            self._blame(Failure.from_dict(message["failure"]), int(message["weight"]))
            self._finished.add(host)
        elif kind == "stopped" and self.stop is None:
            reason, self._stopped_on = str(message["reason"]), host
            # Not said back to who said it first.
            self.stop = reason if host == self.terms.current else f"{reason} on {host}"
            shown = self.stop if host != self.terms.current else f"{reason} on {host}"
            for other in list(self._peers):
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
        ready = len(self._ports) == len(hosts) and not self._reasons
        if self.going is None and self.failure is None and ready:
            addresses = {host: wire.address for host, wire in self._peers.items()}
            self.going = {
                "type": "go",
                "ports": self._ports,
                "interfaces": self._interfaces,
                "addresses": {self.terms.leader: self._address, **addresses},
            }
            self._broadcast(self.going)
            self._changed()
        if self.stop and not self._reasons and self._all_finished() and not self._began:
            reason = self.stop.removesuffix(f" on {self._stopped_on}")
            self._blame(never_began(reason, self._stopped_on), LOST_WEIGHT)
        if self._reasons and self.failure is None and self._settled():
            failure = min(self._reasons, key=lambda reason: reason[:2])[2]
            self._broadcast({"type": "abort", "failure": failure.as_dict()})
            self._fail(failure)
        if not self.over and self.failure is None and not self._reasons and self._all_finished():
            self.over = True
            self._broadcast({"type": "over"})
            self._changed()
        certain = self.failure is not None or not self._reasons
        if not self.farewell and certain and all(h in self._done | self._gone for h in hosts):
            self.farewell = True
            self._broadcast({"type": "bye"})
            self._changed()

    def _settled(self) -> bool:
        """Whether the reason for the failure is as certain as it will become.

        After a request to stop each host has its grace: nobody's end is hastened by another's.
        """
        assert self._settled_at is not None
        if self._stopping():
            certain = self._finished | self._gone | self._done
            return all(host in certain for host in self.terms.hosts)
        return time.monotonic() >= self._settled_at

    def _all_finished(self) -> bool:
        hosts, leader = self.terms.hosts, self.terms.leader
        if self.going is None:
            return False
        if all(host in self._finished for host in hosts):
            return True
        if leader not in self._finished or self.terms.linger_seconds is None or self.stop:
            return False  # after a request to stop each host has its grace
        if self._linger_until is None:
            self._linger_until = time.monotonic() + self.terms.linger_seconds
        late = time.monotonic() >= self._linger_until
        return late and all(host in self._finished for host in self.terms.awaited)

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


def _different(host: str, text: str) -> Failure:
    return Failure(
        name="PeerError",
        message=f"{text}: all hosts of a job need the same",
        phase="launch",
        status=1,
        host=host,
    )
