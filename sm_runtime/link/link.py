"""The link between the hosts of a job: what this host reports, and what all hosts have agreed on.

Each host keeps one connection to the leader for the whole job. Sockets belong to an event loop in a
thread of its own; the main thread reports, and reads the state. A single host has neither a thread
nor a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping

from sm_runtime import __version__
from sm_runtime.errors import LaunchError
from sm_runtime.failure import Failure
from sm_runtime.frozen import dataclass, field
from sm_runtime.link import network
from sm_runtime.link.agreement import Agreement, Priority, State, peer_failure
from sm_runtime.link.connection import (
    GREETING_BYTES,
    MESSAGE_BYTES,
    Connection,
    PeerError,
    SecretError,
)
from sm_runtime.model import Cluster

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from typing import Any

    from sm_runtime.link.agreement import Message
    from sm_runtime.model import Json

log = logging.getLogger(__name__)

PORTS = 10
"""How many ports the leader tries, its own being taken."""
MAX_CLIENTS = 64
"""How many clients that are not admitted may be connected; the oldest silent one is dropped."""
MAX_LINES = 20
"""How many lines of the log clients that are not admitted may cause."""
NAME_LENGTH = 128
"""How much of a job's name a host says of itself."""
LIST_BYTES = 2048
"""The most bytes of a list of hosts that a host sends before it is admitted."""
NOTICE_SECONDS = 10.0
"""How often the log says what is waited for."""
CONNECT_SECONDS = 3.0
RETRY_SECONDS = 0.2
WELCOME_SECONDS = 15.0
"""How long the leader may take to look up the name of a host."""
READ_SECONDS = 0.1
"""How long what has arrived may take to be read, this process having been suspended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
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

    def is_same(self, greeting: Mapping[str, Json]) -> bool:
        """Whether a host with this greeting has the same job, with the same hosts."""
        return bool(greeting.get("job") == self.greeting()["job"])

    def is_alike(self, greeting: Mapping[str, Json]) -> bool:
        """Whether a host with this greeting has the same job, though maybe other hosts."""
        return self.is_same(greeting) or greeting.get("name") == self.job_name[:NAME_LENGTH]

    def other_job(self, greeting: Mapping[str, Json]) -> str:
        """Return, in words, how the job of a host with this greeting is another."""
        name = str(greeting.get("name"))[:NAME_LENGTH]
        return f"its job's name is {name!r} and this one's {self.job_name!r}"

    def differences(self, host: str, hello: Mapping[str, Json], *, same: bool) -> list[str]:
        """Return, in words, what is not the same on another host as on this one."""
        found = []
        if not same:
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
        self._side: _Side = _Leader(self, address) if _leads(config) else _Worker(self)
        self._loop = asyncio.new_event_loop() if len(config.hosts) > 1 else None
        self._lock = threading.Lock()
        self._main: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def start(self) -> None:
        """Begin to look for the others."""
        if self._loop is not None:
            self._main = self._loop.create_task(self._side.run())
            self._thread.start()

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
        if self._loop is None:
            self._side.report(message)
            return
        with self._lock, contextlib.suppress(RuntimeError):  # the loop is closed: the job is over
            self._loop.call_soon_threadsafe(self._safely, lambda: self._side.report(message))

    # -- the end -----------------------------------------------------------------------------

    def close(self, seconds: float = 2.0) -> None:
        """End the thread and close every socket; what is written is sent first."""
        if self._loop is None:
            return
        if self._thread.is_alive():
            with self._lock, contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cancel)
            self._thread.join(seconds)
        elif not self._loop.is_closed():  # it was never started
            self._shut()

    def _cancel(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def _run(self) -> None:
        assert self._loop is not None and self._main is not None
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self.broken(error)
        finally:
            self._shut()
            self.state.finished = self.workers_gone = True
            self.notify()

    def _shut(self) -> None:
        assert self._loop is not None
        self._loop.run_until_complete(self._wind_up())
        with self._lock:
            self._loop.close()

    async def _wind_up(self) -> None:
        """End all tasks; what is written goes as far as the connections take it."""
        self._side.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # connections that are closed let go of their sockets

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

    def broken(self, error: Exception) -> None:
        """Take it that the link itself is at fault: the job has failed."""
        log.error("the link between the hosts failed", exc_info=error)
        self.fail(self.config.current, f"{type(error).__name__}: {error}")

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.broken(error)
            self._cancel()


class _Side:
    """The leader's or a worker's side of the link."""

    def __init__(self, link: Link) -> None:
        self.link, self.config = link, link.config
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Serve the connections until the job is over."""
        raise NotImplementedError

    def report(self, message: Message) -> None:
        """Bring a report of this host to the agreement."""
        raise NotImplementedError

    def close(self) -> None:
        """Close every socket."""
        raise NotImplementedError

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self.link.broken(error)
            self.link._cancel()


