"""A distributed job as one of its hosts sees it: who else takes part, and what is run here.

``Roles`` are the commands of what a host runs, once the hosts have agreed on ports.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sm_runtime import programs
from sm_runtime.cluster import mpi, network
from sm_runtime.cluster.agreement import ClusterConfig, Notice, Priority
from sm_runtime.cluster.host import HostPolicy, HostProcesses
from sm_runtime.cluster.link import Link
from sm_runtime.cluster.network import Interface
from sm_runtime.cluster.ranks import Launcher, RankProcesses
from sm_runtime.contract import config_files, environment
from sm_runtime.job.errors import ConfigError, JobError, LaunchError
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Command, Entry, Hardware, Job, Json
from sm_runtime.job.secrets import Mask
from sm_runtime.launch import commands, distribution, mca, mpirun
from sm_runtime.launch.distribution import Plan, Role
from sm_runtime.processes import hardware
from sm_runtime.processes.stop import StopPolicy
from sm_runtime.processes.supervisor import Supervisor

if TYPE_CHECKING:
    from sm_runtime.cluster.mpi import OpenMpiSettings
    from sm_runtime.cluster.ranks import LauncherSocket

log = logging.getLogger(__name__)

SECRET, SECRET_FILE = environment.CLUSTER_SECRET
SECRET_BYTES = 16
"""The least length of a secret: what is shorter can be guessed."""
LOOK_SECONDS = 1.0
"""How often a host that waits for the others looks whether it is time to say so."""
TELL_SECONDS = 5.0
"""How long a host that has failed tries to tell those that have not come yet."""
LEAVE_SECONDS = 1.0
"""How long the leader stays for the others to leave first."""
VERSION_SECONDS = 30.0
"""How long ``mpirun --version`` may take."""
_VERSION = re.compile(rb"mpirun \(Open MPI\) (\S+)")
_SETUPS = {
    distribution.MULTI_WORKER: "multi_worker_mirrored_strategy setup",
    distribution.PARAMETER_SERVER: "parameter servers",
}
"""In the words of SageMaker's TensorFlow training toolkit (20.5, ``training.py``)."""


