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
from contextlib import ExitStack, suppress
from types import FrameType

from sm_runtime import cgroup, processes
from sm_runtime.errors import LaunchError
from sm_runtime.frozen import dataclass
from sm_runtime.model import Command, Ended
from sm_runtime.relay import Relay, Sink

log = logging.getLogger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that ask for a stop: passed on to the script's process group, and the grace begins."""
PASSED = (signal.SIGCONT, signal.SIGWINCH)
"""Signals that are passed on to the script's process group, and mean nothing to us."""
OFFERED = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are passed on to those processes that have a handler: the others they would end."""
VANISH_SECONDS = 2.0
"""How long a process may take to vanish after SIGKILL."""
STACKS_SECONDS = 1.0
"""How long the stacks of the user's processes are collected after SIGUSR1."""
STALL_SECONDS = 30.0
"""How long the last output may be stuck, the script gone, before the rest of it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a process may do what, in seconds."""

    grace_seconds: float = 110.0
    """From the first request to stop to SIGKILL."""
    max_seconds: float | None = None
    """From the start to a request to stop."""
    leftover_seconds: float = 1.0
    """From the process's end to SIGKILL for those it left behind."""
    silence_seconds: float | None = None
    """Without any output for so long, the stacks are dumped."""
    silence_fails: bool = False
    """Whether such a silence is a request to stop, too."""
    stop_signal: signal.Signals = signal.SIGTERM
    """What the process gets for SIGTERM."""


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

    def __enter__(self) -> Supervisor:
        processes.become_subreaper()
        self._wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._undo.callback(os.close, self._wakeup)
        self._undo.callback(os.close, writer)
        self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer))
        for number in (*STOPPING, *PASSED, *OFFERED, signal.SIGCHLD):
            previous = signal.signal(number, self._note)
            restored = signal.SIG_DFL if previous is None else previous
            self._undo.callback(signal.signal, number, restored)
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
        run = _Run(_spawn(command, relays), limits, relays, keep_stacks)
        if self.stopped_by:
            run.stop(self.stopped_by, signal.SIGTERM)
        while run.status is None:
            for number in self._wait(run.seconds_to_deadline()):
                run.take(signal.Signals(number))
            _reap(run)
            run.meet_deadlines()
        self._sweep(limits.leftover_seconds)
        for relay in set(relays):
            if not relay.finish(STALL_SECONDS):
                log.warning("the end of the output is lost: nobody reads it")
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
        poll.poll(None if seconds is None else max(0.0, seconds) * 1000)
        try:
            return os.read(self._wakeup, 4096)
        except BlockingIOError:
            return b""

    def _sweep(self, seconds: float) -> None:
        """End every process that the script left behind: SIGTERM, ``seconds``, SIGKILL."""
        left = processes.descendants(os.getpid())
        if not left:
            return
        names = ", ".join(f"{processes.command_line(pid)} (pid {pid})" for pid in left[:5])
        _send(left, signal.SIGTERM)
        if not self._gone(time.monotonic() + seconds):
            _send(processes.descendants(os.getpid()), signal.SIGKILL)
            self._gone(time.monotonic() + VANISH_SECONDS)
        log.warning("ended %d leftover process%s: %s", len(left), "es"[: len(left) * 2 - 2], names)

    def _gone(self, deadline: float) -> bool:
        """Reap until no descendant is left, or the deadline has come."""
        while True:
            _reap(None)
            if not processes.descendants(os.getpid()):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._wait(min(left, 0.05))  # a grandchild's end is not told to us