class _Leader(_Side):
    """Admits the other hosts, and has the agreement decide for all."""

    def __init__(self, link: Link, address: str) -> None:
        super().__init__(link)
        config = self.config
        self._agreement = Agreement(
            config.hosts, patience_seconds=config.patience_seconds, awaited=config.awaited
        )
        self._agreement.joined(config.current, address)
        self._missing = list(config.hosts[1:])
        """The hosts that have not been admitted."""
        self._socket = _listen(address, config.port) if self._missing else None
        self._server: asyncio.Server | None = None
        self._connections: dict[str, Connection] = {}
        self._clients: dict[Connection, asyncio.Task[None]] = {}
        """Connections that are not admitted, with the task that serves each."""
        self._causes: dict[str, str] = {}
        """Why a client that said that it is a missing host was turned away."""
        self._lookups: dict[str, asyncio.Future[tuple[tuple[str, ...], str]]] = {}
        self._lines = 0
        self._changed: asyncio.Event | None = None

    async def run(self) -> None:
        """Serve the connections until the link is closed."""
        self._changed = asyncio.Event()  # in Python 3.10 it belongs to the loop that runs
        self._server = await asyncio.start_server(
            self._accept, sock=self._socket, limit=GREETING_BYTES
        )
        beat_at, notice = 0.0, Notice()
        while True:
            now = time.monotonic()
            if now >= beat_at:
                beat_at = now + self.config.beat
                self._beat(notice)
            self._agreement.decide(now)
            self._flush()
            next_time = self._agreement.next_time(now)
            wake_at = beat_at if next_time is None else min(beat_at, next_time)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.0, wake_at - time.monotonic()))
            self._changed.clear()

    def report(self, message: Message) -> None:
        """Take a report of this host."""
        self._report(self.config.current, message)

    def close(self) -> None:
        """Close every socket."""
        self._close_server()
        for connection in (*self._connections.values(), *self._clients):
            connection.close()

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
        elif self._socket is not None:
            self._socket.close()

    # -- admission ---------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client in a task of its own."""
        connection = Connection(reader, writer, self.config.secret)
        if len(self._clients) >= MAX_CLIENTS:
            silent = [client for client in self._clients if not client.greeting]
            self._clients.pop((silent or list(self._clients))[0]).cancel()
        self._clients[connection] = self._spawn(self._serve(connection))

    async def _serve(self, connection: Connection) -> None:
        """Admit a client, and take its reports, until the connection ends."""
        try:
            admission = self._admit(connection)
            host = await asyncio.wait_for(admission, self.config.greeting_seconds)
        except asyncio.TimeoutError:
            self._turn_away(connection, PeerError("it does not say who it is"))
        except PeerError as error:
            self._turn_away(connection, error)
        except asyncio.CancelledError:
            connection.abort()
            raise
        else:
            await self._listen(host, connection)
        finally:
            self._clients.pop(connection, None)

    async def _admit(self, connection: Connection) -> str:
        """Return the host that a client is; raises PeerError where it is none that is missing."""
        config = self.config
        await connection.exchange_greetings(config.greeting(), leads=True)
        if not config.is_alike(connection.greeting):
            text = config.other_job(connection.greeting)
            raise PeerError(f"it belongs to another job: {text}")
        connection.agree()
        host = _claimed(connection)
        self._check_missing(host)
        hello = await connection.receive()
        if hello.get("type") != "hello":
            raise PeerError("unexpected message before admission")
        if not config.secret:
            addresses, cause = await self._resolve(host)
            if connection.address not in addresses:
                known = f"resolves to {', '.join(addresses)}" if addresses else f"fails: {cause}"
                raise PeerError(f"it is not at the address of {host}, whose name {known}")
        self._check_missing(host)  # another client may have been faster
        self._missing.remove(host)
        self._clients.pop(connection, None)
        self._welcome(host, connection, hello)
        return host

    def _welcome(self, host: str, connection: Connection, hello: Mapping[str, Json]) -> None:
        config = self.config
        connection.limit_bytes = MESSAGE_BYTES
        self._connections[host] = connection
        connection.send({"type": "welcome"})
        self._agreement.joined(host, connection.address)
        same = config.is_same(connection.greeting)
        for text in config.differences(host, hello, same=same):
            self._blame(host, f"{text}: all hosts of a job need the same")
        if not self._missing:
            self._close_server()
        self._wake()

    def _check_missing(self, host: str) -> None:
        if host not in self.config.hosts:
            leader = self.config.leader
            text = f"{host[:80]} is not in the list of hosts of {leader}: their lists differ"
            raise PeerError(text)
        if host not in self._missing:
            raise PeerError(f"{host} is already connected")

    def _turn_away(self, connection: Connection, error: PeerError) -> None:
        host = _claimed(connection)
        is_missing = host in self._missing
        if connection.greeting:
            with contextlib.suppress(PeerError):
                refused = {"type": "refused", "reason": str(error), "final": not is_missing}
                connection.send(refused)
        connection.close()
        if is_missing:
            self._causes[host] = f"{connection.address} was turned away: {error}"
            if isinstance(error, SecretError) and self.config.is_alike(connection.greeting):
                self._spawn(self._check_secret(host, connection.address, str(error)))
        self._lines += 1
        if self._lines <= MAX_LINES:
            log.warning("a connection from %s was closed: %s", connection.address, error)
        if self._lines == MAX_LINES:
            log.warning("no more connections that are closed are logged")

    async def _check_secret(self, host: str, address: str, why: str) -> None:
        """Fail where a host has another secret; from another address it means nothing."""
        addresses, _ = await self._resolve(host)
        if address in addresses and host in self._missing:
            self._blame(host, f"{host} ({address}): {why}")
            self._wake()

    async def _resolve(self, host: str) -> tuple[tuple[str, ...], str]:
        """Look up the name of a host in a thread, one for each name: a server may take seconds."""
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = _in_thread(lambda: network.resolve(host))
            lookup.add_done_callback(lambda _: self._lookups.pop(host))
        return await asyncio.shield(lookup)

    # -- the hosts that are there ------------------------------------------------------------

    async def _listen(self, host: str, connection: Connection) -> None:
        """Take the reports of a host until its connection ends."""
        try:
            while True:
                message = await connection.receive()
                try:
                    self._report(host, message)
                except (AttributeError, KeyError, TypeError, ValueError):
                    raise PeerError("malformed message") from None
        except PeerError as error:
            self._lost(host, connection, str(error))

    def _report(self, host: str, message: Message) -> None:
        self._agreement.report(host, message, time.monotonic())
        self._flush()
        self._wake()

    def _flush(self) -> None:
        """Send what the agreement has to say."""
        while outgoing := self._agreement.take():
            for host, message in outgoing:
                for receiver in self.config.hosts if host is None else (host,):
                    self._send(receiver, message)

    def _send(self, host: str, message: Message) -> None:
        if host == self.config.current:
            self.link.apply(message)
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
        self.link.workers_gone = not self._connections
        self._wake()
        self.link.notify()

    def _blame(self, host: str, message: str) -> None:
        found = peer_failure(host, message, has_started=self._agreement.has_started)
        self._agreement.blame(found, Priority.HOST_LOST, time.monotonic())

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    # -- now and then ------------------------------------------------------------------------

    def _beat(self, notice: Notice) -> None:
        """Say that this host is there, and look whether the others are."""
        missing, state = tuple(self._missing), self.link.state
        state.waiting_for = ", ".join(missing or self._agreement.unready())
        for host, connection in list(self._connections.items()):
            self._send(host, {"type": "wait", "hosts": state.waiting_for})
            if connection.is_silent(self.config.silence_seconds):
                self._spawn(self._check_silence(host, connection))
        if state.failure or state.start or not missing:
            is_ready = self.config.current not in self._agreement.unready()
            if state.waiting_for and is_ready and notice.is_due():
                log.info("waiting for %s to be ready (%.0f s)", state.waiting_for, notice.seconds)
            return
        is_over = notice.seconds >= self.config.wait_seconds
        if notice.is_due() or is_over:
            self._spawn(self._report_missing(missing, notice.seconds, is_over=is_over))

    async def _check_silence(self, host: str, connection: Connection) -> None:
        """Give up a silent host, unless this process was suspended and has not read since."""
        await asyncio.sleep(READ_SECONDS)
        if connection.is_silent(self.config.silence_seconds):
            why = f"it has been silent for {self.config.silence_seconds:g} s"
            self._lost(host, connection, why)

    async def _report_missing(
        self, missing: tuple[str, ...], seconds: float, *, is_over: bool
    ) -> None:
        """Log why hosts are missing, or give them up where it ``is_over``."""
        wait = self.config.wait_seconds
        causes = "; ".join([f"{host}: {await self._cause(host)}" for host in missing])
        if not is_over:
            log.info(
                "waiting for %s (%.0f s / %g s): %s", ", ".join(missing), seconds, wait, causes
            )
        elif self._missing and self.link.state.failure is None:  # one may have come by now
            self._agreement.absent(
                tuple(self._missing), f"{causes} for {wait:g} s", time.monotonic()
            )
            self._wake()

    async def _cause(self, host: str) -> str:
        if turned_away := self._causes.get(host):
            return turned_away
        addresses, cause = await self._resolve(host)
        return cause or f"has not connected (resolved {', '.join(addresses)})"


