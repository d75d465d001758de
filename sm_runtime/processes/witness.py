"""A process that does nothing but to be ended by a signal which was meant for all of a job.

Slurm sends SIGTERM to every process of a step, the script's included, and not to the first alone.
Passing it on would be a second signal, which ends a script that has just saved and is about to exit
(Python gives a signal its default action back before it ends). No sender says whom it has signalled
beside us; that this process has ended does.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from sm_runtime.processes.stop import STOPPING

HEAR_SECONDS = 1.0
"""How long after a request to stop, which may be another host's, the signal may still come here."""
_LOOK_SECONDS = 0.002


class Witness:
    """The process; ``before`` is what a child of ours does first, so that it ends when we do."""

    def __init__(self, before: Callable[[], None] | None) -> None:
        self.is_gone = False
        """Whether it has been seen to have ended."""
        self._until: float | None = None
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        self.pid = os.fork()
        if self.pid == 0:
            _be_ended(before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def has_heard(self) -> bool:
        """Return whether a request to stop has been sent to all processes of the job.

        Waits, ``HEAR_SECONDS`` from the first call on at the most.
        """
        self._until = self._until or time.monotonic() + HEAR_SECONDS
        while not self.is_gone:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                self.is_gone = True
            elif time.monotonic() >= self._until:
                return False
            else:
                time.sleep(_LOOK_SECONDS)
        return True

    def close(self) -> None:
        """End it."""
        if not self.is_gone:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.is_gone = True


def _be_ended(before: Callable[[], None] | None) -> None:
    """Wait for a signal, in a session of its own and holding nothing open; does not return."""
    try:
        os.setsid()
        if before is not None:
            before()
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))
        for number in (*STOPPING, signal.SIGUSR1, signal.SIGUSR2):
            keeps = number not in STOPPING
            signal.signal(number, signal.SIG_IGN if keeps else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        while True:
            signal.pause()
    finally:
        os._exit(1)
