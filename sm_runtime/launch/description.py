"""Says in words how a job is started: what each host runs, and where each option is from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from sm_runtime.job.model import Entry, Hardware, Job
from sm_runtime.launch import commands, distribution
from sm_runtime.launch.distribution import MPI, PLAIN, SERVER, TORCHRUN, Plan

AGENT = ("sm-runtime", "agent")
"""Stands for the launch agent, whose words differ from job to job."""


def lines(
    job: Job,
    devices: Hardware,
    entry: Entry,
    environ: Mapping[str, str],
    python: str,
    files: Mapping[str, str] | None = None,
) -> list[str]:
    """Return a line for each thing; ``devices`` are taken to be those of every host.

    ``environ`` is what the script inherits, ``files`` the variables that say the same as Open MPI's
    parameter files here. Raises ConfigError where the job cannot be started.
    """
    plans = [distribution.plan(job, devices, host) for host in job.cluster.hosts]
    own = distribution.plan(job, devices)
    found = [f"kind: {own.kind}{f', by {own.origin}' if own.origin else ''}"]
    found.append(f"hosts: {', '.join(own.hosts)}{'; the first leads' if own.others else ''}")
    if own.kind != PLAIN:
        found.append(f"processes: {own.processes_per_host} on each host, {own.processes} together")
    if own.ports:
        ports = ", ".join(f"{port} for the {purpose}" for purpose, port in own.ports.items())
        found.append(f"ports: {ports}; where one is taken, the next that is free on all hosts")
    for plan in plans:
        found += ["", f"{plan.host}:"]
        if plan.kind == MPI:
            found += _mpi(job, plan, entry.argv, environ, files or {})
        elif plan.kind == TORCHRUN:
            found += _torchrun(job, plan, entry.argv, environ, python)
        else:
            found += _roles(job, plan, devices, entry, environ, python)
    return found


def _roles(
    job: Job,
    plan: Plan,
    devices: Hardware,
    entry: Entry,
    environ: Mapping[str, str],
    python: str,
) -> Iterator[str]:
    for role in plan.roles:
        task = f" ({role.task} {role.index})" if role.task else ""
        if role.name == SERVER:
            yield f"  parameter server{task}"
        else:
            argv = commands.script(job, plan, entry, devices, python)
            yield f"  script{task}: {shlex.join(argv)}"
        for name, value in commands.variables(job, plan, role, environ).items():
            yield f"    {name}={value}"


def _torchrun(
    job: Job, plan: Plan, program: tuple[str, ...], environ: Mapping[str, str], python: str
) -> Iterator[str]:
    from sm_runtime.launch import torchrun

    argv = torchrun.command(plan, program, python, port=commands.meeting(plan))
    yield f"  {shlex.join(argv)}"
    for name, value in commands.variables(job, plan, plan.roles[0], environ).items():
        yield f"    {name}={value}"


def _mpi(
    job: Job,
    plan: Plan,
    program: tuple[str, ...],
    environ: Mapping[str, str],
    files: Mapping[str, str],
) -> Iterator[str]:
    from sm_runtime.launch import host_names, mpirun

    if not plan.is_leader:
        yield f"  what {plan.leader} starts here, with this host's own environment"
        return
    run = mpirun.command(
        job,
        plan,
        agent=AGENT,
        interface=job.cluster.network_interface,
        program=program,
        environ=environ,
        files=files,
    )
    refused = [host for host in plan.hosts if not host_names.is_accepted(host)]
    if refused:
        names = ", ".join(refused)
        yield f"  Open MPI cannot use the host name{'s'[: len(refused) > 1]} {names}:"
        yield "  mpirun gets the addresses of the hosts"
    shown = [(shlex.join(flag.tokens), flag.origin) for flag in run.flags]
    width = max(len(text) for text, _ in shown if len(text) <= 60)
    yield "  mpirun"
    for text, origin in shown:
        yield f"    {text:{width}}  # {origin}"
    yield f"    {shlex.join(run.program)}"
