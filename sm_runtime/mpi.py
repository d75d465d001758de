"""The ranks of an MPI job on one host: ``mpirun`` on the leader, and its daemons, launch them."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterable, Mapping

from sm_runtime.door import Caller, Door
from sm_runtime.ensemble import SERVICE_WEIGHT, Terms
from sm_runtime.failure import Failure
from sm_runtime.link.common import Link
from sm_runtime.model import Command
from sm_runtime.ranks import RankEnsemble
from sm_runtime.running import Running

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from sm_runtime.model import Json

log = logging.getLogger(__name__)

DAEMON = "orted"
"""Open MPI's daemon, the only program that the leader may have another host start."""

_ABORTED = re.compile(rb"MPI_ABORT was invoked on rank (\d+) .*?errorcode (-?\d+)", re.DOTALL)


class MpiEnsemble(RankEnsemble):
    """The ranks of one host, and the part of Open MPI that runs there.

    ``script`` is what each rank runs, ``mpirun`` the leader's command, ``daemon`` says where and
    how another host's daemon runs. ``expected`` ranks are to run here.
    """

    rank_variable = "OMPI_COMM_WORLD_RANK"

    def __init__(
        self,
        link: Link,
        terms: Terms,
        *,
        door: Door,
        script: Command,
        expected: int,
        launcher: Command | None,
    ) -> None:
        super().__init__(link, terms, door=door, script=script, launcher=launcher)
        self._expected = expected
        self._count = 0
        self._agents: dict[int, Caller] = {}
        self._daemons: dict[Running, int] = {}

    def files(self) -> Iterable[int]:
        """Return the door, and whoever stands there."""
        return (*super().files(), *(caller.fileno() for caller in self._agents.values()))

    def has_launched(self) -> bool:
        """Whether no rank of this host is still to come."""
        return self._wired or (self._launcher is None and len(self._ranks) >= self._expected)

    def environment(self, found: dict[str, str]) -> dict[str, str]:
        """Return a rank's environment: this host's own where Open MPI brings the leader's."""
        return found | self._door.rank_variables

    def prefix(self, rank: int, stream: str) -> bytes:
        """Return what a rank's lines begin with, as in SageMaker's toolkit."""
        return f"[1,mpirank:{rank},{self.terms.host}]<{stream}>".encode()

    def receive(self, message: Mapping[str, Json]) -> None:
        """Start Open MPI's daemon for the leader, or tell its agent how that ended."""
        if message.get("do") == "launch":
            self._launch(message["id"], message["words"])
        elif message.get("do") == "exited":
            self._answer(message["id"], message["status"])

    def release(self) -> None:
        """Let the ranks' stand-ins and the agents end."""
        super().release()
        for identity in list(self._agents):
            self._answer(identity, 0)

    def asked(self, caller: Caller, words: list[bytes]) -> None:
        """Have the host that ``mpirun`` wants start Open MPI's daemon."""
        if words[0] != b"agent" or self._launcher is None:
            self._let_go(caller, 1)
            return
        self._count += 1
        identity = self._count
        self._agents[identity] = caller
        host, *rest = (os.fsdecode(word) for word in words[1:])
        if host == self.terms.host:  # its own name does not resolve to it
            self._launch(identity, rest)
        else:
            self.link.send(host, {"do": "launch", "id": identity, "words": rest})

    def _launch(self, identity: int, words: list[str]) -> None:
        """Start Open MPI's daemon on this host; the words are meant for a shell, and get none."""
        argv = shlex.split(" ".join(words))
        if os.path.basename(argv[0]) != DAEMON:
            log.error("the leader asks for %r, which is not Open MPI's daemon", argv[0])
            self._exited(identity, 126)
            return
        env = {**self._script.env, **self._door.variables}
        run = self._serve(Command(argv=tuple(argv), cwd=self._script.cwd, env=env, name=DAEMON))
        self._daemons[run] = identity

    def _service_ended(self, run: Running, command: Command) -> None:
        assert run.status is not None
        if run in self._daemons:
            self._exited(self._daemons[run], run.shell_status())
        if run.status and self._closing_at is None and command is self._launcher:
            ended = run.finish(1.0)
            if aborted := _ABORTED.search(ended.tail):
                rank, status = int(aborted[1]), int(aborted[2]) & 0xFF
                message = f"called MPI_Abort with error code {int(aborted[2])}"
                host = self._host_of(rank)
                self._fail(
                    Failure(
                        name="MPIAbort",
                        message=message,
                        phase="train",
                        status=status or 1,
                        rank=rank,
                        host=host,
                    ),
                    SERVICE_WEIGHT,
                )
                return
        super()._service_ended(run, command)

    def _host_of(self, rank: int) -> str:
        """Return the host of a rank: ranks fill the hosts one by one, unless options say else."""
        hosts = self.link.terms.hosts
        return hosts[min(rank // max(1, self._expected), len(hosts) - 1)]

    def _exited(self, identity: int, status: int) -> None:
        """Have the agent that asked for a daemon end as the daemon did."""
        if self._launcher is not None:
            self._answer(identity, status)
        else:
            message = {"do": "exited", "id": identity, "status": status}
            self.link.send(self.link.terms.leader, message)

    def _answer(self, identity: int, status: int) -> None:
        agent = self._agents.pop(identity, None)
        if agent is not None:
            self._let_go(agent, status)
