"""The worker processes of the front: started, fed with requests, replaced when they die.

A worker is a fresh interpreter, never a fork: TensorFlow's threads do not survive one. It is given
a few requests at a time, and the others wait here, so that little is lost with a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sm_runtime.job.errors import ModelError
from sm_runtime.serving import frames
from sm_runtime.serving.values import Answer, Request, RequestError

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0
"""How long a worker that is told to end may take before it is killed."""
MAX_WAITING = 4096
"""How many requests of a kind may wait for a worker; 503 beyond."""
BUFFER_BYTES = 2**22
"""What the kernel may hold of a body between front and worker, if it allows as much."""
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROGRAM = (
    "import os, sys; sys.path.append(sys.argv[1]);"
    " from sm_runtime.serving.worker import main; main(int(sys.argv[2]), os.environ)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What each worker of a pool is to serve."""

    name: str
    """The name of the model, for people."""
    count: int
    window: int
    """How many requests a worker holds at a time."""
    direct_window: int
    """The same of those for the model itself."""
    start: Mapping[str, Any]
    """What a worker is told first: see worker.py."""
    environ: Mapping[str, str]
    startup_timeout: float
    unpacked: str = ""
    """A folder that is removed with the workers."""


@dataclass(slots=True, eq=False)
class _Job:
    number: int
    request: Request
    is_direct: bool
    """Whether it is for the model itself: the user's handlers wait for such requests."""
    done: asyncio.Future[tuple[Answer, Mapping[str, Any]]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    holder: _Worker | None = None


@dataclass(slots=True, eq=False)
class _Worker(asyncio.Protocol):
    """One process, and this end of its socket."""

    pool: Pool
    process: asyncio.subprocess.Process
    ready: bool = False
    retiring: bool = False
    held: dict[int, _Job] = field(default_factory=dict)
    direct: int = 0
    """How many of those it holds are for the model itself."""
    unsent: list[bytes] = field(default_factory=list)
    started: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""
    transport: Any = None
    reader: frames.Reader | None = None

    def connection_made(self, transport: Any) -> None:
        """Tell the process what it serves."""
        self.transport = transport
        self.reader = frames.Reader(self._take)
        transport.write(frames.prefix({"start": dict(self.pool.plan.start)}, b""))

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer."""
        assert self.reader is not None
        self.reader.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Note that nothing more comes."""
        self.closed.set()

    def give(self, job: _Job) -> None:
        """Send a request; its answer comes by ``_take``."""
        job.holder = self
        self.held[job.number] = job
        self.direct += job.is_direct
        request = job.request
        header = {
            "id": job.number,
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "headers": dict(request.headers),
        }
        if not self.unsent:  # what else is given in this turn of the loop goes with it
            asyncio.get_running_loop().call_soon(self._send)
        self.unsent.append(frames.prefix(header, request.body))
        if len(request.body) < 2**16:
            self.unsent.append(bytes(request.body))
        else:
            self._send()
            self.transport.write(request.body)

    def _send(self) -> None:
        unsent, self.unsent = self.unsent, []
        self.transport.write(b"".join(unsent))

    def release(self, number: int) -> _Job | None:
        """Return a request that it held, and count it no more."""
        job = self.held.pop(number, None)
        if job is not None:
            self.direct -= job.is_direct
        return job

    def _take(self, header: dict[str, Any], body: bytes) -> None:
        if "ready" in header:
            self.ready = True
            if not self.started.done():
                self.started.set_result(None)
        elif "failed" in header:
            self.reason = header["failed"]
        else:
            job = self.release(header["id"])
            if job is not None and not job.done.done():
                answer = Answer(status=header["status"], headers=header["headers"], body=body)
                job.done.set_result((answer, header))
            if self.retiring and not self.held:
                self.kill()
        self.pool.dispatch()

    def holds(self, direct: bool) -> int:
        """Return how many requests of a kind it has been given."""
        return self.direct if direct else len(self.held) - self.direct

    def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


class Pool:
    """The workers that serve one model, or all models of one folder."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._workers: list[_Worker] = []
        self._queues: dict[bool, deque[_Job]] = {False: deque(), True: deque()}
        """Requests for the model itself apart: those who wait for them must not be in their way."""
        self._number = 0
        self._stopping = False
        self._keepers: set[asyncio.Task[None]] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        self.restarts = 0

    @property
    def is_ready(self) -> bool:
        """Whether a worker can answer now."""
        return any(worker.ready and not worker.retiring for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """The processes that are alive."""
        return [worker.process.pid for worker in self._workers]

    @property
    def waiting(self) -> int:
        """How many requests no worker has been given yet."""
        return sum(map(len, self._queues.values()))

    @property
    def under_way(self) -> int:
        """How many requests the workers hold."""
        return sum(len(worker.held) for worker in self._workers)

    async def start(self) -> None:
        """Start all workers and wait until each is warm.

        Raises ModelError with the cause where one cannot start.
        """
        workers = [await self._spawn() for _ in range(self.plan.count)]
        try:
            started = asyncio.gather(*(worker.started for worker in workers))
            await asyncio.wait_for(started, self.plan.startup_timeout)
        except asyncio.TimeoutError:
            await self.stop()
            raise ModelError(
                f"{self.plan.name} was not ready in {self.plan.startup_timeout:g} s"
                " (SAGEMAKER_STARTUP_TIMEOUT)"
            ) from None
        except ModelError:
            await self.stop()
            raise

    async def ask(self, request: Request, timeout: float) -> tuple[Answer, Mapping[str, Any]]:
        """Return a worker's answer, and what it says about it.

        Raises RequestError: 503 where too many wait, 504 after ``timeout`` seconds, 502 where the
        worker died.
        """
        if self._stopping:
            raise RequestError("the server is stopping", 503)
        direct = request.path != "/invocations"
        if len(self._queues[direct]) >= MAX_WAITING:
            raise RequestError(f"{MAX_WAITING} requests are waiting already", 503)
        self._number += 1
        job = _Job(self._number, request, direct)
        self._queues[direct].append(job)
        self.dispatch()
        timer = asyncio.get_running_loop().call_later(timeout, self._expire, job, timeout)
        try:
            return await job.done
        finally:
            timer.cancel()
            del job  # else an error, whose traceback has this frame, would hold the body and itself

    def dispatch(self) -> None:
        """Give waiting requests to the workers that hold the fewest."""
        if not self.waiting:
            return
        free = [worker for worker in self._workers if worker.ready and not worker.retiring]
        for direct, queue in self._queues.items():
            window = self.plan.direct_window if direct else self.plan.window
            while queue and free:
                held, worker = min(((each.holds(direct), each) for each in free), key=_first)
                if held >= window:
                    break
                job = queue.popleft()
                if not job.done.done():
                    worker.give(job)

    async def drain(self, seconds: float) -> None:
        """Wait until the requests that there are are answered, so many seconds at the most."""
        held = [job for worker in self._workers for job in worker.held.values()]
        if jobs := [job.done for job in (*self._queues[False], *self._queues[True], *held)]:
            await asyncio.wait(jobs, timeout=seconds)

    async def stop(self, *, now: bool = False) -> None:
        """End all processes, and return when they are gone; ``now``: without a word to them."""
        self._stopping = True
        for queue in self._queues.values():
            for job in queue:
                if not job.done.done():
                    job.done.set_exception(RequestError("the model is being unloaded", 503))
            queue.clear()
        for task in self._replacing:
            task.cancel()
        for worker in self._workers:
            worker.transport.close()
            if now:
                worker.kill()
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=STOP_SECONDS)
            for worker in self._workers:
                worker.kill()
            if late:
                await asyncio.wait(late)
        if self.plan.unpacked:
            shutil.rmtree(self.plan.unpacked, ignore_errors=True)

    def _expire(self, job: _Job, seconds: float) -> None:
        if not job.done.done():
            text = f"no answer in {seconds:g} s (SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS)"
            job.done.set_exception(RequestError(text, 504))
            self._give_up(job)

    def _give_up(self, job: _Job) -> None:
        """Replace the worker that has not answered in time, once it holds nothing else."""
        worker = job.holder
        if worker is None:
            with contextlib.suppress(ValueError):
                self._queues[job.is_direct].remove(job)
            return
        if worker.release(job.number) is None:
            return
        if not worker.retiring:
            worker.retiring = True
            log.warning("worker %d did not answer in time and is replaced", worker.process.pid)
            self._start_another()
        if not worker.held:
            worker.kill()

    async def _spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-c", _PROGRAM, _ROOT, str(theirs.fileno())),
                    env=dict(self.plan.environ),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
        except BaseException as error:
            ours.close()
            if isinstance(error, OSError):
                raise ModelError(f"a worker process cannot be started: {error}") from error
            raise
        worker = _Worker(self, process)
        ours.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: worker, sock=ours)
        self._workers.append(worker)
        self._keep(self._watch(worker))
        return worker

    def _keep(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._keepers.add(task)
        task.add_done_callback(self._keepers.discard)

    def _start_another(self) -> None:
        task = asyncio.get_running_loop().create_task(self._replace())
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _watch(self, worker: _Worker) -> None:
        """See a process to its end, and start another in its place."""
        status = await worker.process.wait()
        was_ready, worker.ready = worker.ready, False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)  # what the user's code has started
        with contextlib.suppress(asyncio.TimeoutError):  # what it said last is read first
            await asyncio.wait_for(worker.closed.wait(), STOP_SECONDS)
        self._workers.remove(worker)
        worker.transport.close()
        reason = worker.reason or f"the worker process {_how(status)}"
        for job in worker.held.values():
            if not job.done.done():
                job.done.set_exception(RequestError(f"{reason} while it held the request", 502))
        if not worker.started.done():
            lost = f"{self.plan.name}: {reason} before it was ready; its last lines are above"
            worker.started.set_exception(ModelError(worker.reason or lost))
            worker.started.exception()  # it may be that nobody waits for it
        if self._stopping or worker.retiring:
            return
        if was_ready:
            log.warning("%s; another one is started", reason)
            self._start_another()

    async def _until_started(self, worker: _Worker) -> None:
        try:
            started = asyncio.shield(worker.started)
            await asyncio.wait_for(started, self.plan.startup_timeout)
        except asyncio.TimeoutError:
            worker.kill()
            raise ModelError(
                f"{self.plan.name} was not ready in {self.plan.startup_timeout:g} s"
                " (SAGEMAKER_STARTUP_TIMEOUT)"
            ) from None

    async def _replace(self) -> None:
        delay = 0.1
        while not self._stopping:
            self.restarts += 1
            try:
                worker = await self._spawn()
                await self._until_started(worker)
                return
            except ModelError as error:
                log.error("%s; the next attempt follows in %g s", error, delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 30)


def _first(pair: tuple[int, _Worker]) -> int:
    return pair[0]


def _how(status: int) -> str:
    """Return how a process ended, as a part of a sentence."""
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL), most often for want of memory"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
