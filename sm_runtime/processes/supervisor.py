"""Runs processes: starts them, passes on signals, ends what they leave behind, says how they ended.

What is run is a ``Workload``, which decides; here is done what it decides. One loop in the main
thread waits for signals, for ends and for deadlines; the relays carry the output in threads of
their own, so that a stalled log never delays a signal. The loop is the only place that reaps
children: ``waitpid(-1)`` beside any other waiting would lose a status.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from sm_runtime.job.errors import LaunchError
from sm_runtime.job.model import Command, Ended
from sm_runtime.processes import hardware, tree
from sm_runtime.processes.process import Process
from sm_runtime.processes.relay import Relay, Repeats, Sink, Tap
from sm_runtime.processes.stop import OFFERED, PASSED, STOPPING, StopPolicy
from sm_runtime.processes.workload import (
    VANISH_SECONDS,
    Action,
    Answer,
    Ask,
    Drain,
    Due,
    Event,
    Exited,
    Kill,
    Offer,
    Send,
    Signalled,
    SingleProcess,
    Start,
    StopRequested,
    Streams,
    Watch,
    Workload,
)

if TYPE_CHECKING:
    from sm_runtime.processes.witness import Witness

log = logging.getLogger(__name__)

IGNORABLE = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""Signals that stay ignored where they were when we started."""
STALL_SECONDS = 30.0
"""How long the last output may be stuck, the script gone, before the job goes on without it."""
GATHER_SECONDS = 1.0
"""How long the last output is waited for after a request to stop before the job is saved."""
DRAIN_SECONDS = 3.0
"""How long output may be stuck at the very end: longer than a relay takes to drop it."""


class RequestSource(Protocol):
    """Where the processes of a launcher ask for something."""

    def filenos(self) -> Iterable[int]:
        """Return the descriptors to poll."""

    def events(self) -> Iterable[Event]:
        """Return what has been requested, and who is gone, since the last call."""

    def answer(self, connection: int, status: int) -> None:
        """Have a process that has asked end with ``status``."""