class AgreedError(JobError):
    """The job has failed, on this host or another: ``failure`` is what all hosts say."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Session:
    """This host's part in a distributed job, from its configuration to its last word."""

    is_distributed = True

    def __init__(
        self, job: Job, variables: Mapping[str, str], supervisor: Supervisor, mask: Mask
    ) -> None:
        self._devices = hardware.of_job(job, variables)
        plan = distribution.plan(job, self._devices)
        self.plan, self._supervisor, self._mask = plan, supervisor, mask
        self.kind, self.hosts = plan.kind, plan.hosts
        self.started = False
        """Whether a script has begun."""
        is_single = len(plan.hosts) == 1
        self._interface = _interface(job, plan)
        if self._interface.reason:
            log.info("network: %s", self._interface.text)
        self.job = replace(
            job, cluster=replace(job.cluster, network_interface=self._interface.name)
        )
        self._problem: LaunchError | None = None
        versions = {}
        if plan.kind == distribution.MPI and not is_single:
            try:
                versions["Open MPI"] = self._mpi(variables)
            except LaunchError as error:  # the others hear of it
                self._problem, versions["Open MPI"] = error, ""
        config = ClusterConfig(
            cluster=job.cluster,
            hosts=plan.hosts,
            job_name=job.name or job.cluster.engine_job,
            kind=plan.kind,
            versions=versions,
            secret=secret(variables),
            port=job.options.cluster_port,
            wait_seconds=job.options.peer_wait_seconds,
            silence_seconds=job.options.peer_silence_seconds,
            patience_seconds=_patience(plan, job.options.worker_seconds),
            awaited=plan.hosts[-1:] if plan.evaluator else (),
        )
        self.roles = Roles(self.job, plan, lambda: self.link.state.start)
        self._preparing = True
        self._tell_until: float | None = None
        self.link = Link(config, self._look, self._interface.address)
        self.link.start()

    @property
    def processes_per_host(self) -> int:
        """How many processes of the script run on each host."""
        return self.plan.processes_per_host

    def launcher(self, entry: Entry) -> tuple[str, ...]:
        """Return the argument vector of what starts the script, where that is not done here."""
        return self.roles.launcher(entry, self._devices)

    def check(self) -> None:
        """Raise LaunchError where this host can do nothing for the job: the others can be told."""
        if self._problem:
            raise self._problem

    def wait_for_peers(self) -> None:
        """Wait until every host could start; raises AgreedError, or StoppedError's equal."""
        purposes = self.plan.ports
        ports = network.free_ports(self._interface.address, purposes.values())
        self.link.ready(dict(zip(purposes, ports, strict=True)), self._interface.name)
        state = self.link.state
        notice: Notice | None = None

        def is_over() -> bool:
            nonlocal notice
            now = time.monotonic()
            if self.link.is_admitted and state.waiting_for:  # until then the link says so
                notice = notice or Notice(now)
                if notice.is_due(now):
                    seconds = notice.seconds(now)
                    log.info("waiting for %s (%.0f s)", state.waiting_for, seconds)
            return bool(state.start or state.failure or self._supervisor.stopped_by)

        while not self._supervisor.wait_until(is_over, LOOK_SECONDS):
            pass
        if state.failure:
            raise AgreedError(state.failure)
        self._preparing = False

    def run(
        self, script: Command, policy: StopPolicy, keep_stacks: Callable[[bytes], None]
    ) -> Failure | None:
        """Run this host's part to the end of the whole; return why the job failed, if it did."""
        self._keep_stacks = keep_stacks
        host_policy = HostPolicy(
            host=self.job.cluster.current_host,
            stop=policy,
            mask=self._mask,
            ends_with_leader=self.plan.stops_with_leader,
        )
        if self.plan.launches_ranks:
            return self._run_ranks(script, host_policy)
        scripts = self.roles.commands(script, distribution.SCRIPT)
        self._announce(scripts)
        services = self.roles.commands(script, distribution.SERVER)
        return self._run(HostProcesses(self.link, host_policy, scripts, services))

    def fail(self, reason: str) -> None:
        """Have every host end: this one's data is not all that its script takes it for."""
        host = self.job.cluster.current_host
        found = Failure(name="DataError", message=reason, phase="download", status=1, host=host)
        self.link.failed(found, Priority.HOST_LOST)

    def report_failure(self, failure: Failure) -> Failure:
        """Tell the other hosts that this one failed; return what all say is the reason."""
        self._preparing = False
        link = self.link
        link.failed(failure)
        self._wait_for_all(lambda: bool(link.state.failure or link.state.finished))
        return link.state.failure or failure

    def leave(self, failure: Failure | None) -> Failure | None:
        """Wait until no host has anything left to do; return why the job failed, if it did."""
        link = self.link
        if failure and link.state.failure is None and link.state.start:
            failure = self.report_failure(failure)
        link.done()
        self._wait_for_all(lambda: link.state.finished)
        if self.plan.is_leader and link.state.finished:
            self._supervisor.wait_until(lambda: link.workers_gone, LEAVE_SECONDS)
        return failure or link.state.failure

    def _wait_for_all(self, condition: Callable[[], bool]) -> None:
        """Wait for what the hosts decide: not for long where some of them may never come."""
        if self.link.state.start:
            self._supervisor.wait_until(condition)
            return
        if self._tell_until is None:
            self._tell_until = time.monotonic() + TELL_SECONDS
        self._supervisor.wait_until(condition, max(0.0, self._tell_until - time.monotonic()))

    def close(self) -> None:
        """Close every socket of the link."""
        self.link.close()

    def _look(self) -> None:
        """Have the main thread look: before the start it stops at whatever another host reports."""
        state = self.link.state
        if self._preparing and state.failure:
            self._supervisor.ask(state.failure.headline())
        elif self._preparing and state.stop_reason:
            self._supervisor.ask(state.stop_reason)
        else:
            self._supervisor.wake()

    def _run(
        self, processes: HostProcesses, requests: LauncherSocket | None = None
    ) -> Failure | None:
        try:
            self._supervisor.run(processes, keep_stacks=self._keep_stacks, requests=requests)
        finally:
            self.started = processes.started
        return processes.outcome

    def _run_ranks(self, script: Command, policy: HostPolicy) -> Failure | None:
        """Run a script whose processes a launcher brings together."""
        from sm_runtime.cluster.ranks import LauncherSocket

        script = self.roles.rank(script)
        socket = LauncherSocket(script.env.get("TMPDIR"))
        try:
            launcher: Launcher
            command: Command | None
            if self.plan.kind == distribution.TORCHRUN:
                launcher, command = Launcher(), self.roles.torchrun(script, socket.variables)
            else:
                launcher, command = self._open_mpi(script, socket)
            if command:
                log.info("%s: %s", command.name, " ".join(map(self._mask, command.argv)))
            ranks = RankProcesses(
                self.link, policy, launcher=launcher, script=script, command=command
            )
            return self._run(ranks, socket)
        finally:
            socket.close()

    def _open_mpi(self, script: Command, socket: LauncherSocket) -> tuple[Launcher, Command | None]:
        """Return Open MPI as the launcher, and on the leader the command that starts it."""

        plan, settings = self.plan, self.roles.open_mpi(script)
        launcher = mpi.OpenMpi(
            settings,
            host=plan.host,
            hosts=plan.hosts,
            expected=plan.processes_per_host,
            rank_variables={**mca.of_engines(script.env), **socket.rank_variables},
            variables=socket.variables,
        )
        if not plan.is_leader:
            return launcher, None
        command = self.roles.mpirun(script, socket.variables, settings)
        if others := settings.other_names:
            log.info("Open MPI cannot use the hosts' names and gets others: %s", others)
        return launcher, command

    def _announce(self, scripts: Iterable[Command]) -> None:
        """Log the lines by which tools know TensorFlow's ways of training, as its toolkit does."""
        if setup := _SETUPS.get(self.plan.kind):
            log.info("Running distributed training job with %s", setup)
            for script in scripts:
                log.info("%s=%s", commands.TF_CONFIG, script.env[commands.TF_CONFIG])

    def _mpi(self, variables: Mapping[str, str]) -> str:
        path = shutil.which("mpirun", path=variables.get("PATH"))
        if path is None:
            raise LaunchError("sagemaker_mpi_enabled: Open MPI's mpirun is not on PATH")
        command = Command(
            argv=(path, "--version"), cwd="/", env=environment.public(variables), name="mpirun"
        )
        ended = self._supervisor.capture(command, StopPolicy(grace_seconds=1.0), VERSION_SECONDS)
        found = _VERSION.search(ended.tail)
        if not found:
            raise LaunchError(f"sagemaker_mpi_enabled: {path} is not Open MPI's mpirun")
        return found[1].decode()


