"""The processes of an MPI job on one host.

``mpirun`` on the leader, and its daemons on the other hosts, bring the ranks together and nothing
more. What they start is ``programs/knock.py``; the script itself is a child of its host's
supervisor, with that host's environment and with a relay of its own, so that its lines stay whole
and its end is known first hand.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterable, Mapping

from sm_runtime.door import Caller, Door
from sm_runtime.ensemble import SERVICE_WEIGHT, Ensemble, Terms
from sm_runtime.failure import Failure
from sm_runtime.frozen import replace
from sm_runtime.link.common import Link
from sm_runtime.model import Command
from sm_runtime.relay import Relay
from sm_runtime.running import Running

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from sm_runtime.model import Json

log = logging.getLogger(__name__)

DAEMON = "orted"
"""Open MPI's daemon, the only program that the leader may have another host start."""

_ABORTED = re.compile(rb"MPI_ABORT was invoked on rank (\d+) .*?errorcode (-?\d+)", re.DOTALL)


class MpiEnsemble(Ensemble):
    """The ranks of one host, and the part of Open MPI that runs there.

    ``script`` is what each rank runs, ``mpirun`` the leader's command, ``daemon`` says where and
    how another host's daemon runs. ``expected`` ranks are to run here.
    """

    def __init__(
        self,
        link: Link,
        terms: Terms,
        *,
        door: Door,
        script: Command,
        expected: int,
        mpirun: Command | None,
    ) -> None:
        super().__init__(link, terms, services=(mpirun,) if mpirun else ())
        self._door, self._script, self._mpirun = door, script, mpirun
        self._expected = expected
        self._callers: list[Caller] = []
        self._leaving: list[Caller] = []
        """Those who have their answer, and are about to end."""
        self._ranks: dict[Running, tuple[int, Caller | None]] = {}
        self._count = 0
        self._agents: dict[int, Caller] = {}
        self._daemons: dict[Running, int] = {}
        self._wired = False
        """Whether Open MPI's part has ended well."""

    def files(self) -> Iterable[int]:
        """Return the door, and whoever stands there."""
        ranks = (holder for _, holder in self._ranks.values() if holder is not None)
        callers = (*self._callers, *self._agents.values(), *ranks, *self._leaving)
        return (self._door.fileno(), *(caller.fileno() for caller in callers))

    def step(self) -> None:
        """See who is at the door, and do what the hosts have agreed on."""
        while caller := self._door.accept():
            self._callers.append(caller)
        for caller in list(self._callers):
            self._hear(caller)
        for run, (rank, holder) in list(self._ranks.items()):
            if holder is not None and holder.is_gone():
                self._ranks[run] = (rank, None)
                if run.status is None:  # Open MPI ends the job, for a reason that it will give
                    run.end(1.0)
        self._leaving = [caller for caller in self._leaving if not caller.is_gone()]
        super().step()

    def over(self) -> bool:
        """Whether all has ended, those at the door included."""
        return super().over() and (not self._leaving or self.seconds() == 0)

    def receive(self, message: Mapping[str, Json]) -> None:
        """Start Open MPI's daemon for the leader, or tell its agent how that ended."""
        if message.get("do") == "launch":
            self._launch(message["id"], message["words"])
        elif message.get("do") == "exited":
            self._answer(message["id"], message["status"])

    def rank_of(self, run: Running) -> int | None:
        """Return the rank of a script's process."""
        return self._ranks[run][0] if run in self._ranks else None

    def ended(self, run: Running) -> None:
        """Let a rank's stand-in end, too, where the rank ended well."""
        super().ended(run)
        if run in self._ranks and run.status == 0:
            self._dismiss(run, 0)

    def check_finished(self) -> None:
        """Say that this host's part is done: the ranks', and on the leader Open MPI's."""
        if self._finished or self._live(self._scripts):
            return
        if self._stopping:
            # The others' ranks keep Open MPI from ending until all hosts have agreed.
            self._finish()
        elif self._mpirun is not None:
            if self._wired:
                self._finish()
        elif len(self._ranks) >= self._expected or self._wired:
            self._finish()

    def release(self) -> None:
        """Let the ranks' stand-ins end."""
        for run in list(self._ranks):
            self._dismiss(run, 1 if self.outcome else 0)
        for identity in list(self._agents):
            self._answer(identity, 0)

    def dismiss(self, run: Running) -> None:
        """Give Open MPI, which ends by itself when its processes have ended, its time."""

    def _hear(self, caller: Caller) -> None:
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
        elif words[0] == b"agent" and self._mpirun is not None:
            self._count += 1
            identity = self._count
            self._agents[identity] = caller
            host, *rest = (os.fsdecode(word) for word in words[1:])
            if host == self.terms.host:  # its own name does not resolve to it
                self._launch(identity, rest)
            else:
                self.link.send(host, {"do": "launch", "id": identity, "words": rest})
        else:
            self._let_go(caller, 1)

    def _begin_rank(self, caller: Caller, cpus: bytes, variables: list[bytes]) -> None:
        """Start the script with the environment that Open MPI gave to the rank's stand-in."""
        env = dict(os.fsdecode(pair).partition("=")[::2] for pair in variables)
        env.pop("TMPDIR", None)  # Open MPI's, not the script's
        if "TMPDIR" in self._script.env:
            env["TMPDIR"] = self._script.env["TMPDIR"]
        env |= self._door.rank_variables
        rank = int(env.get("OMPI_COMM_WORLD_RANK", "-1"))
        if self._closing_at is not None or self._stopping:
            self._let_go(caller, 1)
            return
        tag = f"[1,mpirank:{rank},{self.terms.host}]"
        relays = (
            Relay(self._stage.out, f"stdout-{rank}", f"{tag}<stdout>".encode()),
            Relay(self._stage.err, f"stderr-{rank}", f"{tag}<stderr>".encode()),
        )
        run = self._perform(replace(self._script, env=env, name=f"rank {rank}"), relays)
        self._ranks[run] = (rank, caller)
        affinity = {int(cpu) for cpu in cpus.split(b",")}
        if affinity != os.sched_getaffinity(0):
            os.sched_setaffinity(run.pid, affinity)

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
        if run.status == 0:
            self._wired = True
            return
        if self._closing_at is None and command is self._mpirun:
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
        if self._mpirun is not None:
            self._answer(identity, status)
        else:
            message = {"do": "exited", "id": identity, "status": status}
            self.link.send(self.link.terms.leader, message)

    def _answer(self, identity: int, status: int) -> None:
        agent = self._agents.pop(identity, None)
        if agent is not None:
            self._let_go(agent, status)

    def _let_go(self, caller: Caller, status: int) -> None:
        caller.answer(status)
        self._leaving.append(caller)

    def _dismiss(self, run: Running, status: int) -> None:
        rank, holder = self._ranks[run]
        if holder is not None:
            self._let_go(holder, status)
            self._ranks[run] = (rank, None)
