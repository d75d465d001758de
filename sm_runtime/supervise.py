"""Runs processes: starts them, passes on signals, ends what they leave behind, says how they ended.

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
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType

from sm_runtime import cgroup, processes
from sm_runtime.errors import LaunchError
from sm_runtime.model import Command, Ended
from sm_runtime.relay import Relay, Sink
from sm_runtime.running import OFFERED, PASSED, STOPPING, VANISH_SECONDS, Limits, Running

log = logging.getLogger(__name__)

IGNORABLE = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""Signals that stay ignored where they were when we started."""
STALL_SECONDS = 30.0
"""How long the last output may be stuck, the script gone, before the rest of it is given up."""


class Supervisor:
    """Owns the signals and the children of this process, as a context manager.

    ``stopped_by`` says who asked for a stop, and stays set: a process that is started after that is
    asked to stop at once.
    """

    def __init__(self, out: Sink | None, err: Sink | None) -> None:
        self.stopped_by: str | None = None
        self._out, self._err = out, err
        self._undo = ExitStack()
        self._wakeup = -1
        self._others: frozenset[int] = frozenset()

    def __enter__(self) -> Supervisor:
        processes.become_subreaper()
        # What an entry point started before us is none of the script's: it is left alone.
        self._others = frozenset(processes.descendants(os.getpid()))
        self._wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._undo.callback(os.close, self._wakeup)
        self._undo.callback(os.close, writer)
        self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer))
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
        if number in STOPPING and self.stopped_by is None:
            self.stopped_by = signal.Signals(number).name

    def run(
        self,
        command: Command,
        limits: Limits,
        *,
        keep_stacks: Callable[[bytes], None] | None = None,
    ) -> Ended:
        """Run ``command`` to its end, its output relayed, and leave none of its processes behind.

        ``keep_stacks`` is given the stacks that SIGUSR1 had the user's Python processes write.
        Raises LaunchError when it cannot be started.
        """
        relays = (Relay(self._out, "stdout"), Relay(self._err, "stderr"))
        return self._supervise(command, limits, relays, keep_stacks)

    def capture(self, command: Command, limits: Limits) -> Ended:
        """Run ``command`` as ``run`` does, its output kept out of ours; ``tail`` has its end."""
        relay = Relay(None, command.name)
        return self._supervise(command, limits, (relay, relay), None)

    def _supervise(
        self,
        command: Command,
        limits: Limits,
        relays: tuple[Relay, Relay],
        keep_stacks: Callable[[bytes], None] | None,
    ) -> Ended:
        oom_kills = cgroup.oom_kills()
        run: Running | None = None
        try:
            process = _spawn(command, relays)
            run = Running(process, limits, relays, self._offspring, keep_stacks)
            if self.stopped_by:
                run.stop(self.stopped_by, signal.SIGTERM)
            while run.status is None:
                for number in self._wait(run.seconds_to_deadline()):
                    run.take(signal.Signals(number))
                _reap(run)
                run.meet_deadlines()
        finally:  # also where we fail ourselves: nothing may go on unsupervised
            self._sweep(run, limits.leftover_seconds)
        for relay in set(relays):
            if not relay.finish(STALL_SECONDS):
                log.warning("the end of the output is lost: nobody reads it")
        for sink in {self._out, self._err} - {None}:
            if sink is not None and (lost := sink.lost()):
                log.warning("%s of the output or the log could not be written", lost)
        run.collect_stacks()
        if run.stopped_by:
            self.stopped_by = run.stopped_by
        return Ended(
            status=run.shell_status(),
            signal=-run.status if run.status < 0 else None,
            stopped_by=run.stopped_by,
            killed=run.killed,
            oom_kills=max(0, cgroup.oom_kills() - oom_kills),
            memory_limit_bytes=cgroup.memory_limit(),
            seconds=time.monotonic() - run.started,
            tail=relays[1].tail,
            stdout_tail=relays[0].tail,
        )

    def _wait(self, seconds: float | None) -> bytes:
        """Wait for signals, ``seconds`` at most, and return their numbers."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        # An hour at most: the kernel counts milliseconds in an int, and a limit may be 28 days.
        poll.poll(None if seconds is None else min(max(0.0, seconds), 3600.0) * 1000)
        try:
            return os.read(self._wakeup, 4096)
        except BlockingIOError:
            return b""

    def _offspring(self) -> list[int]:
        return processes.descendants(os.getpid(), self._others)

    def _sweep(self, run: Running | None, seconds: float) -> None:
        """End every process that the script left behind: SIGTERM, ``seconds``, SIGKILL."""
        left = self._offspring()
        if not left:
            return
        names = ", ".join(f"{processes.command_line(pid)} (pid {pid})" for pid in left[:5])
        self._end(run, left, signal.SIGTERM)
        if not self._gone(run, time.monotonic() + seconds, kill=False):
            self._gone(run, time.monotonic() + VANISH_SECONDS, kill=True)
        log.warning("ended %d leftover process%s: %s", len(left), "es"[: len(left) * 2 - 2], names)

    def _end(self, run: Running | None, pids: list[int], number: signal.Signals) -> None:
        if run is not None:  # the kernel sees all of the group at once, however fast it forks
            run.send_group(number)
        processes.send(pids, number)

    def _gone(self, run: Running | None, deadline: float, *, kill: bool) -> bool:
        """Reap, and kill, until none of the script's processes is left or the deadline has come."""
        while True:
            _reap(run)
            offspring = self._offspring()
            if not offspring:
                return True
            if kill:
                self._end(run, offspring, signal.SIGKILL)
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._wait(min(left, 0.05))  # a grandchild's end is not told to us


def _spawn(command: Command, relays: tuple[Relay, Relay]) -> subprocess.Popen[bytes]:
    """Start a process in a session and group of its own, its output going to the relays."""
    try:
        process = subprocess.Popen(
            command.argv,
            cwd=command.cwd,
            env=command.env,
            stdout=relays[0].writer,
            stderr=relays[1].writer,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        for relay in set(relays):
            relay.abandon()
        reason: object = error
        if isinstance(error, OSError):
            reason = f"{error.strerror}: {error.filename or command.argv[0]!r}"
        raise LaunchError(f"cannot start {command.argv[0]!r}: {reason}") from None
    for relay in set(relays):
        relay.start()
    return process


def _reap(run: Running | None) -> None:
    """Take the status of every child that has ended, orphans of the script's included."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if run is not None and pid == run.pid:
            run.status = run.process.returncode = os.waitstatus_to_exitcode(status)