def secret(variables: Mapping[str, str]) -> bytes:
    """Return the secret of the cluster, empty where there is none; raises ConfigError."""
    text, path = variables.get(SECRET, ""), variables.get(SECRET_FILE, "")
    name = SECRET_FILE if path and not text else SECRET
    if (referred := config_files.reference(text)) is not None:
        text, path = "", referred
    if path and not text:
        try:
            data = config_files.read_regular(path)
        except ConfigError as error:
            raise ConfigError(f"environment: {name}: {error}") from None
        if data is None:
            raise ConfigError(f"environment: {name}: {path}: does not exist")
        text = data.decode("utf-8", "surrogateescape").strip()
        if not text:
            raise ConfigError(f"environment: {name}: {path} is empty")
    found = text.encode("utf-8", "surrogateescape")
    if found and len(found) < SECRET_BYTES:
        raise ConfigError(
            f"environment: {name}: has {len(found)} bytes, {SECRET_BYTES} are the least"
        )
    return found


def _interface(job: Job, plan: Plan) -> Interface:
    try:
        return network.choose(job.cluster.network_interface, plan.others, plan.host)
    except LaunchError:
        if plan.others:
            raise
        return Interface(name="lo", address="127.0.0.1")


def _patience(plan: Plan, worker_seconds: float) -> float | None:
    if plan.kind == distribution.MPI:
        return 0.0
    return worker_seconds if plan.waits_for_leader else None


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

        files = mpi.file_parameters({**rank.env, **mpirun.file_parameters(self.job)}, rank.cwd)
        addresses = (self._start() or {}).get("addresses", {})
        names = mca.host_names(self.plan.hosts, addresses)
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
        own = mca.unmanaged(rank.env)
        env = {**own, **door, **launch.environ, **known.host.variables}
        return Command(argv=launch.argv, cwd=rank.cwd, env=env, name="mpirun")

    def torchrun(self, rank: Command, door: Mapping[str, str]) -> Command:
        """Return the command that brings this host's ranks together with the others'."""

        argv = commands.torchrun_command(
            self.plan,
            (*_launcher_stub(), "rank"),
            sys.executable,
            port=distribution.rendezvous_port(self.plan, self._ports()),
            installed=shutil.which("torchrun", path=rank.env.get("PATH")) is not None,
            environ=rank.env,
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
        argv = programs.start(sys.executable, "sm_runtime.programs:parameter_server")
        return Command(argv=argv, cwd=script.cwd, env=env, name="parameter server")

    def _common_interface(self, environ: Mapping[str, str]) -> str:
        """Return what names the job's network on all hosts: an interface's name, or its address."""

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
