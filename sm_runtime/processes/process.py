"""One process between its start and its end: what a signal or a deadline does to it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sm_runtime.job.model import Ended
from sm_runtime.processes import cgroup, tree
from sm_runtime.processes.relay import Relay

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
LOOK_SECONDS = 0.1
"""How often is looked for what outlives its first process after a request to stop."""
READER_SECONDS = 0.5
"""How long the readers of pipes have to end by themselves when all others of a group are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopPolicy:
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


class Process:
    """One process between its start and its end."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        limits: StopPolicy,
        relays: tuple[Relay, Relay],
        offspring: Callable[[], list[int]],
        keep_stacks: Callable[[bytes], None] | None,
        oom_kills: int = 0,
    ) -> None:
        self.name = "the script"
        self.passes_signals = True
        """Whether it is given the signals that we are given."""
        self.aborted = False
        """Whether it was ended for the sake of others, so that its status means nothing."""
        self._oom_kills = oom_kills
        self.pid = process.pid
        self.process = process
        self.status: int | None = None
        self.started = time.monotonic()
        self.stopped_by: str | None = None
        self.killed = False
        self._killed_at = 0.0
        self._stop_number = 0
        self._sent: int = signal.SIGTERM
        """The signal that asked for the stop."""
        self._limits = limits
        self._relays = relays
        self._offspring = offspring
        self._keep_stacks = keep_stacks
        self._first_status: int | None = None
        """The status of the first process, while others of its have time to end."""
        self._spared: list[int] = []
        """The processes of the group that have not been sent the request to stop yet."""
        self._spared_until: float | None = None
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
            self.send_group(number)

    def stop(self, reason: str, number: signal.Signals) -> None:
        """Ask the process group to stop; a second SIGINT kills it at once.

        Any other request that is repeated is not passed on: it would end a process that has
        done what its handler had to do, and is about to exit.
        """
        again = self.stopped_by is not None
        if again and number == self._stop_number:
            if number == signal.SIGINT:
                self._kill_at = time.monotonic()
            return
        sent = self._limits.stop_signal if number == signal.SIGTERM else number
        if again:
            self.send_group(sent)
            return
        self._request(sent)
        self.stopped_by, self._stop_number = reason, number
        for relay in self._relays:
            relay.hurry()
        grace = self._limits.grace_seconds
        self._kill_at = time.monotonic() + grace
        log.warning("%s: asked %s to stop, %g s left", reason, self.name, grace)

    def end(self, seconds: float) -> None:
        """Ask the process group to end, for another's sake, and kill it after ``seconds``."""
        if not (self.stopped_by or self.aborted):  # a second one would end a handler
            self._request(signal.SIGTERM)
        soon = time.monotonic() + seconds
        self._kill_at = soon if self._kill_at is None else min(soon, self._kill_at)
        self.aborted = True

    def reaped(self, status: int) -> None:
        """Take the status of the process: that is its end, unless others have time to stop.

        After a request to stop, what the process leaves behind keeps the rest of its time and gets
        no second signal; what is in another process group has not got the first one yet.
        """
        self._first_status = status
        if self._kill_at is None or self.killed:
            return
        asked = set(tree.of_group(self.pid))
        others = [pid for pid in self._offspring() if pid not in asked]
        tree.send(others, self._sent)
        tree.send(others, signal.SIGCONT)

    def settle(self) -> bool:
        """Return whether this is its end: it was reaped, and nothing has time left to stop."""
        if self._first_status is None or self.status is not None:
            return False
        given_up = self.killed and time.monotonic() >= self._killed_at + VANISH_SECONDS
        if self._kill_at is not None and not given_up and self._has_processes():
            return False
        self.status = self.process.returncode = self._first_status
        return True

    def _has_processes(self) -> bool:
        return tree.has_group(self.pid) or bool(self._offspring())

    def _request(self, number: int) -> None:
        """Send the request to stop, once, to each process of the group.

        Readers of pipes are spared as long as there are others: ``tee`` would take the output of
        a script with it that is about to save.
        """
        self._sent = number
        members = tree.of_group(self.pid)
        self._spared = tree.pipe_readers(members, number)
        if len(self._spared) in (0, len(members)):
            self._spared = []
            self.send_group(number)
        else:
            tree.send([pid for pid in members if pid not in self._spared], number)
        self.send_group(signal.SIGCONT)  # one that is suspended could not take it

    def _request_of_spared(self, now: float) -> None:
        """Send the request to the readers of pipes, too, where only they have been left."""
        if not set(tree.of_group(self.pid)) <= set(self._spared):
            self._spared_until = None
        elif self._spared_until is None:
            self._spared_until = now + READER_SECONDS
        elif now >= self._spared_until:
            self.send_group(self._sent)
            self._spared = []

    def relays(self) -> set[Relay]:
        """Return what carries its output."""
        return set(self._relays)

    def has_output(self, quiet_seconds: float) -> bool:
        """Whether output may still come: not where what holds the pipe is quiet for so long."""
        return any(relay.is_busy(quiet_seconds) for relay in self._relays)

    def so_far(self) -> Ended:
        """Say how the process ended, with the output that is here."""
        self.collect_stacks()
        assert self.status is not None
        shared_bytes, shared_free_bytes = cgroup.shared_memory()
        return Ended(
            status=self.shell_status(),
            signal=-self.status if self.status < 0 else None,
            stopped_by=self.stopped_by,
            killed=self.killed,
            oom_kills=max(0, cgroup.oom_kills() - self._oom_kills),
            memory_limit_bytes=cgroup.memory_limit(),
            shared_memory_bytes=shared_bytes,
            shared_memory_free_bytes=shared_free_bytes,
            seconds=time.monotonic() - self.started,
            tail=self._relays[1].tail,
            stdout_tail=self._relays[0].tail,
        )

    def offer(self, number: signal.Signals) -> None:
        """Send a signal to each process of the user's that has a handler for it."""
        takers = [pid for pid in self._offspring() if tree.catches(pid, number)]
        if number == signal.SIGUSR1:
            self.collect_stacks()
            self._stacks_from = self._relays[1].total_bytes
            self._stacks_at = time.monotonic() + STACKS_SECONDS
        tree.send(takers, number)
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
        if self._spared or self._first_status is not None:
            times.append(time.monotonic() + LOOK_SECONDS)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def meet_deadlines(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if self._spared:
            self._request_of_spared(now)
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
            self._killed_at = self._killed_at if self.killed else now
            self.killed = True
            self._kill_at = now + VANISH_SECONDS
            self.send_group(signal.SIGKILL)
            tree.send(self._offspring(), signal.SIGKILL)
            log.warning("killed %s: it did not stop in time", self.name)

    @property
    def deadline(self) -> float | None:
        """When what is left of it is killed, monotonic; None: it was not asked to stop."""
        return self._kill_at

    def shell_status(self) -> int:
        """Return the status as a shell gives it; what we had to kill counts as stopped."""
        assert self.status is not None
        if self.status < 0:
            return 128 + (self._stop_number if self.killed else -self.status)
        silent = self.stopped_by is not None and self.stopped_by.startswith("no output")
        return self.status or int(silent)

    def _last_sign(self) -> float:
        return max(self._silent_since, *(relay.last_output for relay in self._relays))

    def send_group(self, number: int) -> None:
        """Send a signal to the process group, also when its leader is gone already."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
