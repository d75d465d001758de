"""The leader's side of the link: it serves the other hosts, and the agreement decides for all."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from sm_runtime.cluster.admission import Admission
from sm_runtime.cluster.agreement import MALFORMED, Agreement, Message
from sm_runtime.cluster.connection import Connection, PeerError
from sm_runtime.cluster.notice import Notice

if TYPE_CHECKING:
    from sm_runtime.cluster.link import Link

log = logging.getLogger(__name__)


class Leader:
    """Serves every host that is admitted; without other hosts it opens no socket."""

    def __init__(self, link: Link, address: str) -> None:
        self._link, self._config = link, link.config
        config = self._config
        self._agreement = Agreement(
            config.hosts, patience_seconds=config.patience_seconds, awaited=config.awaited
        )
        self._agreement.joined(config.current, address)
        self._admission = Admission(link, address, self._serve, self._blame)
        self._connections: dict[str, Connection] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Serve the connections until the link is closed."""
        await self._admission.start()
        beat_at, notice = 0.0, Notice(time.monotonic(), self._config.notice_seconds)
        while True:
            now = time.monotonic()
            if now >= beat_at:
                beat_at = now + self._config.beat
                self._admission.expire(now)
                self._beat(notice)
            self._agreement.decide(now)
            self._flush()
            wake_at = min(beat_at, self._agreement.next_time(now))
            timer = asyncio.get_running_loop().call_later(wake_at - now, self._changed.set)
            await self._changed.wait()
            timer.cancel()
            self._changed.clear()

    def report(self, message: Message) -> None:
        """Take a report of this host."""
        self._agreement.report(self._config.current, message, time.monotonic())
        self._flush()
        self._changed.set()

    def close(self) -> None:
        """Close every socket."""
        self._admission.close()
        for connection in self._connections.values():
            connection.close()

    async def _serve(self, host: str, connection: Connection, hello: Message) -> None:
        """Take in a host that is admitted, and its reports until its connection ends."""
        self._connections[host] = connection
        try:
            connection.send({"type": "welcome"})
            self._agreement.joined(host, connection.address)
            for text in self._config.differences(connection.greeting, hello):
                self._blame(host, f"{text}: all hosts of a job need the same")
            while True:
                self._flush()
                self._changed.set()
                message = await connection.receive_within(self._config.silence_seconds)
                self._agreement.report(host, message, time.monotonic())
        except PeerError as error:
            self._lost(host, connection, str(error))
        except MALFORMED:
            self._lost(host, connection, "malformed message")

    def _flush(self) -> None:
        """Send what the agreement has to say."""
        while outgoing := self._agreement.take():
            for receiver, message in outgoing:
                for host in self._config.hosts if receiver is None else (receiver,):
                    self._send(host, message)

    def _send(self, host: str, message: Message) -> None:
        if host == self._config.current:
            self._link.apply(message)
        elif connection := self._connections.get(host):
            try:
                connection.send(message)
            except PeerError as error:
                self._lost(host, connection, str(error))

    def _lost(self, host: str, connection: Connection, why: str) -> None:
        if self._connections.get(host) is not connection:
            return
        del self._connections[host]
        connection.abort()
        self._agreement.lost(host, why, time.monotonic())
        self._link.workers_gone = not self._connections
        self._changed.set()
        self._link.notify()

    def _blame(self, host: str, message: str) -> None:
        self._agreement.blame(host, message, time.monotonic())
        self._changed.set()

    # -- who is waited for -------------------------------------------------------------------

    def _beat(self, notice: Notice) -> None:
        """Say that this host is there, and who is waited for."""
        missing, unready = tuple(self._admission.missing), self._agreement.unready()
        now = time.monotonic()
        state, seconds = self._link.state, notice.seconds(now)
        state.waiting_for = ", ".join(missing or unready)
        for host in list(self._connections):
            self._send(host, {"type": "wait", "hosts": state.waiting_for})
        if state.failure or not state.waiting_for:
            return
        if missing:
            is_over = seconds >= self._config.wait_seconds
            if notice.is_due(now) or is_over:
                self._link.spawn(self._report_missing(missing, seconds, is_over=is_over))
        elif self._config.current not in unready and notice.is_due(now):
            log.info("waiting for %s to be ready (%.0f s)", state.waiting_for, seconds)

    async def _report_missing(
        self, missing: tuple[str, ...], seconds: float, *, is_over: bool
    ) -> None:
        """Log why hosts are missing, or give them up where it ``is_over``."""
        wait, admission = self._config.wait_seconds, self._admission
        causes = "; ".join([f"{host}: {await admission.cause(host)}" for host in missing])
        if not is_over:
            names = ", ".join(missing)
            log.info("waiting for %s (%.0f s / %g s): %s", names, seconds, wait, causes)
        elif admission.missing and self._link.state.failure is None:  # one may have come by now
            hosts, now = tuple(admission.missing), time.monotonic()
            self._agreement.absent(hosts, f"{causes} for {wait:g} s", now)
            self._changed.set()
