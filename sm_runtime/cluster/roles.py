"""The commands of what a host runs for a distributed job, once the hosts have agreed on ports."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sm_runtime import programs
from sm_runtime.cluster import network
from sm_runtime.job.model import Command, Entry, Hardware, Job, Json
from sm_runtime.launch import distribution
from sm_runtime.launch.distribution import Plan, Role

if TYPE_CHECKING:
    from sm_runtime.cluster.mpi import OpenMpiSettings


class Roles:
    """What a host runs in ``plan``: ``start`` returns what all agreed on when they were ready."""

    def __init__(
        self, job: Job, plan: Plan, start: Callable[[], Mapping[str, Json] | None]
    ) -> None:
        self.job, self.plan, self._start = job, plan, start

    def launcher(self, entry: Entry, devices: Hardware) -> tuple[str, ...]:
        """Return the argument vector of what starts the script, where that is not done here."""
        return distribution.script_argv(
            self.job, self.plan, entry, devices, sys.executable, ports=self._ports()
        )

    def commands(self, script: Command, name: str) -> tuple[Command, ...]:
        """Return the commands of this host's processes whose role is ``name``."""
        return tuple(self._command(script, role) for role in self.plan.roles if role.name == name)

    def rank(self, script: Command) -> Command:
        """Return what each rank runs; of an MPI job, so that an uncaught exception ends it."""
        script = self._command(script, Role(name=distribution.SCRIPT))
        is_mpi = self.plan.kind == distribution.MPI
        if not is_mpi or script.argv[:1] != (sys.executable,) or script.argv[1:2] == ("-c",):
            return script
        argv = (sys.executable, programs.RANK, *script.argv[1:])
        return replace(script, argv=argv)

    def open_mpi(self, rank: Command) -> OpenMpiSettings:
        """Return what this host's Open MPI is configured with, and what the hosts are called."""
        from sm_runtime.cluster import mpi
        from sm_runtime.launch import mpirun, open_mpi

        files = mpi.file_parameters({**rank.env, **mpirun.file_parameters(self.job)}, rank.cwd)
        addresses = (self._start() or {}).get("addresses", {})
        names = open_mpi.host_names(self.plan.hosts, addresses)
        host = mpirun.of_host(
            self.job,
            self.plan,
            environ=rank.env,
            files=files,
            names=names,
            hostname=os.uname().nodename,
        )
        return mpi.OpenMpiSettings(files=files, names=names, host=host)

    def mpirun(self, rank: Command, door: Mapping[str, str], known: OpenMpiSettings) -> Command:
        """Return the command that brings the ranks together; ``door`` says where they connect."""
        from sm_runtime.launch import mpirun, open_mpi

        stub, files = _launcher_stub(), known.files
        launch = mpirun.command(
            self.job,
            self.plan,
            agent=(*stub, "agent"),
            interface=self._common_interface({**files, **rank.env}),
            program=(*stub, "rank"),
            environ=rank.env,
            files=files,
            names=known.names,
        )
        own = open_mpi.unmanaged(rank.env)
        env = {**own, **door, **launch.environ, **known.host.variables}
        return Command(argv=launch.argv, cwd=rank.cwd, env=env, name="mpirun")

    def torchrun(self, rank: Command, door: Mapping[str, str]) -> Command:
        """Return the command that brings this host's ranks together with the others'."""
        from sm_runtime.launch import torchrun

        argv = torchrun.command(
            self.plan,
            (*_launcher_stub(), "rank"),
            sys.executable,
            port=distribution.rendezvous_port(self.plan, self._ports()),
            installed=shutil.which("torchrun", path=rank.env.get("PATH")) is not None,
            prefix=torchrun.prefix(rank.env),
        )
        return Command(argv=argv, cwd=rank.cwd, env={**rank.env, **door}, name="torchrun")

    def _command(self, script: Command, role: Role) -> Command:
        more = distribution.role_variables(
            self.job,
            self.plan,
            role,
            script.env,
            ports=self._ports(),
            interface=self.job.cluster.network_interface,
        )
        env = {**script.env, **more}
        if role.name == distribution.SCRIPT:
            return replace(script, env=env)
        argv = programs.start(sys.executable, "sm_runtime.programs.parameter_server:main")
        return Command(argv=argv, cwd=script.cwd, env=env, name="parameter server")

    def _common_interface(self, environ: Mapping[str, str]) -> str:
        """Return what names the job's network on all hosts: an interface's name, or its address."""
        from sm_runtime.launch import mpirun

        start = self._start() or {}
        return mpirun.interface(
            self.job,
            environ,
            interfaces=start.get("interfaces", {}),
            addresses=start.get("addresses", {}),
            own=network.network_of(self.job.cluster.network_interface),
        )

    def _ports(self) -> dict[str, dict[str, int]]:
        """Return the ports that the hosts have agreed on, by what they are for, and by host."""
        ports = (self._start() or {}).get("ports", {})
        return {
            purpose: {host: ports[host][purpose] for host in self.plan.hosts}
            for purpose in self.plan.ports
        }


def _launcher_stub() -> tuple[str, ...]:
    """Return the argument vector, but for its words, of what a launcher starts in our place."""
    return (sys.executable, "-S", "-E", programs.LAUNCHER_STUB)
