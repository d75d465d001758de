"""The ranks of a job on one host, and the launcher that brings them together.

A launcher (Open MPI's ``mpirun`` and its daemons, PyTorch's ``torchrun``) wires the ranks up and
nothing more. What it starts is ``programs/launcher_stub.py``; the script itself is a child of its
host's supervisor, with that host's environment and with a relay of its own, so that its lines stay
whole and its end is known first hand: no launcher's timeout comes between a rank's end and the
job's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import replace

from sm_runtime.cluster.agreement import Priority
from sm_runtime.cluster.host import HostPolicy, HostProcesses
from sm_runtime.cluster.launcher_socket import LauncherSocket, StubConnection
from sm_runtime.cluster.link import Link
from sm_runtime.cluster.notice import Notice
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Command
from sm_runtime.processes.process import Process
from sm_runtime.processes.relay import Relay

log = logging.getLogger(__name__)


class RankProcesses(HostProcesses):
    """The ranks of one host, and its launcher.

    ``script`` is what each rank runs, ``launcher`` the command that has this host's ranks connect
    to ``door``; None where another host's does.
    """

    rank_variable = "RANK"
    """Where the launcher says which rank a process is."""

    def __init__(
        self,
        link: Link,
        terms: HostPolicy,
        *,
        door: LauncherSocket,
        script: Command,
        launcher: Command | None,
    ) -> None:
        super().__init__(link, terms, services=(launcher,) if launcher else ())
        self._door, self._script, self._launcher = door, script, launcher
        self._callers: list[StubConnection] = []
        self._leaving: list[StubConnection] = []
        """Those who have their answer, and are about to end."""
        self._ranks: dict[Process, tuple[int, StubConnection | None]] = {}
        self._wired = False
        """Whether the launcher's part has ended well."""
        self._cut: tuple[int, ...] = ()
        """The ranks whose stand-ins have gone while they ran."""
        self._notice = Notice()

    def files(self) -> Iterable[int]:
        """Return the door, and whoever stands there."""
        ranks = (holder for _, holder in self._ranks.values() if holder is not None)
        callers = (*self._callers, *ranks, *self._leaving)
        return (self._door.fileno(), *(caller.fileno() for caller in callers))

    def step(self) -> None:
        """See who is at the door, and do what the hosts have agreed on."""
        while caller := self._door.accept():
            self._callers.append(caller)
        for caller in list(self._callers):
            self._read_request(caller)
        for run, (rank, holder) in list(self._ranks.items()):
            if holder is not None and holder.is_gone():
                self._ranks[run] = (rank, None)
                if run.status is None:  # the launcher ends the job, for a reason it will give
                    self._cut += (rank,)
                    run.end(1.0)
        self._leaving = [caller for caller in self._leaving if not caller.is_gone()]
        super().step()
        if self._launcher and not (self.has_started_ranks() or self._wired or self._finished):
            self._look_at_launch()

    def seconds(self) -> float | None:
        """Return the seconds until something is due."""
        found = super().seconds()
        if found is None and self._launcher and not self.has_started_ranks():
            return 1.0
        return found

    def has_started_ranks(self) -> bool:
        """Whether the launcher has done what it is for: ranks have begun."""
        return bool(self._ranks)

    def missing(self) -> str:
        """Return, in words, what is waited for while no rank has begun."""
        return f"torchrun to bring {', '.join(self.link.config.hosts)} together"

    def _look_at_launch(self) -> None:
        """Say what is waited for, and give up when that has taken too long."""
        notice, limits = self._notice, self.terms.limits
        wait = self.link.config.wait_seconds
        if limits.max_seconds is not None and notice.seconds >= limits.max_seconds:
            if not self._stopping:
                self._stage.ask(f"MaxRuntimeInSeconds ({limits.max_seconds:g} s)")
        elif notice.seconds >= wait and not self._stopping:
            text = f"no rank has begun in {wait:g} s of waiting for {self.missing()}"
            found = Failure(
                name="LaunchError", message=text, phase="launch", status=1, host=self.terms.host
            )
            self._fail(found, Priority.SERVICE)
        elif notice.is_due():
            log.info("waiting for %s (%.0f s / %g s)", self.missing(), notice.seconds, wait)

    def over(self) -> bool:
        """Whether all has ended, those at the door included."""
        return super().over() and (not self._leaving or self.seconds() == 0)

    def rank_of(self, run: Process) -> int | None:
        """Return the rank of a script's process."""
        return self._ranks[run][0] if run in self._ranks else None

    def ended(self, run: Process) -> None:
        """Let a rank's stand-in end, too, where the rank ended well."""
        super().ended(run)
        if run in self._ranks and run.status == 0:
            self._dismiss(run, 0)

    def check_finished(self) -> None:
        """Say that this host's part is done: the ranks' and the launcher's."""
        if self._finished or self._live(self._scripts):
            return
        # After a request to stop the others' ranks keep the launcher from ending.
        if self._stopping or self.has_launched():
            self.finish_part()

    def has_launched(self) -> bool:
        """Whether no rank of this host is still to come."""
        return self._wired

    def release(self) -> None:
        """Let the ranks' stand-ins end."""
        for run in list(self._ranks):
            self._dismiss(run, 1 if self.outcome else 0)

    def dismiss(self, run: Process) -> None:
        """Give the launcher, which ends by itself when its processes have ended, its time."""

    def asked(self, caller: StubConnection, words: list[bytes]) -> None:
        """Take a request that is not a rank's."""
        self._let_go(caller, 1)

    def environment(self, found: dict[str, str]) -> dict[str, str]:
        """Return a rank's environment, given its stand-in's."""
        return found

    def prefix(self, rank: int, stream: str) -> bytes | None:
        """Return what a rank's lines begin with, which keeps them whole beside those of others."""
        return b""

    def _read_request(self, caller: StubConnection) -> None:
        try:
            words = caller.read()
        except OSError:
            self._callers.remove(caller)
            return
        if words is None:
            return
        self._callers.remove(caller)
        if words[0] == b"rank":
            self._begin_rank(caller, words[1], words[2:])
        else:
            self.asked(caller, words)

    def _begin_rank(self, caller: StubConnection, cpus: bytes, variables: list[bytes]) -> None:
        """Start the script with the environment that the launcher gave to the rank's stand-in."""
        env = dict(os.fsdecode(pair).partition("=")[::2] for pair in variables)
        env["PWD"] = self._script.cwd
        env.pop("TMPDIR", None)  # the launcher's, not the script's
        if "TMPDIR" in self._script.env:
            env["TMPDIR"] = self._script.env["TMPDIR"]
        rank = int(env.get(self.rank_variable, "-1"))
        if self._closing_at is not None or self._stopping:
            self._let_go(caller, 1)
            return
        relays = (
            Relay(self._stage.out, f"stdout-{rank}", self.prefix(rank, "stdout")),
            Relay(self._stage.err, f"stderr-{rank}", self.prefix(rank, "stderr")),
        )
        command = replace(self._script, env=self.environment(env), name=f"rank {rank}")
        run = self._perform(command, relays)
        self._ranks[run] = (rank, caller)
        affinity = {int(cpu) for cpu in cpus.split(b",")}
        if affinity != os.sched_getaffinity(0):
            os.sched_setaffinity(run.pid, affinity)

    def _service_ended(self, run: Process, command: Command) -> None:
        if run.status:
            super()._service_ended(run, command)
        elif command is self._launcher:
            self._conclude(run, lambda: self._launched(run))
        else:
            self._wired = True

    def _launched(self, run: Process) -> None:
        """Believe a launcher that its part has ended well, or not."""
        self._wired = True
        done = self._stopping or self._held or self._finished or self._closing_at is not None
        if not done and (found := self.explain_clean_exit(run)):
            self._fail(found, Priority.SERVICE)

    def explain_clean_exit(self, run: Process) -> Failure | None:
        """Return what a launcher that ended well has done to ranks, if it has."""
        if not self._cut:
            return None
        return Failure(
            name="LaunchError",
            message=f"{run.name} ended the rank, for a reason that it does not give",
            phase="train",
            status=1,
            rank=self._cut[0],
            host=self.terms.host,
        )

    def _let_go(self, caller: StubConnection, status: int) -> None:
        caller.answer(status)
        self._leaving.append(caller)

    def _dismiss(self, run: Process, status: int) -> None:
        rank, holder = self._ranks[run]
        if holder is not None:
            self._let_go(holder, status)
            self._ranks[run] = (rank, None)
