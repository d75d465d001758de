"""A request to stop: who asked, what the processes get for it, and when they are killed.

Pure: times are monotonic seconds, given by the caller; nothing here sends or waits.
"""

from __future__ import annotations

import math
import signal

from sm_runtime.job.dataclass import dataclass
from sm_runtime.job.model import Job

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that ask for a stop: passed on to the script's process group, and the grace begins."""
PASSED = (signal.SIGCONT, signal.SIGWINCH)
"""Signals that are passed on to the script's process group, and mean nothing to us."""
OFFERED = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are passed on to those processes that have a handler: the others they would end."""
STACKS_SECONDS = 1.0
"""How long the stacks of the user's processes are collected after SIGUSR1."""

SILENT = "no output"
"""How the reason of a stop begins that makes even a script that ends well a failure."""


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

    @classmethod
    def of_script(cls, job: Job) -> StopPolicy:
        """Return what a job's script is allowed."""
        options = job.options
        return cls(
            grace_seconds=job.stop_grace_seconds,
            max_seconds=job.max_runtime_seconds,
            leftover_seconds=options.leftover_grace_seconds,
            silence_seconds=options.silence_seconds,
            silence_fails=options.silence_fails,
            stop_signal=signal.Signals[f"SIG{options.stop_signal}"],
        )


class Stop:
    """The stop of what runs on this host for a job: one value, whatever asks for it."""

    def __init__(self, policy: StopPolicy) -> None:
        self.policy = policy
        self.reason: str | None = None
        """Why a stop was asked for first: a signal's name, or a sentence's beginning."""
        self.received = signal.SIGTERM
        """The signal of the first request."""
        self.kill_at = math.inf
        """When what has not stopped is killed."""
        self._due_at, self._due_reason = math.inf, ""

    def start(self, now: float) -> None:
        """Count ``max_seconds`` from here, at the first call."""
        seconds = self.policy.max_seconds
        if seconds is not None and not self._due_reason:
            self._due_at, self._due_reason = now + seconds, f"MaxRuntimeInSeconds ({seconds:g} s)"

    def request(self, reason: str, number: signal.Signals, now: float) -> int | None:
        """Take a request to stop; return the signal that the processes get; None: none.

        A second SIGINT has them killed at once. Any other request that is repeated is not passed
        on: it would end a process that has done what its handler had to do, and is about to exit.
        """
        sent = self.policy.stop_signal if number == signal.SIGTERM else number
        if self.reason is None:
            self.reason, self.received = reason, number
            self.kill_at = now + self.policy.grace_seconds
            return sent
        if number != self.received:
            return sent
        if number == signal.SIGINT:
            self.kill_at = now
        return None

    def silent(self, now: float) -> None:
        """Take it that there was no output for too long, which may be a request to stop.

        Not at once: SIGTERM would overtake the dump of the stacks.
        """
        if self.policy.silence_fails:
            self._due_at = now + STACKS_SECONDS
            self._due_reason = f"{SILENT} for {self.policy.silence_seconds:g} s"

    def due(self, now: float) -> str | None:
        """Return why a stop is to be requested now, once."""
        if now < self._due_at:
            return None
        self._due_at = math.inf
        return self._due_reason

    def next_time(self) -> float:
        """Return when ``due`` has something to say; infinity: never."""
        return self._due_at
