"""Looks at a job without running it: what its script would get, what hosts would start, and what is
wrong with it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping

from sm_runtime import channels, sync
from sm_runtime.code import fetch
from sm_runtime.configure import Examined, configure, examine, paths_of
from sm_runtime.contract import environment as environ
from sm_runtime.install import install
from sm_runtime.job.errors import ConfigError, JobError
from sm_runtime.job.model import Entry, Hardware, Job
from sm_runtime.job.secrets import Mask
from sm_runtime.launch import distribution
from sm_runtime.launch.distribution import MPI, PLAIN, SERVER, TORCHRUN, Plan
from sm_runtime.output import artifacts
from sm_runtime.processes import hardware

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def show(variables: Mapping[str, str], mask: Mask, *, as_json: bool, secrets: bool) -> int:
    """Print the variables and the arguments of the job; return the exit status."""
    try:
        job = configure(variables, mask)
    except ConfigError as error:
        return _complain(error.problems, mask)
    hide = str if secrets else mask
    exported = environ.variables(job, hardware.of_job(job, variables))
    exported |= environ.twins(exported)[0]
    exported = {name: hide(value) for name, value in exported.items()}
    arguments = [hide(argument) for argument in environ.arguments(job)]
    entry = _entry(job, variables)
    if as_json:
        found = [hide(word) for word in entry.argv] if entry else None
        document = {"environment": exported, "arguments": arguments, "command": found}
        print(json.dumps(document, indent=1))
        return 0
    for name, value in exported.items():
        if _IDENTIFIER.fullmatch(name):
            print(f"export {name}={shlex.quote(value)}")
        else:  # a shell cannot hold such a name: its legal twin is exported as well
            print(f"# {json.dumps(name)} = {json.dumps(value)}")
    print(shlex.join(["set", "--", *arguments]))
    return 0


def launch(variables: Mapping[str, str], mask: Mask, *, secrets: bool) -> int:
    """Print what each host would start, and why each option is there; return the exit status."""
    try:
        job = configure(variables, mask)
        devices = hardware.of_job(job, variables)
        # Where the code has to be fetched, it is unknown how its program is run.
        entry = _entry(job, variables) or Entry(
            program=(job.program or "the program",), arguments=environ.arguments(job)
        )
        inherited = {**variables, **job.environment}
        files = _parameter_files(job, devices, inherited)
        lines = launch_lines(job, devices, entry, inherited, sys.executable, files)
    except ConfigError as error:
        return _complain(error.problems, mask)
    hide = str if secrets else mask
    for line in lines:
        print(hide(line).encode("utf-8", "backslashreplace").decode())
    return 0


def report(variables: Mapping[str, str], base: str | None, output: str | None) -> int:
    """Write the report of the job that has ended below ``base``; return the exit status."""
    from sm_runtime.metrics import report

    paths = paths_of({"SAGEMAKER_BASE_DIR": base} if base else variables)
    try:
        print(report.write(paths, output))
    except ImportError:
        print("a report needs pygal: pip install sm-runtime[report]")
    except (ConfigError, OSError) as error:
        print(error)
    else:
        return 0
    return 1


def model(variables: Mapping[str, str], folder: str) -> int:
    """Print what ``serve`` would serve of a folder, and its problems; return 1 if it has any."""
    from sm_runtime.serving import layout, summary

    try:
        found = layout.find(
            folder or paths_of(variables).model, variables.get(layout.DEFAULT_VARIABLE, "")
        )
    except JobError as error:
        print(error)
        return 1
    try:
        lines, problems = summary.lines(found), summary.problems(found)
        for line in [*lines, *problems, *([] if problems else ["no problem found"])]:
            print(line.encode("utf-8", "backslashreplace").decode())
        return 1 if problems else 0
    finally:
        if found.unpacked:
            shutil.rmtree(found.unpacked, ignore_errors=True)


def check(variables: Mapping[str, str], mask: Mask) -> int:
    """Print every problem of the job; return 1 if there is any.

    Where the configuration has problems the rest is held to what can be read of it.
    """
    examined = examine(variables, mask)
    job, found = examined.job, [*examined.problems]
    found += [*_refused(artifacts.check, job, variables), *_refused(sync.check, job, variables)]
    found += [*distribution.problems(job), *environ.oversized(job)]
    if _is_code_known(examined):
        found += [*fetch.problems(job, variables), *_entry_point_problems(job, variables)]
    found += [*channels.problems(job), *install.problems(variables.get("PATH"))]
    return _complain(list(dict.fromkeys(found)), mask)


def _is_code_known(examined: Examined) -> bool:
    """Whether it can be said that the program is missing: an unreadable file may name another."""
    job = examined.job
    if any("sagemaker_program" in problem for problem in examined.problems):
        return False
    if not examined.unread & {"hyperparameters", "job"}:
        return True
    is_there = bool(job.submit_directory) or not fetch.is_vacant(job.paths.code)
    return bool(job.program or job.entry_point) and is_there


def _entry_point_problems(job: Job, variables: Mapping[str, str]) -> list[str]:
    """Return a sentence if the request's entry point cannot be found; it may come with the data."""
    if not job.entry_point:
        return []
    word = job.entry_point[0]
    where = f"ContainerEntrypoint: {word!r}"
    if "/" not in word:
        path = {**variables, **job.environment}.get("PATH")
        return [] if shutil.which(word, path=path) else [f"{where} is not on PATH"]
    if not word.startswith("/") or word.startswith((job.paths.data + "/", job.paths.code + "/")):
        return []
    if not os.path.isfile(word):
        return [f"{where} does not exist"]
    return [] if os.access(word, os.X_OK) else [f"{where} is not executable"]


