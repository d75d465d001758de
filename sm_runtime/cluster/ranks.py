"""The ranks of a job on one host, and the launcher that brings them together.

A launcher (Open MPI's ``mpirun`` and its daemons, PyTorch's ``torchrun``) wires the ranks up and
nothing more. What it starts is ``programs/launcher_stub.py``; the script itself is a child of its
host's supervisor, with that host's environment and with a relay of its own, so that its lines stay
whole and its end is known first hand: no launcher's timeout comes between a rank's end and the
job's.
"""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sm_runtime.cluster.agreement import Priority
from sm_runtime.cluster.config import Notice
from sm_runtime.cluster.host import HostPolicy, HostProcesses
from sm_runtime.cluster.link import Link
from sm_runtime.job.errors import LaunchError
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Command, Ended, Json
from sm_runtime.processes.workload import (
    Action,
    Answer,
    Disconnected,
    Event,
    ProcessState,
    Requested,
    shell_status,
)

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often is looked how long the first rank is waited for."""
UNHELD_SECONDS = 1.0
"""What a rank has to end whose launcher has given it up."""


class Launcher:
    """What differs from one launcher to another; as it is: torchrun, which each host runs."""

    rank_variable = "RANK"
    """Where the launcher says which rank a process is."""
    daemon: str | None = None
    """The only program that it may have other hosts start; None: it starts none."""
    expected: int | None = None
    """How many ranks run here, where another host's launcher brings them; None: unknown."""

    def environment(self, found: dict[str, str]) -> dict[str, str]:
        """Return a rank's environment, given what the launcher gave to its stub."""
        return found

    def prefix(self, rank: int, stream: str) -> bytes:
        """Return what each of a rank's lines begins with; an empty one keeps them whole, too."""
        return b""

    def daemon_command(self, words: Sequence[str], script: Command) -> Command:
        """Return how its daemon is started on this host; the words are meant for a shell."""
        raise LaunchError("this launcher has no daemons")

    def host_of(self, name: str) -> str:
        """Return the host that the launcher calls so."""
        return name

    def missing(self, hosts: Sequence[str], asked: Sequence[str]) -> str:
        """Return, in words, what is waited for while no rank has begun.

        ``hosts`` are those of the job, ``asked`` those on which daemons have been started.
        """
        return f"torchrun to bring {', '.join(hosts)} together"

    def explain_failure(self, found: Failure, ended: Ended) -> Failure:
        """Return why the launcher has failed, in its own words if it has any."""
        return found

    def explain_success(self, ended: Ended) -> Failure | None:
        """Return what a launcher that ended well has done to ranks, if it has."""
        return None


