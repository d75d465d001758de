"""Runs processes: starts them, passes on signals, ends what they leave behind, says how they ended.

What is run is a ``Workload``: one process and its end, or several that begin and end as the hosts
of a job agree.

One loop in the main thread waits for signals and for deadlines; the relays carry the output in
threads of their own, so that a stalled log never delays a signal. The loop is the only place that
reaps children: ``waitpid(-1)`` beside any other waiting would lose a status.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Container, Iterable
from contextlib import ExitStack, suppress
from functools import partial
from types import FrameType

from sm_runtime.job.errors import LaunchError
from sm_runtime.job.model import Command, Ended
from sm_runtime.processes import cgroup, tree
from sm_runtime.processes.process import (
    OFFERED,
    PASSED,
    STOPPING,
    VANISH_SECONDS,
    Process,
    StopPolicy,
)
from sm_runtime.processes.relay import Relay, Sink
from sm_runtime.processes.workload import SingleProcess, Workload

log = logging.getLogger(__name__)

IGNORABLE = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""Signals that stay ignored where they were when we started."""
STALL_SECONDS = 30.0
"""How long the last output may be stuck, the script gone, before the job goes on without it."""
GATHER_SECONDS = 1.0
"""How long the last output is waited for after a request to stop before the job is saved."""
DRAIN_SECONDS = 3.0
"""How long output may be stuck at the very end: longer than a relay takes to drop it."""


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
        self._undo = ExitStack()
        self._before_exec: Callable[[], None] | None = None
        self._wakeup = self._waker = -1
        self._others: frozenset[int] = frozenset()
        self._adopts = True
        self._runs: dict[int, Process] = {}
        self._actions: list[Callable[[], None]] = []
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
        self._stop(signal.Signals(number).name)

    def ask(self, reason: str) -> None:
        """Ask for a stop, from any thread."""
        self._stop(reason)
        self.wake()

    def _stop(self, reason: str) -> None:
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
        self._actions.append(action)

    def exclude(self, pid: int) -> None:
        """Leave a process of ours, and what descends from it, alone when a script's are ended."""
        self._others |= {pid}

    def run(
        self,
        command: Command,
        limits: StopPolicy,
        *,
        keep_stacks: Callable[[bytes], None] | None = None,
    ) -> Ended:
        """Run ``command`` to its end, its output relayed, and leave none of its processes behind.

        ``keep_stacks`` is given the stacks that SIGUSR1 had the user's Python processes write.
        Raises LaunchError when it cannot be started.
        """
        relays = (Relay(self.out, "stdout"), Relay(self.err, "stderr"))
        return self._run_single(SingleProcess(command, limits, relays, keep_stacks))

    def capture(self, command: Command, limits: StopPolicy) -> Ended:
        """Run ``command`` as ``run`` does, its output kept out of ours; ``tail`` has its end."""
        relay = Relay(None, command.name)
        return self._run_single(SingleProcess(command, limits, (relay, relay), None))

    def _run_single(self, single: SingleProcess) -> Ended:
        self.run_workload(single)
        assert single.run is not None
        if single.run.stopped_by:
            self.stopped_by = single.run.stopped_by
        self.gather_output([single.run])
        return single.run.so_far()

    def run_workload(self, workload: Workload) -> None:
        """Run a workload to its end, and leave none of its processes behind."""
        try:
            workload.begin(self)
            while not workload.over():
                for number in self._wait(self._seconds(workload), workload.files()):
                    if number:  # 0: only to wake us
                        self._take(signal.Signals(number), workload)
                self._reap_and_tick(workload)
        finally:  # also where we fail ourselves: nothing may go on unsupervised
            self._sweep(workload.leftover_seconds)
            self._runs.clear()

    def start(
        self,
        command: Command,
        limits: StopPolicy,
        relays: tuple[Relay, Relay],
        keep_stacks: Callable[[bytes], None] | None = None,
        *,
        owns_all: bool = False,
    ) -> Process:
        """Start a process; all that descends from us counts as its own where it ``owns_all``.

        Raises LaunchError when it cannot be started.
        """
        oom_kills = cgroup.oom_kills()
        process = _spawn(command, relays, self._before_exec)
        offspring = self._offspring if owns_all else partial(tree.of_session, process.pid)
        run = Process(process, limits, relays, offspring, keep_stacks, oom_kills)
        self._runs[run.pid] = run
        return run

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

    def gather_output(self, runs: Iterable[Process]) -> None:
        """Wait for the last output of processes that have ended, as long as it moves.

        After a request to stop, also one that comes meanwhile, only for ``GATHER_SECONDS``: the job
        is saved while the output drains.
        """
        until = float("inf")

        def deadline() -> float:
            nonlocal until
            if until == float("inf") and self.stopped_by is not None:
                until = time.monotonic() + GATHER_SECONDS
            return until

        for relay in {relay for run in runs for relay in run.relays()}:
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

    def _take(self, number: signal.Signals, workload: Workload) -> None:
        for run in list(self._runs.values()):
            if run.status is None and run.passes_signals:
                run.take(number)
        for action in self._actions if number in STOPPING else ():
            action()

    def _reap_and_tick(self, workload: Workload) -> None:
        """Take note of what has ended, and do what is due."""
        self._reap()
        for run in list(self._runs.values()):
            if run.settle():
                workload.ended(run)
            elif run.status is None:
                run.meet_deadlines()
        workload.step()

    def _reap(self) -> None:
        for pid, status in _ended_children():
            if run := self._runs.get(pid):
                run.reaped(os.waitstatus_to_exitcode(status))

    def _seconds(self, workload: Workload) -> float | None:
        times = [r.seconds_to_deadline() for r in self._runs.values() if r.status is None]
        found = [t for t in (*times, workload.seconds()) if t is not None]
        return min(found) if found else None

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
        sessions = frozenset(() if self._adopts else self._runs)
        return tree.descendants(os.getpid(), self._others, sessions)

    def _sweep(self, seconds: float) -> None:
        """End every process that was left behind: SIGTERM, ``seconds``, SIGKILL.

        After a request to stop, what is left keeps the time that it gave, and what is in a process
        group that was asked gets no second signal.
        """
        left = self._offspring()
        if not left and not any(tree.has_group(pid) for pid in self._runs):
            return
        named = [f"{name} (pid {pid})" for pid in left if (name := tree.command_line(pid))]
        asked = {run.pid: run.deadline for run in self._runs.values() if run.deadline is not None}
        has_signal = {pid for group in asked for pid in tree.of_group(group)}
        self._end([pid for pid in left if pid not in has_signal], signal.SIGTERM, besides=asked)
        if not self._gone(max(time.monotonic() + seconds, *asked.values(), 0.0), kill=False):
            self._gone(time.monotonic() + VANISH_SECONDS, kill=True)
        if named:  # the others were about to end by themselves
            more = "es"[: len(named) * 2 - 2]
            log.warning("ended %d leftover process%s: %s", len(named), more, ", ".join(named[:5]))

    def _end(self, pids: list[int], number: signal.Signals, besides: Container[int] = ()) -> None:
        for pid, run in self._runs.items():
            if pid not in besides:
                run.send_group(number)  # the kernel sees all of a group at once, however it forks
        tree.send(pids, number)

    def _gone(self, deadline: float, *, kill: bool) -> bool:
        """Reap, and kill, until none of the processes is left or the deadline has come."""
        while True:
            self._reap()
            offspring = self._offspring()
            if not offspring and not any(tree.has_group(pid) for pid in self._runs):
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