def _refused(
    check: Callable[[Job, Mapping[str, str]], None], job: Job, variables: Mapping[str, str]
) -> tuple[str, ...]:
    try:
        check(job, variables)
    except ConfigError as error:
        return error.problems
    return ()


def _parameter_files(job: Job, devices: Hardware, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say the same as Open MPI's parameter files, for a job that has any.

    Raises ConfigError where the job cannot be started.
    """
    if distribution.plan(job, devices).kind != distribution.MPI:
        return {}
    from sm_runtime.cluster import mpi
    from sm_runtime.launch import mpirun

    return mpi.file_parameters({**environ, **mpirun.file_parameters(job)}, job.paths.code)


def _entry(job: Job, variables: Mapping[str, str]) -> Entry | None:
    """Return how the script is run; None where the code has to be fetched to know it."""
    if job.entry_point:
        return Entry(program=job.entry_point, arguments=environ.arguments(job))
    try:
        code = fetch.in_place(job)
        if code is None:
            return None
        arguments = environ.arguments(job)
        return fetch.entry_command(job, code, arguments, sys.executable, variables)
    except JobError:
        return None


def _complain(problems: list[str] | tuple[str, ...], mask: Mask) -> int:
    for problem in problems:
        print(mask(problem).encode("utf-8", "backslashreplace").decode())
    if not problems:
        print("no problem found")
    return 1 if problems else 0


AGENT = ("sm-runtime", "agent")
"""Stands for the launch agent, whose words differ from job to job."""


def launch_lines(
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
            argv = distribution.script_argv(job, plan, entry, devices, python)
            yield f"  script{task}: {shlex.join(argv)}"
        for name, value in distribution.role_variables(job, plan, role, environ).items():
            yield f"    {name}={value}"


def _torchrun(
    job: Job, plan: Plan, program: tuple[str, ...], environ: Mapping[str, str], python: str
) -> Iterator[str]:
    from sm_runtime.launch import torchrun

    argv = torchrun.command(
        plan,
        program,
        python,
        port=distribution.rendezvous_port(plan),
        prefix=torchrun.prefix(environ),
    )
    yield f"  {shlex.join(argv)}"
    for name, value in distribution.role_variables(job, plan, plan.roles[0], environ).items():
        yield f"    {name}={value}"


def _mpi(
    job: Job,
    plan: Plan,
    program: tuple[str, ...],
    environ: Mapping[str, str],
    files: Mapping[str, str],
) -> Iterator[str]:
    from sm_runtime.launch import mpirun, open_mpi

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
    refused = [host for host in plan.hosts if not open_mpi.is_accepted_name(host)]
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
