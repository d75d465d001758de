"""The link between the hosts of a job: what this host reports, and what all hosts have agreed on.

``Link`` is a host's side of it, with a ``Leader`` or a ``Worker`` inside.

Each host keeps one connection to the leader for the whole job. Sockets belong to an event loop in a
thread of its own; the main thread reports, and reads the state. A single host has neither a thread
nor a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping

from sm_runtime.cluster.agreement import (
    MALFORMED,
    PORTS,
    Agreement,
    ClusterConfig,
    Message,
    Notice,
    Priority,
    State,
    peer_failure,
)
from sm_runtime.cluster.connection import (
    MESSAGE_BYTES,
    Admission,
    Connection,
    FinalError,
    PeerError,
    resolve,
    within,
)
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Json

log = logging.getLogger(__name__)


class Link:
    """This host's side: reports from the main thread, and the state that all hosts agree on.

    ``notify`` is called whenever the state has changed, from the link's thread where there is one.
    The leader listens at ``address`` while the job starts. Raises LaunchError where it cannot.
    """

    def __init__(
        self, config: ClusterConfig, notify: Callable[[], None], address: str = ""
    ) -> None:
        self.config, self.notify = config, notify
        self.state = State()
        self.is_admitted = False
        """Whether the leader has admitted this host."""
        self.workers_gone = len(config.hosts) == 1
        """Whether no other host is connected any more, on the leader."""
        leads = config.current == config.leader
        self._side = Leader(self, address) if leads else Worker(self)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        """Held while the loop is used from another thread, or given up."""
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to look for the others."""
        if len(self.config.hosts) > 1:
            is_running = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(is_running,), name="link", daemon=True
            )
            self._thread.start()
            is_running.wait()

    # -- reports -----------------------------------------------------------------------------

    def ready(self, ports: Mapping[str, int], interface: str = "") -> None:
        """Report that this host could start, with what is free and in use on it."""
        self._report({"type": "ready", "ports": dict(ports), "interface": interface})

    def finished(self, *, began: bool = True) -> None:
        """Report that this host's part ended well, and whether a script ever ``began`` here."""
        self._report({"type": "finished", "began": began})

    def failed(self, failure: Failure, priority: int = Priority.FAILED) -> None:
        """Report that this host's part failed; of several reasons the least priority counts."""
        self._report({"type": "failed", "failure": failure.as_dict(), "priority": int(priority)})

    def stopped(self, reason: str) -> None:
        """Report that this host received a request to stop."""
        self._report({"type": "stopped", "reason": reason})

    def done(self) -> None:
        """Report that nothing is left to do on this host."""
        self._report({"type": "done"})

    def send(self, host: str, message: Message) -> None:
        """Send a message into the inbox of another host: of any, as leader, or of the leader."""
        self._report({"type": "pass", "to": host, "message": message})

    def _report(self, message: Message) -> None:
        if self._thread is None:
            self._side.report(message)
        else:
            self._call(lambda: self.spawn(self._deliver(message)))

    async def _deliver(self, message: Message) -> None:
        self._side.report(message)

    # -- the thread --------------------------------------------------------------------------

    def close(self, seconds: float = 2.0) -> None:
        """End the thread and close every socket; what is written is sent first."""
        if self._thread is None:
            self._side.close()
        else:
            self._call(self._cancel)
            self._thread.join(seconds)

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do something in the link's loop; an error that it raises ends the job."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself would not keep it
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._broken(error)
            self._cancel()

    def _call(self, action: Callable[[], object]) -> None:
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(action)

    def _cancel(self) -> None:
        self._main.cancel()

    def _run(self, is_running: threading.Event) -> None:
        async def serve() -> None:
            self._loop, self._main = asyncio.get_running_loop(), self.spawn(self._side.run())
            is_running.set()
            try:
                await asyncio.wait({self._main})
            finally:
                self._side.close()
                await asyncio.sleep(0)  # connections that are closed let go of their sockets
                with self._lock:
                    self._loop = None

        asyncio.run(serve())
        self.state.finished = self.workers_gone = True
        self.notify()

    # -- what the sides do -------------------------------------------------------------------

    def apply(self, message: Message) -> None:
        """Take a message of the agreement."""
        self.state.apply(message)
        self.notify()

    def fail(self, host: str, message: str) -> None:
        """Take it that another host is lost, or never came, where no other failure is known."""
        if self.state.failure is None:
            has_started = self.state.start is not None
            self.state.failure = peer_failure(host, message, has_started=has_started)
        self.notify()

    def _broken(self, error: BaseException) -> None:
        """Take it that the link itself is at fault: the job has failed."""
        log.error("the link between the hosts failed", exc_info=error)
        self.fail(self.config.current, f"{type(error).__name__}: {error}")


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


CONNECT_SECONDS = 3.0
RETRY_SECONDS, LATE_RETRY_SECONDS = 0.2, 1.0
"""The pause before the leader's ports are tried again: at first, and when that has taken long."""
RETRY_SHARE = 0.05
"""The part of the wait so far that a pause grows to."""
WELCOME_SECONDS = 5.0
"""How much longer than the leader this host waits for its admission: it may be told why not."""


class Worker:
    """Looks for the leader, brings it this host's reports, and takes what the hosts agree on."""

    def __init__(self, link: Link) -> None:
        self._link, self._config = link, link.config
        self._connection: Connection | None = None
        self._early: list[Message] = []
        """Reports from before this host was admitted."""
        self._addresses: tuple[str, ...] = ()
        """Those that the leader's name stands for."""
        self._cause = ""
        """Why the leader has not been found."""
        self._answers = ["", ""]
        """What a host that answered has said, in the last round of ports and in this one."""
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
            if offset == 0:
                self._addresses, self._cause = await resolve(config.leader)
            if connection := await self._try(config.port + offset):
                return connection
            leader, wait, now = config.leader, config.wait_seconds, time.monotonic()
            seconds = notice.seconds(now)
            if seconds >= wait:
                raise PeerError(f"{leader}: {self._why} for {wait:g} s")
            self._link.state.waiting_for = leader
            if notice.is_due(now):
                log.info("waiting for %s (%.0f s / %g s): %s", leader, seconds, wait, self._why)
            # An address that does not answer at all has no other port that would.
            offset = (offset + 1) % PORTS if self._has_answer else 0
            if offset == 0:
                self._answers = [self._answers[1], ""]
            pause = min(max(RETRY_SECONDS, seconds * RETRY_SHARE), LATE_RETRY_SECONDS)
            await asyncio.sleep(0.0 if offset else pause)

    @property
    def _why(self) -> str:
        """Why there is no connection: what was said says more than which port is closed."""
        return self._answers[1] or self._answers[0] or self._cause

    async def _try(self, port: int) -> Connection | None:
        """Return the connection to the leader at a port, or note why there is none."""
        leader = self._config.leader
        self._has_answer = False
        for address in self._addresses:
            try:
                return await self._greet(address, port)
            except FinalError as error:
                raise PeerError(f"{leader} ({address}): {error}") from None
            except PeerError as error:
                self._has_answer, reason = True, str(error)
                self._answers[1] = f"{address} port {port}: {reason}"
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