class FinalError(PeerError):
    """The leader will never admit this host."""


class OtherJobError(PeerError):
    """What answers in the leader's place belongs to another job, as far as names tell."""


class _Worker(_Side):
    """Keeps one connection to the leader."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._connection: Connection | None = None
        self._early: list[Message] = []
        """Reports from before this host was admitted."""

    async def run(self) -> None:
        """Join the leader and take its messages until the job is over."""
        connection = await self._join()
        if connection is None:
            return
        self._connection, self.link.is_admitted = connection, True
        try:
            for message in self._early:
                connection.send(message)
            self._spawn(self._beat(connection))
            while not self.link.state.finished:
                message = await connection.receive()
                try:
                    self.link.apply(message)
                except (AttributeError, KeyError, TypeError, ValueError):
                    raise PeerError("malformed message") from None
        except PeerError as error:
            self._lost(str(error))
        connection.close()

    def report(self, message: Message) -> None:
        """Send a report to the leader, or keep it until it is there."""
        if self._connection is None:
            self._early.append(message)
        else:
            with contextlib.suppress(PeerError):  # reading finds the same
                self._connection.send(message)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _lost(self, why: str) -> None:
        leader = self.config.leader
        if not self.link.state.finished:
            address = self._connection.address if self._connection else ""
            self.link.fail(leader, f"{leader} ({address}) is lost: {why}")

    async def _beat(self, connection: Connection) -> None:
        """Say that this host is there, and look whether the leader is."""
        silence = self.config.silence_seconds
        while True:
            with contextlib.suppress(PeerError):  # reading finds the same
                connection.send({"type": "beat"})
            if connection.is_silent(silence):
                await asyncio.sleep(READ_SECONDS)  # suspended, this process has not read since
                if connection.is_silent(silence):
                    self._lost(f"it has been silent for {silence:g} s")
                    self.link._cancel()
                    return
            await asyncio.sleep(self.config.beat)

    async def _join(self) -> Connection | None:
        """Return the connection to the leader; None where it never came, or never will."""
        config, notice = self.config, Notice()
        leader, port = config.leader, config.port
        is_logged = False
        while True:
            addresses, cause = await _in_thread(lambda: network.resolve(leader))
            has_other_ports = False
            for address in addresses:
                try:
                    return await self._greet(address, port)
                except OSError as error:
                    has_other_ports |= isinstance(error, ConnectionRefusedError)
                    reason = os.strerror(error.errno) if error.errno else str(error)
                    cause = f"{address} port {port}: {reason}"
                except (SecretError, FinalError) as error:
                    self.link.fail(leader, f"{leader} ({address}): {error}")
                    return None
                except PeerError as error:
                    has_other_ports = True
                    cause = f"{address} port {port}: {error}"
                    if isinstance(error, OtherJobError) and not is_logged:
                        is_logged = True  # it may be no more than a neighbour
                        log.warning("%s", cause)
            if notice.seconds >= config.wait_seconds:
                self.link.fail(leader, f"{leader}: {cause} for {config.wait_seconds:g} s")
                return None
            self.link.state.waiting_for = leader
            if notice.is_due():
                seconds, wait = notice.seconds, config.wait_seconds
                log.info("waiting for %s (%.0f s / %g s): %s", leader, seconds, wait, cause)
            # An address that does not answer at all has no other port that would.
            offset = (port - config.port + 1) % PORTS if has_other_ports else 0
            port = config.port + offset
            await asyncio.sleep(0.0 if offset else RETRY_SECONDS)

    async def _greet(self, address: str, port: int) -> Connection:
        """Connect, and be admitted; raises OSError and PeerError."""
        config = self.config
        connection = await Connection.open(address, port, config.secret, CONNECT_SECONDS)
        try:
            greetings = connection.exchange_greetings(config.greeting(), leads=False)
            await asyncio.wait_for(greetings, config.greeting_seconds)
            self._examine(connection.greeting)
            connection.agree()
            connection.send(config.hello())
            connection.limit_bytes = MESSAGE_BYTES
            answer = await asyncio.wait_for(connection.receive(), WELCOME_SECONDS)
            if answer.get("type") == "refused":
                kind = FinalError if answer.get("final") else PeerError
                raise kind(f"this host was turned away: {answer.get('reason')}")
            if answer.get("type") != "welcome":
                raise PeerError("unexpected message before admission")
            return connection
        except asyncio.TimeoutError:
            connection.abort()
            raise PeerError("it does not answer") from None
        except BaseException:
            connection.close()
            raise

    def _examine(self, greeting: Mapping[str, Json]) -> None:
        host = str(greeting.get("host"))
        shown = repr(host[:80])
        if host != self.config.leader:
            raise PeerError(f"another job's host answers, {shown}")
        if not self.config.is_alike(greeting):  # where lists of hosts differ, the leader says so
            different = self.config.other_job(greeting)
            raise OtherJobError(f"another job's host answers, {shown}: {different}")


class Notice:
    """Says when it is time for a line in the log: every 10 s."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._next = self.started + NOTICE_SECONDS

    def is_due(self) -> bool:
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


def _leads(config: ClusterConfig) -> bool:
    return config.current == config.leader


def _claimed(connection: Connection) -> str:
    return str(connection.greeting.get("host", ""))


def _in_thread(work: Callable[[], Any]) -> asyncio.Future[Any]:
    """Have something done in a daemon thread, which may outlive the loop."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(result: Any) -> None:
        if not future.done():
            future.set_result(result)

    def run() -> None:
        result = work()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, result)

    threading.Thread(target=run, name="link-names", daemon=True).start()
    return future


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
