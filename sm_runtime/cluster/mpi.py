"""Open MPI as a launcher of ranks: how its daemons are started, and what it says of its end."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sm_runtime.cluster.ranks import Launcher
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Command, Ended
from sm_runtime.launch.host_names import restored

if TYPE_CHECKING:
    from sm_runtime.cluster.roles import OpenMpiSettings

_ABORTED = re.compile(rb"MPI_ABORT was invoked on rank (\d+) .*?errorcode (-?\d+)", re.DOTALL)
_IMPROPER = re.compile(rb"process rank (\d+) with PID \d+ on\s+node \S+ exiting improperly")
_PARAGRAPH = re.compile(rb"^-{20,}\n(.+?)(?:\n\s*\n|\n-{20,}$)", re.DOTALL | re.MULTILINE)


class OpenMpi(Launcher):
    """Open MPI: ``mpirun`` on the leader, and a daemon on each other host.

    ``rank_variables`` are what a rank needs of this host, where Open MPI brings the leader's, and
    ``variables`` what Open MPI's processes need in their environment.
    """

    rank_variable = "OMPI_COMM_WORLD_RANK"
    daemon = "orted"

    def __init__(
        self,
        settings: OpenMpiSettings,
        *,
        host: str,
        hosts: tuple[str, ...],
        expected: int,
        rank_variables: Mapping[str, str],
        variables: Mapping[str, str],
    ) -> None:
        self.expected = expected
        self._settings, self._host, self._hosts = settings, host, hosts
        self._rank_variables, self._variables = rank_variables, variables

    def environment(self, found: dict[str, str]) -> dict[str, str]:
        """Return a rank's environment: this host's own where Open MPI brings the leader's."""
        return {**self._settings.host.applied(found), **self._rank_variables}

    def prefix(self, rank: int, stream: str) -> bytes:
        """Return what a rank's lines begin with, as Open MPI and SageMaker's toolkit write it."""
        return f"[1,mpirank:{rank},{self._host}]<{stream}>:".encode()

    def daemon_command(self, words: Sequence[str], script: Command) -> Command:
        """Return how ``orted`` is started; the words are meant for a shell, and get none."""
        argv = self._settings.host.without(tuple(shlex.split(" ".join(words))))
        env = {**script.env, **self._variables, **self._settings.host.variables}
        return Command(argv=argv, cwd=script.cwd, env=env, name="orted")

    def host_of(self, name: str) -> str:
        """Return the host that Open MPI calls so."""
        return next((h for h, called in self._settings.names.items() if called == name), name)

    def missing(self, hosts: Sequence[str], asked: Sequence[str]) -> str:
        """Return, in words, what is waited for while no rank has begun."""
        return f"Open MPI's daemons on {', '.join(asked)}" if asked else "mpirun"

    def explain_success(self, ended: Ended) -> Failure | None:
        """Return what mpirun has done to ranks: MPI_Abort with an error code of 0 ends it well."""
        said = _ABORTED.search(ended.tail)
        return self._abort(said) if said else None

    def explain_failure(self, found: Failure, ended: Ended) -> Failure:
        """Return why Open MPI has ended: it says so itself, in a paragraph of its own."""
        if aborted := self.explain_success(ended):
            return aborted
        if improper := _IMPROPER.search(ended.tail):
            rank = int(improper[1])
            message = "ended without MPI_Finalize, though the others are not done"
            return replace(found, message=message, rank=rank, host=self._host_of_rank(rank))
        if said := _PARAGRAPH.search(ended.tail):
            text = " ".join(said[1].decode("utf-8", "replace").split())
            return replace(found, message=f"mpirun: {restored(text, self._settings.names)}")
        return found

    def _abort(self, said: re.Match[bytes]) -> Failure:
        rank, code = int(said[1]), int(said[2])
        return Failure(
            name="MPIAbort",
            message=f"called MPI_Abort with error code {code}",
            phase="train",
            status=code & 0xFF or 1,
            rank=rank,
            host=self._host_of_rank(rank),
        )

    def _host_of_rank(self, rank: int) -> str:
        """Return the host of a rank: ranks fill the hosts one by one, unless options say else."""
        return self._hosts[min(rank // max(1, self.expected or 1), len(self._hosts) - 1)]