class RankProcesses(HostProcesses):
    """The ranks of one host, and what of the launcher runs there.

    ``script`` is what each rank runs, ``command`` has the ranks connect to this host's launcher
    socket; None where another host's does, which may have ``launcher.daemon`` started here.
    """

    def __init__(
        self,
        link: Link,
        policy: HostPolicy,
        *,
        launcher: Launcher,
        script: Command,
        command: Command | None,
    ) -> None:
        super().__init__(link, policy)
        self.launcher, self._script, self._command = launcher, script, command
        self._main: ProcessState | None = None
        """The launcher's own process."""
        self._ranks: dict[int, int] = {}
        """The rank of each process that runs the script."""
        self._holders: dict[int, int] = {}
        """The connection of the stub in whose place a process runs, by the process's key."""
        self._leaving: set[int] = set()
        """The connections of stubs that have their answer, and are about to end."""
        self._has_launched = False
        """Whether the launcher's part has ended well."""
        self._ranks_have_begun = False
        """Whether a rank of any host has begun, as far as this host knows."""
        self._unheld: tuple[int, ...] = ()
        """The ranks whose stubs were ended while they ran."""
        self._count = 0
        self._agents: dict[int, int] = {}
        """The connections that wait for the end of a daemon, by the number of their request."""
        self._asked: list[str] = []
        """The hosts on which the launcher has had daemons started."""
        self._daemons: dict[int, int] = {}
        """The number of the request that started a daemon here, by the daemon's key."""

    # -- what the supervisor asks ------------------------------------------------------------

    def begin(self, now: float) -> Sequence[Action]:
        """Start the launcher, which starts the rest."""
        self._notice, self._look_at = Notice(now), now
        if self._command:
            self._main = self.serve(self._command)
        return super().begin(now)

    def next_time(self) -> float:
        """Return when something is due; infinity: never."""
        return min(super().next_time(), self._look_at if self._is_launching else math.inf)

    def is_done(self, now: float) -> bool:
        """Whether all has ended, the stubs that have their answer included."""
        return super().is_done(now) and (not self._leaving or now >= self.closing_at)

    # -- what happens ------------------------------------------------------------------------

    def take(self, event: Event, now: float) -> None:
        """Take an event, the states of the processes being up to date."""
        super().take(event, now)
        match event:
            case Requested(connection, (b"rank", cpus, *variables)):
                self._start_rank(connection, cpus, variables, now)
            case Requested(connection, (b"agent", name, *words)):
                self._start_daemon(connection, os.fsdecode(name), [*map(os.fsdecode, words)])
            case Requested(connection, _):
                self._answer(connection, 1)
            case Disconnected(connection):
                self._disconnected(connection, now)
        if self._is_launching and now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look_at_launch(now)

    def receive(self, message: Mapping[str, Json]) -> None:
        """Start a daemon for the leader's launcher, or tell its agent how that ended."""
        match message.get("do"):
            case "launch":
                self._launch_daemon(message["id"], message["words"])
            case "exited":
                self._answer_agent(message["id"], message["status"])
            case "began":
                self._ranks_have_begun = True

    def ended(self, state: ProcessState) -> None:
        """Take the end of a rank, or of what of the launcher runs here."""
        if state.stop:
            super().ended(state)
            if state.status == 0:
                self._answer_holder(state.key, 0)
            return
        if state.key in self._daemons:
            self._daemon_exited(self._daemons[state.key], shell_status(state.status or 0))
        if state.status:
            super().ended(state)
        elif state is self._main:
            self.await_output(state)
        else:
            self._has_launched = True

    def conclude(self, state: ProcessState, ended: Ended) -> None:
        """Draw the conclusion from an end; believe a launcher that it has done its part, or not."""
        if state is not self._main or state.status:
            super().conclude(state, ended)
            return
        self._has_launched = True
        done = self.is_stopping or self.is_finished or self.is_closing
        found = self.launcher.explain_success(ended) or self._given_up(state, ended)
        if found and not done:
            self.fail(found, Priority.SERVICE)

    def service_failure(self, state: ProcessState, ended: Ended) -> Failure:
        """Return why the launcher, or its daemon, has ended."""
        found = super().service_failure(state, ended)
        if state is self._main:
            return self.launcher.explain_failure(found, ended).masked(self.policy.mask)
        more = "" if self._ranks else ": it needs any TCP port of the leader"
        return replace(found, message=found.message + more)

    def service_priority(self, state: ProcessState) -> Priority:
        """Return how likely a failure is the cause of others: a launcher knows most."""
        return Priority.SERVICE if state is self._main else Priority.HELPER

    def rank_of(self, key: int) -> int | None:
        """Return the rank of a process that runs the script."""
        return self._ranks.get(key)

    # -- what follows ------------------------------------------------------------------------

    def check_finished(self) -> None:
        """Report that this host's part is done: the ranks' and the launcher's."""
        if self.processes.live_scripts():
            return
        is_complete = self._command is None and self.launcher.expected is not None
        has_all = is_complete and len(self._ranks) >= (self.launcher.expected or 0)
        # After a request to stop the others' ranks keep the launcher from ending.
        if self.is_stopping or self._has_launched or has_all:
            self.finish_part()

    def dismiss(self, state: ProcessState, now: float) -> None:
        """Give the launcher, which ends by itself when its processes have ended, its time."""

    def release(self) -> None:
        """Let the ranks' stubs and the agents end."""
        for key in list(self._holders):
            self._answer_holder(key, 1 if self.outcome else 0)
        for identity in list(self._agents):
            self._answer_agent(identity, 0)

    def _start_rank(
        self, connection: int, cpus: bytes, variables: Sequence[bytes], now: float
    ) -> None:
        """Start the script with the environment that the launcher gave to the rank's stub."""
        if self.is_closing or self.is_stopping:
            self._answer(connection, 1)
            return
        env = dict(os.fsdecode(pair).partition("=")[::2] for pair in variables)
        env["PWD"] = self._script.cwd
        env.pop("TMPDIR", None)  # the launcher's, not the script's
        if "TMPDIR" in self._script.env:
            env["TMPDIR"] = self._script.env["TMPDIR"]
        launcher = self.launcher
        rank = int(env.get(launcher.rank_variable, "-1"))
        if not self._ranks and self._command is None:
            self.link.send(self.link.config.leader, {"do": "began"})
        command = replace(self._script, env=launcher.environment(env), name=f"rank {rank}")
        start = self.processes.start(
            command,
            now,
            prefixes=(launcher.prefix(rank, "stdout"), launcher.prefix(rank, "stderr")),
            cpus=frozenset(map(int, cpus.split(b","))),
        )
        self.start(start)
        self._ranks[start.key], self._holders[start.key] = rank, connection
        self._ranks_have_begun = True

    def _disconnected(self, connection: int, now: float) -> None:
        """A stub is gone: its launcher ends the job, for a reason that it will give."""
        self._leaving.discard(connection)
        self._agents = {i: other for i, other in self._agents.items() if other != connection}
        for key, holder in list(self._holders.items()):
            if holder == connection:
                del self._holders[key]
                if self.processes[key].is_live:
                    self._unheld += (self._ranks[key],)
                    self.do(self.processes[key].end(UNHELD_SECONDS, now))

    @property
    def _is_launching(self) -> bool:
        """Whether this host's launcher is to bring the ranks together, and has not yet."""
        done = self._ranks_have_begun or self._has_launched or self.is_finished or self.is_closing
        return self._main is not None and not done

    def _look_at_launch(self, now: float) -> None:
        """Say what is waited for, and give up when that has taken too long."""
        config, seconds = self.link.config, self._notice.seconds(now)
        wait, limit = config.wait_seconds, self.policy.stop.max_seconds
        missing = self.launcher.missing(config.hosts, self._asked)
        if self.is_stopping:
            return
        if limit is not None and seconds >= limit:
            reason = f"MaxRuntimeInSeconds ({limit:g} s)"
            self.do(self.processes.request(reason, signal.SIGTERM, now))
        elif seconds >= wait:
            text = f"no rank has begun in {wait:g} s of waiting for {missing}"
            host = self.policy.host
            found = Failure(name="LaunchError", message=text, phase="launch", status=1, host=host)
            self.fail(found, Priority.SERVICE)
        elif self._notice.is_due(now):
            log.info("waiting for %s (%.0f s / %g s)", missing, seconds, wait)

    def _given_up(self, launcher: ProcessState, ended: Ended) -> Failure | None:
        """Return that a launcher which ended well has ended ranks or begun none, if it has."""
        if not self._ranks_have_begun:  # Open MPI with too few slots of Slurm's ends so
            text = f"{launcher.name} ended before any rank began"
            host = self.policy.host
            found = Failure(name="LaunchError", message=text, phase="launch", status=1, host=host)
            return self.launcher.explain_failure(found, ended).masked(self.policy.mask)
        if not self._unheld:
            return None
        return Failure(
            name="LaunchError",
            message=f"{launcher.name} ended the rank, for a reason that it does not give",
            phase="train",
            status=1,
            rank=self._unheld[0],
            host=self.policy.host,
        )

    def _start_daemon(self, connection: int, name: str, words: list[str]) -> None:
        """Have the host that the launcher names start its daemon."""
        if self._main is None or self.launcher.daemon is None:
            self._answer(connection, 1)
            return
        self._count += 1
        identity, host = self._count, self.launcher.host_of(name)
        self._agents[identity] = connection
        self._asked.append(host)
        if host == self.policy.host:  # its own name does not resolve to it
            self._launch_daemon(identity, words)
        elif host not in self.link.config.hosts:
            log.error("mpirun asks for a daemon on %r, which is no host of the job", host)
            self._answer_agent(identity, 1)
        else:
            self.link.send(host, {"do": "launch", "id": identity, "words": words})

    def _launch_daemon(self, identity: int, words: Sequence[str]) -> None:
        """Start the launcher's daemon on this host."""
        if self.launcher.daemon is None:
            self._daemon_exited(identity, 126)
            return
        command = self.launcher.daemon_command(words, self._script)
        program = command.argv[0]
        if os.path.basename(program) != self.launcher.daemon:
            log.error("the leader asks for %r, which is not Open MPI's daemon", program)
            self._daemon_exited(identity, 126)
            return
        self._daemons[self.serve(command).key] = identity

    def _daemon_exited(self, identity: int, status: int) -> None:
        """Have the agent that asked for a daemon end as the daemon did."""
        if self._main is not None:
            self._answer_agent(identity, status)
        else:
            message = {"do": "exited", "id": identity, "status": status}
            self.link.send(self.link.config.leader, message)

    def _answer_agent(self, identity: int, status: int) -> None:
        if (connection := self._agents.pop(identity, None)) is not None:
            self._answer(connection, status)

    def _answer_holder(self, key: int, status: int) -> None:
        if (connection := self._holders.pop(key, None)) is not None:
            self._answer(connection, status)

    def _answer(self, connection: int, status: int) -> None:
        self.do([Answer(connection, status)])
        self._leaving.add(connection)
