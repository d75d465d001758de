"""What a supervisor runs: one process and its end, or several that begin and end together."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sm_runtime.job.model import Command
from sm_runtime.processes.process import Process, StopPolicy
from sm_runtime.processes.relay import Relay

if TYPE_CHECKING:
    from sm_runtime.processes.supervisor import Supervisor


class Workload:
    """What is run: it starts processes on its stage, and says when all is over."""

    leftover_seconds = 1.0
    """From the end to SIGKILL for what the processes left behind."""

    def begin(self, stage: Supervisor) -> None:
        """Start the first processes."""

    def over(self) -> bool:
        """Whether nothing more is to be waited for."""
        raise NotImplementedError

    def files(self) -> Iterable[int]:
        """Return the descriptors that ``step`` wants to read from."""
        return ()

    def seconds(self) -> float | None:
        """Return the seconds until ``step`` has something to do; None: never."""
        return None

    def ended(self, run: Process) -> None:
        """Take notice of the end of one of the processes."""

    def step(self) -> None:
        """Do what is due, on whatever occasion."""


class SingleProcess(Workload):
    """One process, and its end is the end."""

    def __init__(
        self,
        command: Command,
        limits: StopPolicy,
        relays: tuple[Relay, Relay],
        keep_stacks: Callable[[bytes], None] | None,
    ) -> None:
        self._start = (command, limits, relays, keep_stacks)
        self.leftover_seconds = limits.leftover_seconds
        self.run: Process | None = None

    def begin(self, stage: Supervisor) -> None:
        """Start the process."""
        command, limits, relays, keep_stacks = self._start
        self._stage = stage
        self.run = stage.start(command, limits, relays, keep_stacks, owns_all=True)
        self.step()

    def over(self) -> bool:
        """Whether it has ended."""
        return self.run is not None and self.run.status is not None

    def step(self) -> None:
        """Pass on a stop that did not come as a signal."""
        reason = self._stage.stopped_by
        if reason and self.run and self.run.status is None and self.run.stopped_by is None:
            self.run.stop(reason, signal.SIGTERM)
