"""The ranks of an MPI job on one host: ``mpirun`` on the leader, and its daemons, launch them."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sm_runtime.cluster.agreement import Priority
from sm_runtime.cluster.host import HostPolicy
from sm_runtime.cluster.launcher_socket import LauncherSocket, StubConnection
from sm_runtime.cluster.link import Link
from sm_runtime.cluster.ranks import RankProcesses
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Command, Json
from sm_runtime.launch.open_mpi import restored_names
from sm_runtime.processes.process import Process

if TYPE_CHECKING:
    from sm_runtime.cluster.roles import OpenMpi

log = logging.getLogger(__name__)

DAEMON = "orted"
"""Open MPI's daemon, the only program that the leader may have another host start."""

_ABORTED = re.compile(rb"MPI_ABORT was invoked on rank (\d+) .*?errorcode (-?\d+)", re.DOTALL)
_IMPROPER = re.compile(rb"process rank (\d+) with PID \d+ on\s+node \S+ exiting improperly")
_PARAGRAPH = re.compile(rb"^-{20,}\n(.+?)(?:\n\s*\n|\n-{20,}$)", re.DOTALL | re.MULTILINE)


class MpiRanks(RankProcesses):
    """The ranks of one host, and the part of Open MPI that runs there.

    ``script`` is what each rank runs, ``mpirun`` the leader's command, ``daemon`` says where and
    how another host's daemon runs. ``expected`` ranks are to run here. ``known`` is what Open MPI
    is configured with here, and what it calls the hosts.
    """

    rank_variable = "OMPI_COMM_WORLD_RANK"

    def __init__(
        self,
        link: Link,
        terms: HostPolicy,
        *,
        door: LauncherSocket,
        script: Command,
        expected: int,
        launcher: Command | None,
        known: OpenMpi,
    ) -> None:
        super().__init__(link, terms, door=door, script=script, launcher=launcher)
        self._known = known
        self._expected = expected
        self._count = 0
        self._began = False
        """Whether a rank of any host has begun, as far as this host knows."""
        self._agents: dict[int, StubConnection] = {}
        self._asked: list[str] = []
        """The hosts on which the leader has had daemons started."""
        self._daemons: dict[Process, int] = {}

    def files(self) -> Iterable[int]:
        """Return the door, and whoever stands there."""
        return (*super().files(), *(caller.fileno() for caller in self._agents.values()))

    def has_launched(self) -> bool:
        """Whether no rank of this host is still to come."""
        return self._wired or (self._launcher is None and len(self._ranks) >= self._expected)

    def environment(self, found: dict[str, str]) -> dict[str, str]:
        """Return a rank's environment: this host's own where Open MPI brings the leader's."""
        return self._known.host.applied(found) | self._door.rank_variables

    def prefix(self, rank: int, stream: str) -> bytes:
        """Return what a rank's lines begin with, as Open MPI and SageMaker's toolkit write it."""
        return f"[1,mpirank:{rank},{self.terms.host}]<{stream}>:".encode()

    def receive(self, message: Mapping[str, Json]) -> None:
        """Start Open MPI's daemon for the leader, or tell its agent how that ended."""
        if message.get("do") == "launch":
            self._launch(message["id"], message["words"])
        elif message.get("do") == "exited":
            self._answer(message["id"], message["status"])
        elif message.get("do") == "began":
            self._began = True

    def has_started_ranks(self) -> bool:
        """Whether ranks have begun: those of all hosts do so together."""
        return self._began or super().has_started_ranks()

    def missing(self) -> str:
        """Return, in words, what is waited for while no rank has begun."""
        return f"Open MPI's daemons on {', '.join(self._asked)}" if self._asked else "mpirun"

    def _begin_rank(self, caller: StubConnection, cpus: bytes, variables: list[bytes]) -> None:
        if not self._ranks and self._launcher is None:
            self.link.send(self.link.config.leader, {"do": "began"})
        super()._begin_rank(caller, cpus, variables)

    def release(self) -> None:
        """Let the ranks' stand-ins and the agents end."""
        super().release()
        for identity in list(self._agents):
            self._answer(identity, 0)

    def asked(self, caller: StubConnection, words: list[bytes]) -> None:
        """Have the host that ``mpirun`` wants start Open MPI's daemon."""
        if words[0] != b"agent" or self._launcher is None:
            self._let_go(caller, 1)
            return
        self._count += 1
        identity = self._count
        self._agents[identity] = caller
        named, *rest = (os.fsdecode(word) for word in words[1:])
        host = next((h for h, name in self._known.names.items() if name == named), named)
        self._asked.append(host)
        if host == self.terms.host:  # its own name does not resolve to it
            self._launch(identity, rest)
        elif host not in self.link.config.hosts:
            log.error("mpirun asks for a daemon on %r, which is no host of the job", host)
            self._answer(identity, 1)
        else:
            self.link.send(host, {"do": "launch", "id": identity, "words": rest})

    def _launch(self, identity: int, words: list[str]) -> None:
        """Start Open MPI's daemon on this host; the words are meant for a shell, and get none."""
        argv = self._known.host.without(tuple(shlex.split(" ".join(words))))
        if os.path.basename(argv[0]) != DAEMON:
            log.error("the leader asks for %r, which is not Open MPI's daemon", argv[0])
            self._exited(identity, 126)
            return
        env = {**self._script.env, **self._door.variables, **self._known.host.variables}
        run = self._serve(Command(argv=argv, cwd=self._script.cwd, env=env, name=DAEMON))
        self._daemons[run] = identity

    def _service_ended(self, run: Process, command: Command) -> None:
        if run in self._daemons:
            self._exited(self._daemons[run], run.shell_status())
        super()._service_ended(run, command)

    def explain_clean_exit(self, run: Process) -> Failure | None:
        """Return what mpirun has done to ranks: MPI_Abort with an error code of 0 ends it well."""
        aborted = _ABORTED.search(run.so_far().tail)
        return self._abort(aborted) if aborted else super().explain_clean_exit(run)

    def service_priority(self, command: Command) -> Priority:
        """Return how likely a failure is the cause of others: mpirun knows more than a daemon."""
        return Priority.SERVICE if command is self._launcher else Priority.HELPER

    def reason(self, run: Process, command: Command) -> Failure:
        """Return why Open MPI has ended: it says so itself, in a paragraph of its own."""
        found = super().reason(run, command)
        if command is not self._launcher:
            more = "" if self._ranks else ": it needs any TCP port of the leader"
            return replace(found, message=found.message + more)
        tail = run.so_far().tail
        if aborted := _ABORTED.search(tail):
            return self._abort(aborted)
        if improper := _IMPROPER.search(tail):
            rank = int(improper[1])
            message = "ended without MPI_Finalize, though the others are not done"
            return replace(found, message=message, rank=rank, host=self._host_of(rank))
        if said := _PARAGRAPH.search(tail):
            text = " ".join(said[1].decode("utf-8", "replace").split())
            text = restored_names(text, self._known.names)
            return replace(found, message=self.terms.mask(f"mpirun: {text}"))
        return found

    def _abort(self, said: re.Match[bytes]) -> Failure:
        rank, code = int(said[1]), int(said[2])
        return Failure(
            name="MPIAbort",
            message=f"called MPI_Abort with error code {code}",
            phase="train",
            status=code & 0xFF or 1,
            rank=rank,
            host=self._host_of(rank),
        )

    def _host_of(self, rank: int) -> str:
        """Return the host of a rank: ranks fill the hosts one by one, unless options say else."""
        hosts = self.link.config.hosts
        return hosts[min(rank // max(1, self._expected), len(hosts) - 1)]

    def _exited(self, identity: int, status: int) -> None:
        """Have the agent that asked for a daemon end as the daemon did."""
        if self._launcher is not None:
            self._answer(identity, status)
        else:
            message = {"do": "exited", "id": identity, "status": status}
            self.link.send(self.link.config.leader, message)

    def _answer(self, identity: int, status: int) -> None:
        agent = self._agents.pop(identity, None)
        if agent is not None:
            self._let_go(agent, status)
