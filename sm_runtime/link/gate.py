"""The gate of the host that leads: who may come in while the job starts, and who may not."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from selectors import EVENT_READ, BaseSelector
from typing import TYPE_CHECKING, TypeAlias

from sm_runtime.errors import LaunchError
from sm_runtime.link import network
from sm_runtime.link.common import Terms
from sm_runtime.link.secure import MESSAGE_BYTES, Conversation, PeerError, SecretError, new_pair
from sm_runtime.link.wire import Wire

if TYPE_CHECKING:
    from sm_runtime.model import Json

    Then: TypeAlias = Callable[[tuple[str, ...], str], None]

log = logging.getLogger(__name__)

PORTS = 10
"""How many ports the leader may move up, its own being taken."""
GREETING_SECONDS = 10.0
"""How long somebody unknown may take to become known."""
MAX_UNKNOWN = 64
"""How many may try at once; the oldest that has not said who it is goes first."""
MAX_LINES = 20
"""How many lines in the log strangers may cause."""


class Gate:
    """A listening socket, and whoever has come to it and is not yet known to be a host.

    ``order`` has something done in the link's thread, where all of this runs. ``admit`` is given
    each host with its connection; ``accuse`` is told of a host that comes with another secret.
    """

    def __init__(
        self,
        terms: Terms,
        address: str,
        selector: BaseSelector,
        order: Callable[[Callable[[], None]], None],
        admit: Callable[[str, Wire], None],
        accuse: Callable[[str, str], None],
    ) -> None:
        self.wires: list[Wire] = []
        self.listener = _listen(address, terms.port)
        self.missing = list(terms.hosts[1:])
        """The hosts that have not come."""
        self.causes: dict[str, str] = {}
        """Why whoever said that he is a host was turned away."""
        self._terms, self._selector, self._order = terms, selector, order
        self._admit, self._accuse = admit, accuse
        self._pair = new_pair()
        self._lookups: dict[str, list[Then]] = {}
        self._lines = 0
        selector.register(self.listener, EVENT_READ)

    def accept(self) -> None:
        """Begin to talk with somebody."""
        try:
            sock, remote = self.listener.accept()
        except OSError:
            return
        conversation = Conversation(
            self._terms.greeting(),
            self._terms.secret,
            leads=True,
            examine=self._examine,
            pair=self._pair,
        )
        try:
            wire = Wire(sock, str(remote[0]), conversation)
        except OSError:  # it is gone already
            sock.close()
            return
        if len(self.wires) >= MAX_UNKNOWN:
            silent = [wire for wire in self.wires if not wire.conversation.agreed]
            self._drop((silent or self.wires)[0])
        self.wires.append(wire)
        self._selector.register(wire, wire.interest)

    def serve(self, wire: Wire) -> None:
        """Read and write what goes on a connection that is not a host's yet."""
        try:
            wire.flush()
            known = wire.conversation.agreed
            wire.held += wire.receive()
            if len(wire.held) > 1:  # its hello, and nothing else until it is let in
                raise PeerError("it says too much")
            if wire.conversation.agreed and not known:
                self._greet(wire)
            self._judge(wire)
        except PeerError as error:
            self._turn_away(wire, error)

    def expire(self) -> None:
        """Close the connections of those who do not say who they are."""
        now = time.monotonic()
        for wire in list(self.wires):
            if now - wire.opened > GREETING_SECONDS:
                self._turn_away(wire, PeerError("it does not say who it is"))

    def close(self) -> None:
        """Listen no more, and close what is open."""
        if self.listener.fileno() >= 0:
            with contextlib.suppress(KeyError, ValueError, RuntimeError):
                self._selector.unregister(self.listener)
            self.listener.close()
        for wire in list(self.wires):
            self._drop(wire)

    def _examine(self, greeting: dict[str, Json]) -> None:
        """Check what somebody says of himself; raises PeerError."""
        if not self._terms.is_alike(greeting):
            raise PeerError(f"it belongs to another job: {self._terms.other_job(greeting)}")

    def _greet(self, wire: Wire) -> None:
        """Prove the secret; without one, look up the address of who this says he is."""
        self._check_missing(_claimed(wire))
        wire.send({"type": "known"})
        if self._terms.secret:
            wire.at_home = True
        else:
            self._look_up(_claimed(wire), partial(self._judge_address, wire))

    def _check_missing(self, host: str) -> None:
        if host not in self._terms.hosts:
            leader = self._terms.leader
            text = f"{host[:80]} is none of the hosts that {leader} knows: their lists differ"
            raise PeerError(text)
        if host not in self.missing:
            raise PeerError(f"{host} has come already")

    def _judge_address(self, wire: Wire, addresses: tuple[str, ...], cause: str) -> None:
        if wire not in self.wires:
            return
        wire.at_home = wire.address in addresses
        try:
            if not wire.at_home:
                stands = f"stands for {', '.join(addresses)}" if addresses else cause
                raise PeerError(f"it is not at the address of {_claimed(wire)}, which {stands}")
            self._judge(wire)
        except PeerError as error:
            self._turn_away(wire, error)

    def _judge(self, wire: Wire) -> None:
        """Let in who has said hello and is who he says."""
        if not wire.at_home or not wire.held:
            return
        host = _claimed(wire)
        self._check_missing(host)  # another may have been faster
        if wire.held[0].get("type") != "hello":
            raise PeerError("it does not say hello")
        self.wires.remove(wire)
        self.missing.remove(host)
        wire.host, wire.conversation.limit = host, MESSAGE_BYTES
        self._admit(host, wire)
        if not self.missing:
            self.close()

    def _turn_away(self, wire: Wire, error: PeerError) -> None:
        greeting = wire.conversation.peer or {}
        host = _claimed(wire)
        if wire.conversation.agreed:
            with contextlib.suppress(PeerError):
                final = host not in self.missing
                wire.send({"type": "refused", "reason": str(error), "final": final})
        self._drop(wire)
        if host in self.missing:
            self.causes[host] = f"{wire.address} was turned away: {error}"
            if isinstance(error, SecretError) and self._terms.is_alike(greeting):
                # Whoever is at the host's address is the host; from elsewhere it means nothing.
                self._look_up(host, partial(self._check_accusation, wire, str(error)))
        self._lines += 1
        if self._lines <= MAX_LINES:
            log.warning("a connection from %s was closed: %s", wire.address, error)
        if self._lines == MAX_LINES:
            log.warning("connections that are closed from now on are not told of")

    def _check_accusation(
        self, wire: Wire, why: str, addresses: tuple[str, ...], cause: str
    ) -> None:
        host = _claimed(wire)
        if wire.address in addresses and host in self.missing:
            self._accuse(host, f"{host} ({wire.address}): {why}")

    def _look_up(self, host: str, then: Then) -> None:
        """Look a host's name up in a thread, one for each name: a server may take seconds."""
        waiting = self._lookups.setdefault(host, [])
        waiting.append(then)
        if len(waiting) > 1:
            return

        def resolve() -> None:
            addresses, cause = network.resolve(host)

            def tell() -> None:
                for one in self._lookups.pop(host):
                    one(addresses, cause)

            self._order(tell)

        threading.Thread(target=resolve, name="link-names", daemon=True).start()

    def _drop(self, wire: Wire) -> None:
        if wire in self.wires:
            self.wires.remove(wire)
        with contextlib.suppress(KeyError, ValueError, RuntimeError):
            self._selector.unregister(wire)
        wire.close()


def _claimed(wire: Wire) -> str:
    return str((wire.conversation.peer or {}).get("host", ""))


def _listen(address: str, first: int) -> socket.socket:
    """Return a socket that listens at ``address``, on the first of ten ports that is free."""
    problem = ""
    for port in range(first, first + PORTS):
        listener = socket.socket(network.family_of(address), socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen(128)
        except (OSError, OverflowError) as error:  # 65535 is the last
            listener.close()
            problem = getattr(error, "strerror", None) or str(error)
            continue
        listener.setblocking(False)
        return listener
    raise LaunchError(
        f"{address}: cannot listen on ports {first} to {first + PORTS - 1}: {problem}"
    )
