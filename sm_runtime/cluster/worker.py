"""A worker's side of the link: one connection, to the leader."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sm_runtime.cluster.agreement import MALFORMED, Message
from sm_runtime.cluster.config import PORTS
from sm_runtime.cluster.connection import (
    MESSAGE_BYTES,
    Connection,
    FinalError,
    PeerError,
    resolve,
    within,
)
from sm_runtime.cluster.notice import Notice

if TYPE_CHECKING:
    from sm_runtime.cluster.link import Link
    from sm_runtime.job.model import Json

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
RETRY_SECONDS = 0.2
WELCOME_SECONDS = 5.0
"""How much longer than the leader this host waits for its admission: it may be told why not."""


class Worker:
    """Looks for the leader, brings it this host's reports, and takes what the hosts agree on."""

    def __init__(self, link: Link) -> None:
        self._link, self._config = link, link.config
        self._connection: Connection | None = None
        self._early: list[Message] = []
        """Reports from before this host was admitted."""
        self._cause = ""
        """Why the leader has not been found."""
        self._has_answer = False
        """Whether something answers at the leader's address, on whatever port."""
        self._is_logged = False

    async def run(self) -> None:
        """Join the leader and take its messages until the job is over."""
        leader = self._config.leader
        try:
            connection = await self._join()
        except PeerError as error:
            self._link.fail(leader, str(error))
            return
        self._connection, self._link.is_admitted = connection, True
        for message in self._early:
            self.report(message)
        tasks = {self._link.spawn(self._read(connection)), self._link.spawn(self._beat(connection))}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

    def report(self, message: Message) -> None:
        """Send a report to the leader, or keep it until it is there."""
        if self._connection is None:
            self._early.append(message)
        else:
            with contextlib.suppress(PeerError):  # the next beat finds the same
                self._connection.send(message)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    async def _read(self, connection: Connection) -> None:
        """Take the leader's messages."""
        try:
            while not self._link.state.finished:
                self._link.apply(await connection.receive_within(self._config.silence_seconds))
        except PeerError as error:
            self._lost(connection, str(error))
        except MALFORMED:
            self._lost(connection, "malformed message")

    async def _beat(self, connection: Connection) -> None:
        """Say again and again that this host is there."""
        try:
            while True:
                connection.send({"type": "beat"})
                await asyncio.sleep(self._config.beat)
        except PeerError as error:
            self._lost(connection, str(error))

    def _lost(self, connection: Connection, why: str) -> None:
        leader = self._config.leader
        self._link.fail(leader, f"{leader} ({connection.address}) is lost: {why}")

    # -- looking for the leader --------------------------------------------------------------

    async def _join(self) -> Connection:
        """Return the connection to the leader; raises PeerError where there will be none."""
        config, offset = self._config, 0
        notice = Notice(time.monotonic(), config.notice_seconds)
        while True:
            if connection := await self._try(config.port + offset):
                return connection
            leader, wait, now = config.leader, config.wait_seconds, time.monotonic()
            seconds = notice.seconds(now)
            if seconds >= wait:
                raise PeerError(f"{leader}: {self._cause} for {wait:g} s")
            self._link.state.waiting_for = leader
            if notice.is_due(now):
                log.info("waiting for %s (%.0f s / %g s): %s", leader, seconds, wait, self._cause)
            # An address that does not answer at all has no other port that would.
            offset = (offset + 1) % PORTS if self._has_answer else 0
            await asyncio.sleep(0.0 if offset else RETRY_SECONDS)

    async def _try(self, port: int) -> Connection | None:
        """Return the connection to the leader at a port, or note why there is none."""
        leader = self._config.leader
        addresses, self._cause = await resolve(leader)
        self._has_answer = False
        for address in addresses:
            try:
                return await self._greet(address, port)
            except FinalError as error:
                raise PeerError(f"{leader} ({address}): {error}") from None
            except PeerError as error:
                self._has_answer, reason = True, str(error)
                if not self._is_logged:  # once: it may be no more than a neighbour
                    self._is_logged = True
                    log.warning("%s port %d: %s", address, port, reason)
            except OSError as error:
                self._has_answer |= isinstance(error, ConnectionRefusedError)
                reason = os.strerror(error.errno) if error.errno else str(error)
            self._cause = f"{address} port {port}: {reason}"
        return None

    async def _greet(self, address: str, port: int) -> Connection:
        """Connect, and be admitted; raises OSError and PeerError."""
        config = self._config
        connection = await Connection.open(address, port, config.secret, CONNECT_SECONDS)
        try:
            greetings = connection.exchange_greetings(config.greeting(), self._examine, leads=False)
            await within(greetings, config.greeting_seconds / 2)  # it begins at once
            connection.send(config.hello())
            connection.limit_bytes = MESSAGE_BYTES
            seconds = config.greeting_seconds + WELCOME_SECONDS
            answer = await within(connection.receive(), seconds)
            if answer.get("type") == "refused":
                kind = FinalError if answer.get("final") else PeerError
                raise kind(f"this host was turned away: {answer.get('reason')}")
            if answer.get("type") != "welcome":
                raise PeerError("unexpected message before admission")
            return connection
        except TimeoutError:
            connection.abort()
            raise PeerError("it does not answer") from None
        except BaseException:
            connection.close()
            raise

    def _examine(self, greeting: Mapping[str, Json]) -> None:
        host = str(greeting.get("host"))
        different = self._config.other_job(greeting)
        if different or host != self._config.leader:
            more = f": {different}" if different else ""
            raise PeerError(f"another job's host answers, {host[:80]!r}{more}")