class Supervisor:
    """Owns the signals and the children of this process, as a context manager.

    ``stopped_by`` says who asked for a stop, and stays set: a process that is started after that is
    asked to stop at once.
    """

    def __init__(self, out: Sink | None, err: Sink | None) -> None:
        self.stopped_by: str | None = None
        self.signalled_at: float | None = None
        """When a signal first asked for a stop, monotonic: whoever sent it may kill us later."""
        self.out, self.err = out, err
        self.tap: Callable[[], Tap] | None = None
        """Returns what is given the output of one more stream of the scripts."""
        self.collapses = False
        """Whether lines of the scripts that repeat are counted."""
        self._undo = ExitStack()
        self._before_exec: Callable[[], None] | None = None
        self._wakeup = self._waker = -1
        self._others: frozenset[int] = frozenset()
        self._adopts = True
        self._received = signal.SIGTERM
        """The signal that asked for the stop, if one did."""
        self._asked: deque[str] = deque()
        """Reasons of other threads that the workload has not been told."""
        self._processes: dict[int, Process] = {}
        """What the workload has started, by key."""
        self._witness: Witness | None = None
        self._when_stopped: list[Callable[[], None]] = []
        self._keep_stacks: Callable[[bytes], None] = _drop
        self._pending: set[Relay] = set()
        """Relays that have not carried all when the job went on."""

    def __enter__(self) -> Supervisor:
        self._adopts = tree.become_subreaper()
        self._before_exec = tree.ending_with_us()
        if not tree.can_be_seen():
            log.warning(
                "/proc is not mounted: what a script leaves behind in sessions of its own lives on"
            )
        elif not self._adopts:
            log.warning(
                "prctl is not permitted here: a process that the script leaves behind in a session"
                " of its own is not found, and not ended"
            )
        # What an entry point started before us is none of the script's: it is left alone.
        self._others = frozenset(tree.descendants(os.getpid()))
        self._wakeup, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._undo.callback(os.close, self._wakeup)
        self._undo.callback(os.close, self._waker)
        self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._waker))
        ours = (*STOPPING, *PASSED, *OFFERED, signal.SIGCHLD)
        for number in ours:
            if number in IGNORABLE and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: whoever started us does not want it to end anything
            previous = signal.signal(number, self._note)
            restored = signal.SIG_DFL if previous is None else previous
            self._undo.callback(signal.signal, number, restored)
        # A mask may have been inherited, and would be by the script.
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
        self._undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, blocked)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        """Remember a stop at once, also between two processes, where no loop reads the fd."""
        if number not in STOPPING:
            return
        if self.signalled_at is None:
            self.signalled_at = time.monotonic()
        if self.stopped_by is None:
            self._received = signal.Signals(number)
        self._note_stop(signal.Signals(number).name)

    def ask(self, reason: str) -> None:
        """Ask for a stop, from any thread."""
        if self.stopped_by is None:
            self._asked.append(reason)
        self._note_stop(reason)
        self.wake()

    def _note_stop(self, reason: str) -> None:
        if self.stopped_by is None:
            self.stopped_by = reason
        for sink in (self.out, self.err):
            if sink is not None:
                sink.stopping = True

    def wake(self) -> None:
        """Have the loop look at what has changed, from any thread."""
        with suppress(OSError):  # full: it wakes anyway; closed: it is no more
            os.write(self._waker, b"\0")

    def when_stopped(self, action: Callable[[], None]) -> None:
        """Have ``action`` done when a signal asks for a stop while processes run."""
        self._when_stopped.append(action)

    def exclude(self, pid: int) -> None:
        """Leave a process of ours, and what descends from it, alone when a script's are ended."""
        self._others |= {pid}

    def expect_signals_for_all(self) -> None:
        """Take it that a signal for us may be sent to all processes of the job.

        To be called before there are threads: it forks.
        """
        from sm_runtime.processes.witness import Witness

        self._witness = Witness(self._before_exec)
        self._undo.callback(self._witness.close)
        self.exclude(self._witness.pid)

    def run(
        self,
        workload: Workload,
        *,
        keep_stacks: Callable[[bytes], None] | None = None,
        requests: RequestSource | None = None,
    ) -> dict[int, Ended]:
        """Run a workload to its end, and leave none of its processes behind; return their ends.

        ``keep_stacks`` is given the stacks that SIGUSR1 had the user's Python processes write.
        Raises LaunchError when a process cannot be started.
        """
        self._keep_stacks = keep_stacks or _drop
        try:
            self._do(workload.begin(time.monotonic()), requests)
            for event in self._first_events():
                self._tell(workload, event, requests)
            while not workload.is_done(time.monotonic()):
                files = requests.filenos() if requests else ()
                numbers = self._wait(self._seconds(workload), files)
                for event in self._events(numbers, requests):
                    self._tell(workload, event, requests)
        finally:  # also where we fail ourselves: nothing may go on unsupervised
            self._sweep(workload.leftover_seconds, workload.deadline())
            ended = [p for p in self._processes.values() if p.status is not None]
            self._processes = {}
            self._gather_output(ended)
        return {process.key: process.ended(self._keep_stacks) for process in ended}

    def capture(self, command: Command, policy: StopPolicy, seconds: float = math.inf) -> Ended:
        """Run ``command``, its output kept out of ours; ``tail`` of what is returned has its end.

        After ``seconds`` it is ended. Raises LaunchError when it cannot be started.
        """
        [ended] = self.run(SingleProcess(command, policy, Streams.KEPT, seconds)).values()
        return ended

    def _tell(self, workload: Workload, event: Event, requests: RequestSource | None) -> None:
        self._do(workload.on(event, time.monotonic()), requests)

    def _first_events(self) -> Iterator[Event]:
        """Yield what happened before there was a workload."""
        if self.stopped_by is not None:
            numbers = self._wait(0.0)  # may hold the signal that asked for it
            self._asked.clear()
            yield StopRequested(self.stopped_by, self._received)
            yield from self._signals(bytes(n for n in numbers if n not in STOPPING))
            if self.signalled_at is not None:
                self._hurry()
            self.wake()  # what was read may have told of an end
        yield Due()

    def _events(self, numbers: bytes, requests: RequestSource | None) -> Iterator[Event]:
        """Yield what has happened, in the order in which it is told."""
        yield from self._signals(numbers)
        if any(number in STOPPING for number in numbers):
            self._hurry()
        while self._asked:
            yield StopRequested(self._asked.popleft())
        if requests:
            yield from requests.events()
        for process in self._reap():
            yield Exited(process.key, process.status or 0)
        for process in list(self._processes.values()):
            yield from process.events(self._keep_stacks)
        yield Due()

    @staticmethod
    def _signals(numbers: bytes) -> Iterator[Event]:
        for number in numbers:
            if number:  # 0: only to wake us
                yield Signalled(signal.Signals(number))

    def _hurry(self) -> None:
        for action in self._when_stopped:
            action()

    def _do(self, actions: Iterable[Action], requests: RequestSource | None) -> None:
        """Do what a workload has decided."""
        for action in actions:
            if isinstance(action, Start):
                self._start(action)
            elif isinstance(action, Answer):
                if requests:
                    requests.answer(action.connection, action.status)
            else:
                self._do_to(self._processes[action.key], action)

    def _do_to(self, process: Process, action: Ask | Send | Offer | Kill | Watch | Drain) -> None:
        match action:
            case Ask():
                process.ask(action, has_signal=self._has_signal(process, action))
                if action.reason:
                    self._note_stop(action.reason)
            case Send():
                process.send(action.number)
            case Offer():
                process.offer(action.number, self._keep_stacks)
            case Kill():
                process.kill()
            case Watch():
                process.watch(asks_others=action.asks_others)
            case Drain():
                process.drain()

    def _has_signal(self, process: Process, action: Ask) -> bool:
        """Whether who asked us for a stop has sent the same signal to a process, too."""
        if self._witness is None or not action.reason or action.number != action.received:
            return False
        has_heard = self._witness.has_heard()
        return has_heard and process.started < (self.signalled_at or math.inf)

    def _start(self, start: Start) -> None:
        """Start a process; raises LaunchError when that cannot be done."""
        oom_kills = hardware.oom_kills()
        relays = self._relays(start)
        is_service = start.streams is Streams.STDERR
        before = _shielded(self._before_exec) if is_service else self._before_exec
        popen = _spawn(start.command, relays, before)
        offspring = self._offspring if start.owns_all else partial(self._offspring_of, popen.pid)
        process = Process(start, popen, relays, offspring, oom_kills)
        self._processes[start.key] = process
        if start.cpus is not None and start.cpus != os.sched_getaffinity(0):
            os.sched_setaffinity(process.pid, start.cpus)

    def _relays(self, start: Start) -> tuple[Relay, Relay]:
        if start.streams is not Streams.OURS:
            sink = self.err if start.streams is Streams.STDERR else None
            relay = Relay(sink, start.command.name)
            return relay, relay
        taps = (self.tap(), self.tap()) if self.tap else (None, None)
        prefixes = start.prefixes or (None, None)
        return (
            Relay(self.out, "stdout", prefixes[0], taps[0], self._repeats()),
            Relay(self.err, "stderr", prefixes[1], taps[1], self._repeats()),
        )

    def _repeats(self) -> Repeats | None:
        return Repeats() if self.collapses else None

    def wait_until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait, between two processes, until a thread of ours has brought about ``condition``.

        The thread has to ``wake`` us. False when ``seconds`` are over.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not condition():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._wait(left)
        return True

    def _gather_output(self, processes: Iterable[Process]) -> None:
        """Wait for the last output of scripts that have ended, as long as it moves.

        After a request to stop, also one that comes meanwhile, only for ``GATHER_SECONDS``: the job
        is saved while the output drains.
        """
        until = float("inf")

        def deadline() -> float:
            nonlocal until
            if until == float("inf") and self.stopped_by is not None:
                until = time.monotonic() + GATHER_SECONDS
            return until

        for relay in {relay for p in processes if not p.is_service for relay in p.relays}:
            if not relay.finish(STALL_SECONDS, deadline):
                self._pending.add(relay)

    def drain_output(self, until: float) -> None:
        """Wait, until the time ``until`` at most, for output that is still on its way.

        Logs what of the output or the log was lost.
        """
        for relay in self._pending:
            if not relay.finish(DRAIN_SECONDS, lambda: until):
                log.warning("the end of the output is lost: it has no reader")
        for sink in {self.out, self.err} - {None}:
            if sink is not None and (lost := sink.lost()):
                log.warning("%s of the output or the log could not be written", lost)

    def _reap(self) -> Iterator[Process]:
        """Yield the processes that have ended; orphans that have are only reaped."""
        by_pid = {p.pid: p for p in self._processes.values() if p.status is None}
        for pid, status in _ended_children():
            if self._witness and pid == self._witness.pid:
                self._witness.is_gone = True
            if process := by_pid.get(pid):
                process.reaped(os.waitstatus_to_exitcode(status))
                yield process

    def _seconds(self, workload: Workload) -> float | None:
        times = [process.next_time() for process in self._processes.values()]
        soonest = min(workload.next_time(), *times, math.inf)
        return None if soonest == math.inf else max(0.0, soonest - time.monotonic())

    def _wait(self, seconds: float | None, files: Iterable[int] = ()) -> bytes:
        """Wait, ``seconds`` at most, for signals, whose numbers are returned, or for ``files``."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        for file in files:
            poll.register(file, select.POLLIN)
        # An hour at most: the kernel counts milliseconds in an int, and a limit may be 28 days.
        poll.poll(None if seconds is None else min(max(0.0, seconds), 3600.0) * 1000)
        try:
            return os.read(self._wakeup, 4096)
        except BlockingIOError:
            return b""

    def _offspring(self) -> list[int]:
        # The orphans that are not ours to reap are still of the sessions that we began.
        sessions = frozenset(() if self._adopts else self._pids())
        return tree.descendants(os.getpid(), self._others, sessions)

    def _offspring_of(self, pid: int) -> list[int]:
        """Return what is left of a process of ours that does not own all, itself included."""
        others = {p.pid for p in self._processes.values() if p.status is None} - {pid}
        # What it has left behind is ours to reap, where we adopt orphans.
        found = tree.grandchildless(self._others | others) if self._adopts else None
        return tree.of_session(pid) if found is None or set(found) - {pid} else found

    def _pids(self) -> list[int]:
        return [process.pid for process in self._processes.values()]

    def _sweep(self, seconds: float, deadline: float) -> None:
        """End every process that was left behind: SIGTERM, ``seconds``, SIGKILL.

        After a request to stop, what is left keeps the time that it gave, until ``deadline``, and
        what is in a process group that was asked gets no second signal.
        """
        left = self._offspring()
        if not left and not any(map(tree.has_group, self._pids())):
            return
        named = [f"{name} (pid {pid})" for pid in left if (name := tree.command_line(pid))]
        asked = {process.pid for process in self._processes.values() if process.is_asked}
        has_signal = {pid for group in asked for pid in tree.of_group(group, left)}
        self._end([pid for pid in left if pid not in has_signal], signal.SIGTERM, besides=asked)
        if not self._gone(max(time.monotonic() + seconds, deadline), kill=False):
            self._gone(time.monotonic() + VANISH_SECONDS, kill=True)
        if named:  # the others were about to end by themselves
            more = "es"[: len(named) * 2 - 2]
            log.warning("ended %d leftover process%s: %s", len(named), more, ", ".join(named[:5]))

    def _end(self, pids: list[int], number: signal.Signals, besides: Container[int] = ()) -> None:
        for process in self._processes.values():
            if process.pid not in besides:
                process.send(number)  # the kernel sees all of a group at once, however it forks
        tree.send(pids, number)

    def _gone(self, deadline: float, *, kill: bool) -> bool:
        """Reap, and kill, until none of the processes is left or the deadline has come."""
        while True:
            for _ in self._reap():
                pass
            offspring = self._offspring()
            if not offspring and not any(map(tree.has_group, self._pids())):
                return True
            if kill:
                self._end(offspring, signal.SIGKILL)
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            stopped = self.stopped_by is not None
            numbers = self._wait(min(left, 0.05))  # a grandchild's end is not told to us
            if stopped and signal.SIGINT in numbers:  # the second Ctrl-C
                return False


def _drop(_stacks: bytes) -> None:
    """Keep no stacks."""


def _spawn(
    command: Command, relays: tuple[Relay, Relay], before_exec: Callable[[], None] | None
) -> subprocess.Popen[bytes]:
    """Start a process in a session and group of its own, its output going to the relays."""
    try:
        for relay in set(relays):
            relay.start()
        return subprocess.Popen(
            command.argv,
            cwd=command.cwd,
            env=command.env,
            stdout=relays[0].writer,
            stderr=relays[1].writer,
            start_new_session=True,
            preexec_fn=before_exec,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        reason: object = error
        if isinstance(error, OSError):
            reason = f"{error.strerror}: {error.filename or command.argv[0]!r}"
        raise LaunchError(f"cannot start {command.argv[0]!r}: {reason}") from None
    finally:
        for relay in set(relays):
            relay.close_writer()


def _shielded(before: Callable[[], None] | None) -> Callable[[], None]:
    """Return what a service does before it starts: signals for all of a job are not for it.

    Scripts that save need it to the end, and then it is killed.
    """

    def shield() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPPING, *OFFERED))
        if before is not None:
            before()

    return shield


def _ended_children() -> list[tuple[int, int]]:
    """Return the pid and the status of every child that has ended, orphans included."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, status))