class _Run:
    """One process between its start and its end."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        limits: Limits,
        relays: tuple[Relay, Relay],
        keep_stacks: Callable[[bytes], None] | None,
    ) -> None:
        self.pid = process.pid
        self.process = process
        self.status: int | None = None
        self.started = time.monotonic()
        self.stopped_by: str | None = None
        self.killed = False
        self._stop_number = 0
        self._limits = limits
        self._relays = relays
        self._keep_stacks = keep_stacks
        self._kill_at: float | None = None
        self._stop_at: float | None = None
        self._stop_reason = ""
        if limits.max_seconds is not None:
            self._stop_at = self.started + limits.max_seconds
            self._stop_reason = f"MaxRuntimeInSeconds ({limits.max_seconds:g} s)"
        self._silence = limits.silence_seconds
        self._silent_since = 0.0
        self._stacks_from = 0
        self._stacks_at: float | None = None

    def take(self, number: signal.Signals) -> None:
        """Do what a signal to us asks for."""
        if number in STOPPING:
            self.stop(number.name, number)
        elif number in OFFERED:
            self.offer(number)
        elif number in PASSED:
            self._send_group(number)

    def stop(self, reason: str, number: signal.Signals) -> None:
        """Ask the process group to stop; a second SIGINT kills it at once."""
        again = self.stopped_by is not None
        if again and number == signal.SIGINT == self._stop_number:
            self._kill_at = time.monotonic()
            return
        self._send_group(self._limits.stop_signal if number == signal.SIGTERM else number)
        if again:
            return
        self.stopped_by, self._stop_number = reason, number
        self._kill_at = time.monotonic() + self._limits.grace_seconds
        log.warning("%s: asked the script to stop, %g s left", reason, self._limits.grace_seconds)

    def offer(self, number: signal.Signals) -> None:
        """Send a signal to each process of the user's that has a handler for it."""
        takers = [p for p in processes.descendants(os.getpid()) if processes.catches(p, number)]
        if number == signal.SIGUSR1:
            self.collect_stacks()
            self._stacks_from = self._relays[1].total_bytes
            self._stacks_at = time.monotonic() + STACKS_SECONDS
        _send(takers, number)
        log.info("%s passed on to %d of the script's processes", number.name, len(takers))

    def collect_stacks(self) -> None:
        """Hand on the stacks that were asked for, if any were."""
        if self._stacks_at is not None and self._keep_stacks:
            self._keep_stacks(self._relays[1].since(self._stacks_from))
        self._stacks_at = None

    def seconds_to_deadline(self) -> float | None:
        """Return the seconds until ``meet_deadlines`` has something to do; None: never."""
        times = [t for t in (self._kill_at, self._stop_at, self._stacks_at) if t is not None]
        if self._silence is not None:
            times.append(self._last_sign() + self._silence)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def meet_deadlines(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at = None
            self.stop(self._stop_reason, signal.SIGTERM)
        if self._stacks_at is not None and now >= self._stacks_at:
            self.collect_stacks()
        silence = self._silence
        if silence is not None and now >= self._last_sign() + silence:
            self._silent_since = now
            log.warning("no output for %g s", silence)
            self.offer(signal.SIGUSR1)
            if self._limits.silence_fails:
                # Not at once: SIGTERM would overtake the dump of the stacks.
                self._stop_at = now + STACKS_SECONDS
                self._stop_reason = f"no output for {silence:g} s"
                self._silence = None
        if self._kill_at is not None and now >= self._kill_at:
            self.killed = True
            self._kill_at = now + VANISH_SECONDS
            self._send_group(signal.SIGKILL)
            _send(processes.descendants(os.getpid()), signal.SIGKILL)
            log.warning("killed the script: it did not stop in time")

    def shell_status(self) -> int:
        """Return the status as a shell gives it; what we had to kill counts as stopped."""
        assert self.status is not None
        if self.status < 0:
            return 128 + (self._stop_number if self.killed else -self.status)
        silent = self.stopped_by is not None and self.stopped_by.startswith("no output")
        return self.status or int(silent)

    def _last_sign(self) -> float:
        return max(self._silent_since, *(relay.last_output for relay in self._relays))

    def _send_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


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
    except OSError as error:
        for relay in set(relays):
            relay.abandon()
        what = error.filename or command.argv[0]
        raise LaunchError(f"cannot start {command.argv[0]!r}: {error.strerror}: {what!r}") from None
    except ValueError as error:  # a NUL in an argument
        for relay in set(relays):
            relay.abandon()
        raise LaunchError(f"cannot start {command.argv[0]!r}: {error}") from None
    for relay in set(relays):
        relay.start()
    return process


def _reap(run: _Run | None) -> None:
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


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
