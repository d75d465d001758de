"""The side of a host that follows: one connection, to the leader, for the whole job."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import time

from sm_runtime.failure import Failure
from sm_runtime.link import network
from sm_runtime.link.common import BEAT_SECONDS, Link, Notice
from sm_runtime.link.secure import Conversation, PeerError
from sm_runtime.link.wire import Wire

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from sm_runtime.model import Json

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
RETRY_SECONDS = 0.2
GREETING_SECONDS = 5.0
PORTS = 10
"""How many ports the leader may have moved up, its own being taken."""


class Worker(Link):
    """The link of a host that does not lead."""

    _wire: Wire | None = None
    _early: list[dict[str, Json]]

    def _run(self) -> None:
        self._early = []
        wire = self._join()
        if wire is None:
            return
        self._wire = wire
        self._selector.register(wire, wire.interest)
        beat = 0.0
        try:
            wire.send(self.terms.hello())
            for message in self._early:
                wire.send(message)
            while not self._closing and not self.farewell:
                now = time.monotonic()
                if now >= beat:
                    beat = now + BEAT_SECONDS
                    wire.send({"type": "beat"})
                self._selector.modify(wire, wire.interest)
                ready = self._select(min(beat - now, 1.0))
                if wire in ready:
                    wire.flush()
                    for message in wire.receive():
                        self._take(message)
                if time.monotonic() - wire.heard > self.terms.silence_seconds:
                    raise PeerError(f"it has been silent for {self.terms.silence_seconds:g} s")
        except PeerError as error:
            self._lost(error)
        finally:
            self._wire = None
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(wire)
            wire.close()

    def _lost(self, error: PeerError) -> None:
        leader = self.terms.leader
        if not self.farewell and not self._closing:
            address = self._wire.address if self._wire else ""
            self._fail(self._broken(leader, f"{leader} ({address}) is lost: {error}"))
        self.farewell = True
        self._changed()

    def _join(self) -> Wire | None:
        """Return the connection to the leader; None when it never came, or when we give up."""
        terms, notice = self.terms, Notice()
        leader, cause, port = terms.leader, "", terms.port
        while not self._closing:
            addresses, cause = network.resolve(leader)
            for address in addresses:
                try:
                    return self._greet(address, port)
                except OSError as error:
                    reason = error.strerror or str(error) or type(error).__name__
                    cause = f"{address} port {port}: {reason}"
                except PeerError as error:
                    if "SM_RUNTIME_CLUSTER_SECRET" in str(error):
                        self._give_up(f"{leader} ({address}): {error}")
                        return None
                    cause = f"{address} port {port}: {error}"
            port = terms.port + (port - terms.port + 1) % PORTS
            if notice.seconds >= terms.wait_seconds:
                self._give_up(f"{leader}: {cause} for {terms.wait_seconds:g} s")
                return None
            self.waiting = leader
            if notice.due():
                log.info(
                    "waiting for %s (%.0f s / %g s): %s",
                    leader,
                    notice.seconds,
                    terms.wait_seconds,
                    cause,
                )
            self._select(RETRY_SECONDS if port == terms.port else 0.0)
        return None

    def _give_up(self, message: str) -> None:
        self._fail(self._broken(self.terms.leader, message))
        self.farewell = True
        self._changed()

    def _greet(self, address: str, port: int) -> Wire:
        """Connect, and exchange greetings; raises OSError and PeerError."""
        terms = self.terms
        sock = socket.create_connection((address, port), CONNECT_SECONDS)
        try:
            wire = Wire(sock, address, Conversation(terms.greeting(), terms.secret, leads=False))
            deadline = time.monotonic() + GREETING_SECONDS
            poll = select.poll()
            while wire.conversation.peer is None:
                wire.flush()
                poll.register(wire, select.POLLIN)
                poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if time.monotonic() >= deadline:
                    raise PeerError("it does not answer")
                for message in wire.receive():
                    self._take(message)
            peer = wire.conversation.peer
            if peer.get("host") != terms.leader or peer.get("job") != terms.greeting()["job"]:
                raise PeerError(f"another job's host answers, {str(peer.get('host'))[:80]!r}")
            wire.host = terms.leader
            return wire
        except BaseException:
            sock.close()
            raise

    def _take(self, message: dict[str, Json]) -> None:
        """Do what the leader says."""
        kind = message.get("type")
        if kind == "beat":
            self.waiting = str(message.get("waiting", ""))
            return
        if kind == "go":
            self.going = message
        elif kind == "stop" and self.stop is None:
            self.stop = str(message.get("reason"))
        elif kind == "over":
            self.over = True
        elif kind == "abort":
            self._fail(Failure.from_dict(message["failure"]))
        elif kind == "bye":
            self.farewell = True
        elif kind == "pass":
            self.inbox.append(message["message"])
        self._changed()

    def _tell(self, message: dict[str, Json]) -> None:
        if self._wire is None:
            if not self.farewell:
                self._early.append(message)
            return
        try:
            self._wire.send(message)
        except PeerError as error:
            log.debug("%s", error)  # reading will find the same

    def _pass_on(self, host: str, message: dict[str, Json]) -> None:
        self._tell(message)
