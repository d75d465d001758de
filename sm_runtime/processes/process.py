"""One process of the operating system: its signals, its output, and what is left of it.

What is to be done with it, and when, its workload decides (``workload``).
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from sm_runtime.job.model import Ended
from sm_runtime.processes import hardware, tree
from sm_runtime.processes.relay import Relay
from sm_runtime.processes.stop import SILENT, STACKS_SECONDS
from sm_runtime.processes.workload import Ask, Drained, Event, Silent, Start, Streams, Vanished

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""How often is looked for what outlives its first process after a request to stop."""
READER_SECONDS = 0.5
"""How long the readers of pipes have to end by themselves when all others of a group are gone."""
OUTPUT_SECONDS = 2.0
"""How long the last output of a process may take before its failure is told."""
QUIET_SECONDS = 0.3
"""How long output must be idle, where something holds it open, before it counts as drained."""
DRAIN_LOOK_SECONDS = 0.01
"""How often that is looked at."""


class Process:
    """One process between its start and its end.

    ``offspring`` returns what counts as the process's own, itself included.
    """

    def __init__(
        self,
        start: Start,
        process: subprocess.Popen[bytes],
        relays: tuple[Relay, Relay],
        offspring: Callable[[], list[int]],
        oom_kills: int,
    ) -> None:
        self.key, self.name, self.pid = start.key, start.command.name, process.pid
        self.is_service = start.streams is Streams.STDERR
        """Whether its last output is not waited for."""
        self.is_asked = False
        """Whether its group has been asked to stop."""
        self.status: int | None = None
        """Its exit status, or -N where signal N has ended it; None: it has not been reaped."""
        self.stopped_by: str | None = None
        self.relays = relays
        self._process, self._offspring = process, offspring
        self.started = time.monotonic()
        self._killed = False
        self._oom_kills = oom_kills
        self._sent = self._received = int(signal.SIGTERM)
        self._all_asked = False
        """Whether who asked for the stop has sent the signal to all that is its own."""
        self._spared: list[int] = []
        """The processes of the group that have not been sent the request to stop yet."""
        self._spared_until: float | None = None
        self._is_watched = False
        self._drain_until: float | None = None
        self._silence_seconds = start.silence_seconds
        self._silent_since = self.started
        self._stacks_from = 0
        self._stacks_at: float | None = None

    # -- what the workload has done ----------------------------------------------------------

    def ask(self, action: Ask, *, has_signal: bool = False) -> None:
        """Send the request to stop, once, to each process of the group, unless all have it.

        Readers of pipes are spared as long as there are others: ``tee`` would take the output of
        a script with it that is about to save.
        """
        number = self._sent = action.number
        self.is_asked = True
        self._all_asked = has_signal
        if not has_signal:
            self._send_request(number)
        self.send(signal.SIGCONT)  # one that is suspended could not take it
        if action.reason:
            self.stopped_by, self._received = action.reason, action.received
            log.warning(
                "%s: asked %s to stop, %g s left", action.reason, self.name, action.grace_seconds
            )

    def _send_request(self, number: int) -> None:
        members = self._group()
        self._spared = tree.pipe_readers(members, number)
        if len(self._spared) in (0, len(members)):
            self._spared = []
            self.send(number)
        else:
            tree.send([pid for pid in members if pid not in self._spared], number)

    def send(self, number: int) -> None:
        """Send a signal to the process group, also when its leader is gone already."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def offer(self, number: signal.Signals, keep_stacks: Callable[[bytes], None]) -> None:
        """Send a signal to each process of the user's that has a handler for it."""
        takers = [pid for pid in self._offspring() if tree.catches(pid, number)]
        if number == signal.SIGUSR1:
            self._collect_stacks(keep_stacks)
            self._stacks_from = self.relays[1].total_bytes
            self._stacks_at = time.monotonic() + STACKS_SECONDS
        tree.send(takers, number)
        log.info("%s passed on to %d of the script's processes", number.name, len(takers))

    def kill(self) -> None:
        """Kill all that is its own."""
        self._killed = True
        self.send(signal.SIGKILL)
        tree.send(self._offspring(), signal.SIGKILL)
        log.warning("killed %s: it did not stop in time", self.name)

    def watch(self, *, asks_others: bool) -> None:
        """Look from now on whether something is left of it, in other process groups, too."""
        self._is_watched = True
        if asks_others and not self._all_asked:
            offspring = self._offspring()
            asked = tree.of_group(self.pid, offspring)
            others = [pid for pid in offspring if pid not in asked]
            tree.send(others, self._sent)
            tree.send(others, signal.SIGCONT)

    def drain(self) -> None:
        """Look from now on whether its last output is here."""
        self._drain_until = time.monotonic() + OUTPUT_SECONDS

    # -- what happens to it ------------------------------------------------------------------

    def reaped(self, status: int) -> None:
        """Take its exit status."""
        self.status = self._process.returncode = status

    def events(self, keep_stacks: Callable[[bytes], None]) -> Iterator[Event]:
        """Do what is due, and yield what has happened."""
        now = time.monotonic()
        if self._spared:
            self._ask_spared(now)
        if self._stacks_at is not None and now >= self._stacks_at:
            self._collect_stacks(keep_stacks)
        if self.status is None:
            if now >= self._silent_at():
                self._silent_since = now
                yield Silent(self.key)
            return
        if self._is_watched and not (tree.has_group(self.pid) or self._offspring()):
            self._is_watched = False
            yield Vanished(self.key)
        if self._drain_until is not None and (now >= self._drain_until or not self._has_output()):
            self._drain_until = None
            yield Drained(self.key, self.ended(keep_stacks))

    def next_time(self) -> float:
        """Return when ``events`` has something to look at; infinity: never."""
        now = time.monotonic()
        times = [math.inf if self._stacks_at is None else self._stacks_at]
        if self.status is None:
            times.append(self._silent_at())
        if self._spared or self._is_watched:
            times.append(now + LOOK_SECONDS)
        if self._drain_until is not None:
            times.append(now + DRAIN_LOOK_SECONDS)
        return min(times)

    def ended(self, keep_stacks: Callable[[bytes], None]) -> Ended:
        """Say how the process ended, with the output that is here."""
        assert self.status is not None
        self._collect_stacks(keep_stacks)
        shared_bytes, shared_free_bytes = hardware.shared_memory()
        return Ended(
            status=self._shell_status(self.status),
            signal=-self.status if self.status < 0 else None,
            stopped_by=self.stopped_by,
            killed=self._killed,
            oom_kills=max(0, hardware.oom_kills() - self._oom_kills),
            memory_limit_bytes=hardware.memory_limit(),
            shared_memory_bytes=shared_bytes,
            shared_memory_free_bytes=shared_free_bytes,
            seconds=time.monotonic() - self.started,
            tail=self.relays[1].tail,
            stdout_tail=self.relays[0].tail,
        )

    def _collect_stacks(self, keep_stacks: Callable[[bytes], None]) -> None:
        """Hand on the stacks that were asked for, if any were."""
        if self._stacks_at is not None:
            keep_stacks(self.relays[1].since(self._stacks_from))
        self._stacks_at = None

    def _shell_status(self, status: int) -> int:
        """Return the status as a shell gives it; what we had to kill counts as stopped."""
        if status < 0:
            return 128 + (self._received if self._killed else -status)
        silent = self.stopped_by is not None and self.stopped_by.startswith(SILENT)
        return status or int(silent)

    def _has_output(self) -> bool:
        """Whether output may still come: not where what holds the pipe is quiet for so long."""
        return any(relay.is_busy(QUIET_SECONDS) for relay in self.relays)

    def _silent_at(self) -> float:
        if self._silence_seconds is None:
            return math.inf
        last = max(self._silent_since, *(relay.last_output for relay in self.relays))
        return last + self._silence_seconds

    def _group(self) -> list[int]:
        """Return the processes of its group."""
        return tree.of_group(self.pid, self._offspring())

    def _ask_spared(self, now: float) -> None:
        """Send the request to the readers of pipes, too, where only they have been left."""
        if not set(self._group()) <= set(self._spared):
            self._spared_until = None
        elif self._spared_until is None:
            self._spared_until = now + READER_SECONDS
        elif now >= self._spared_until:
            self.send(self._sent)
            self._spared = []
