"""The link between the hosts of a job: what this host reports, and what all hosts have agreed on.

Each host keeps one connection to the leader for the whole job. Sockets belong to an event loop in a
thread of its own; the main thread reports, and reads the state. A single host has neither a thread
nor a socket.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping

from sm_runtime.cluster.agreement import Message, Priority, State, peer_failure
from sm_runtime.cluster.config import ClusterConfig
from sm_runtime.cluster.leader import Leader
from sm_runtime.cluster.worker import Worker
from sm_runtime.job.failure import Failure

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
