"""The side of a host that follows: one connection, to the leader, for the whole job."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from typing import TYPE_CHECKING

from sm_runtime.failure import Failure
from sm_runtime.link import network
from sm_runtime.link.common import Link, Notice
from sm_runtime.link.gate import PORTS
from sm_runtime.link.secure import MESSAGE_BYTES, Conversation, PeerError, SecretError
from sm_runtime.link.wire import Wire

if TYPE_CHECKING:
    from sm_runtime.model import Json

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
RETRY_SECONDS = 0.2
GREETING_SECONDS = 5.0
WELCOME_SECONDS = 15.0
"""How long the leader may look up who we are."""


class FinalError(PeerError):
    """The leader will never let this host in."""


class OtherJobError(PeerError):
    """Who answers in the leader's place belongs to another job, as far as names tell."""


class Worker(Link):
    """The link of a host that does not lead."""

    _wire: Wire | None = None
    _early: list[dict[str, Json]]

    def _run(self) -> None:
        self._early = []
        wire = self._join()
        if wire is None:
            return
        self._wire, self.joined = wire, True
        beat = 0.0
        try:
            for message in self._early:
                wire.send(message)
            while not self._closing and not self.farewell:
                now = time.monotonic()
                if now >= beat:
                    beat = now + self.terms.beat
                    wire.send({"type": "beat"})
                self._selector.modify(wire, wire.interest)
                ready = self._select(min(beat - now, 1.0))
                if wire in ready:
                    wire.flush()
                    self._hear(wire.receive())
                if wire.is_silent(self.terms.silence_seconds):
                    self._hear(wire.receive())  # suspended ourselves, we may have missed its words
                if wire.is_silent(self.terms.silence_seconds):
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
        leader, cause, port, told = terms.leader, "", terms.port, False
        while not self._closing:
            addresses, cause = network.resolve(leader)
            walks = False
            for address in addresses:
                try:
                    return self._greet(address, port)
                except OSError as error:
                    walks = walks or isinstance(error, ConnectionRefusedError)
                    reason = error.strerror or str(error) or type(error).__name__
                    cause = f"{address} port {port}: {reason}"
                except (SecretError, FinalError) as error:
                    self._give_up(f"{leader} ({address}): {error}")
                    return None
                except PeerError as error:
                    walks = True
                    cause = f"{address} port {port}: {error}"
                    if isinstance(error, OtherJobError) and not told:
                        told = True  # it may be no more than a neighbour
                        log.warning("%s", cause)
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
            # An address that does not answer at all has no other port that would.
            port = terms.port + (port - terms.port + 1) % PORTS if walks else terms.port
            self._select(RETRY_SECONDS if port == terms.port else 0.0)
        return None

    def _give_up(self, message: str) -> None:
        self._fail(self._broken(self.terms.leader, message))
        self.farewell = True
        self._changed()

    def _greet(self, address: str, port: int) -> Wire:
        """Connect, and become known; raises OSError and PeerError."""
        sock = socket.create_connection((address, port), CONNECT_SECONDS)
        try:
            conversation = Conversation(
                self.terms.greeting(), self.terms.secret, leads=False, examine=self._examine
            )
            wire = Wire(sock, address, conversation)
            self._selector.register(wire, wire.interest)
            self._await_welcome(wire)
            return wire
        except BaseException:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(sock)
            sock.close()
            raise

    def _examine(self, greeting: dict[str, Json]) -> None:
        host = str(greeting.get("host"))
        if host != self.terms.leader:
            raise PeerError(f"another job's host answers, {host[:80]!r}")
        if not self.terms.is_alike(greeting):  # whose lists of hosts differ, the leader will say
            different = self.terms.other_job(greeting)
            raise OtherJobError(f"another job's host answers, {host!r}: {different}")

    def _await_welcome(self, wire: Wire) -> None:
        """Say who we are, and wait until the leader believes it."""
        deadline, said_hello = time.monotonic() + GREETING_SECONDS, False
        while not self._closing:
            self._selector.modify(wire, wire.interest)
            if wire in self._select(min(1.0, deadline - time.monotonic())):
                wire.flush()
                try:
                    messages = wire.receive()
                except SecretError:
                    if wire.conversation.agreed and not said_hello:
                        wire.send(self.terms.hello())  # the leader is to know it as well
                    raise
                for number, message in enumerate(messages, 1):
                    if message.get("type") == "welcome":
                        self._hear(messages[number:])
                        return
                    if message.get("type") == "refused":
                        kind = FinalError if message.get("final") else PeerError
                        raise kind(f"this host was turned away: {message.get('reason')}")
            if wire.conversation.agreed and not said_hello:
                deadline, said_hello = time.monotonic() + WELCOME_SECONDS, True
                wire.conversation.limit = MESSAGE_BYTES
                wire.send(self.terms.hello())
            if time.monotonic() >= deadline:
                raise PeerError("it does not answer")
        raise PeerError("this host is ending")

    def _hear(self, messages: list[dict[str, Json]]) -> None:
        try:
            for message in messages:
                self._take(message)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise PeerError("what it says makes no sense") from None

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
