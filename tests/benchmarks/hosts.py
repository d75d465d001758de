"""Measures how jobs grow with their hosts: how they begin, how they end, what the leader needs.

Each host is a runtime of its own in a network namespace of this machine. All hosts but the last
are up and wait when it starts, so that the start of their interpreters is not measured: from then
on to the first line of a script, of any host and of every one. When all have begun, the script of
the last host fails: from there to the end of the last host's runtime. The leader's CPU time and
memory are those of its runtime alone, from its start to its end.

Beside it, what the machine needs without the runtime from the start to the last first line: for as
many interpreters as the job has, and for a bare ``mpirun`` on the same hosts.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from tests import hosts, netns
from tests.benchmarks.report import Failed, Report, Row, at_most, measured, parser, take_part
from tests.benchmarks.servers import program
from tests.harness import eventually

COUNTS = (2, 8, 32, 128)
"""How many hosts a job has."""
SERVERS, MPI = hosts.LAYOUTS
LIMITS = {SERVERS: "interpreters alone", MPI: "bare mpirun"}
MEASURES = (
    ("to the first line of any script", "s", None),
    ("to the first line of every script", "s", 3.0),
    ("from a failure to the last end", "s", 2.0),
    ("CPU time of the leader", "s", None),
    ("memory of the leader", "MiB", None),
)
"""What is taken of a job, its unit, and its limit with the most hosts."""
LIMITED = MEASURES[1][0]
SECONDS = 120.0
"""No part of a job may take longer."""
QUIET_SECONDS = 1.0
"""How long the hosts must have computed next to nothing before the next part begins."""
PORT = f":{7117:04X}"
"""The leader's, as /proc/net/tcp has it."""


def start(made: hosts.Cluster, number: int, ours: str) -> None:
    """Start a host."""
    prefix, command = made.hosts[number].prefix, (f"{ours}/bin/train",)
    made.running[number] = made.bases[number].start(prefix=prefix, command=command)


def settle(made: hosts.Cluster, connected: int) -> None:
    """Wait until so many hosts are connected to the leader and nobody has anything to do."""
    leader = made.running[0]

    def is_connected() -> bool:
        if leader.process.poll() is not None:
            raise Failed(f"the leader has ended: {bytes(leader.err).decode()[-300:]}")
        table = Path(f"/proc/{leader.pid}/net/tcp").read_text().splitlines()[1:]
        ends = [line.split()[1:4] for line in table]
        return sum(own.endswith(PORT) and state == "01" for own, _, state in ends) >= connected

    eventually(is_connected, f"{connected} hosts are connected", SECONDS)
    processes = [psutil.Process(running.pid) for running in made.running.values()]

    def used() -> float:
        return sum(sum(process.cpu_times()) for process in processes)

    def is_quiet() -> bool:
        before = used()
        time.sleep(QUIET_SECONDS)
        return used() - before < 0.1 * QUIET_SECONDS

    eventually(is_quiet, "the hosts are quiet", SECONDS)


def measure(made: hosts.Cluster, ours: str) -> tuple[float, ...]:
    """Run a job, and return what it took, as ``MEASURES`` has it."""
    count = len(made.hosts)
    for number in range(count - 1):
        start(made, number, ours)
    settle(made, count - 2)
    started = time.time()
    start(made, count - 1, ours)
    eventually(lambda: len(made.times("began")) == count, "all scripts have begun", SECONDS)
    began = made.times("began")
    settle(made, count - 1)
    made.fail()
    cpu, mebibytes = until_end(made.running[0].pid)
    for running in made.running.values():
        running.process.wait(SECONDS)
    ended = time.time()
    (failed,) = made.times("failed")
    found = made.failures()
    if found["host"] != made.hosts[-1].name:
        raise Failed(f"the job has failed on {found['host']}: {found['message']}")
    return min(began) - started, max(began) - started, ended - failed, cpu, mebibytes


def until_end(pid: int) -> tuple[float, float]:
    """Wait for the end of a child of ours; return its CPU time and its most MiB, children apart."""
    kibibytes, deadline = 0, time.monotonic() + SECONDS
    options = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while os.waitid(os.P_PID, pid, options) is None:
        status = Path(f"/proc/{pid}/status").read_text()
        if peak := re.search(r"VmHWM:\s*(\d+)", status):
            kibibytes = int(peak[1])
        if time.monotonic() > deadline:
            raise Failed(f"the leader has not ended within {SECONDS:g} s")
        time.sleep(0.01)
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system, kibibytes / 1024


def limit(made: hosts.Cluster, layout: str, ours: str) -> float:
    """Return the seconds to the last first line without the runtime."""
    python, count = f"{ours}/bin/python", len(made.hosts)
    scripts = [str(base.path("code/train.py")) for base in made.bases]
    environ = {**made.bases[0].environ, "SM_CURRENT_HOST": ""}
    if layout == MPI:
        names = ",".join(host.name for host in made.hosts)
        argv = [program("mpirun"), "--allow-run-as-root", "--host", names, "-np", str(count)]
        for key, value in (
            ("plm_rsh_agent", agent(made)),
            ("plm_rsh_no_tree_spawn", "1"),
            ("orte_keep_fqdn_hostnames", "1"),
            ("oob_tcp_if_include", made.hosts[0].interface),
        ):
            argv += ["-mca", key, value]
        commands = [[*made.hosts[0].prefix, *argv, python, scripts[0]]]
    else:  # a host has a script and a parameter server
        commands, count = [[python, script] for script in scripts * 2], 2 * count
    return first_lines(commands, environ, count)


def agent(made: hosts.Cluster) -> str:
    """Return the path of what a bare ``mpirun`` reaches the hosts by."""
    path = made.bases[0].path("agent")
    cases = "".join(
        f'{shlex.quote(host.name)}) shift; exec {shlex.join(host.prefix)} sh -c "$*" ;;\n'
        for host in made.hosts
    )
    path.write_text(f"#!/bin/sh\ncase $1 in\n{cases}esac\n")
    path.chmod(0o755)
    return str(path)


def first_lines(commands: Sequence[Sequence[str]], environ: dict[str, str], count: int) -> float:
    """Return the seconds from a start of commands to the last of ``count`` first lines."""
    with tempfile.TemporaryFile() as output:
        # Appended: the processes write to one file.
        descriptor = os.open(f"/proc/self/fd/{output.fileno()}", os.O_WRONLY | os.O_APPEND)
        started = time.time()
        processes = [
            subprocess.Popen(
                command,
                env=environ,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for command in commands
        ]

        def began() -> list[float]:
            size = os.fstat(output.fileno()).st_size
            lines = os.pread(output.fileno(), size, 0).decode().splitlines()
            return [float(line.split()[1]) for line in lines if line.startswith("began ")]

        try:
            eventually(lambda: len(began()) == count, f"{count} first lines", SECONDS)
        finally:
            os.close(descriptor)
            for process in processes:
                os.killpg(process.pid, signal.SIGTERM)
            for process in processes:
                process.wait(SECONDS)
        return max(began()) - started


def compare(
    report: Report, network: netns.Network, ours: str, rounds: int, layout: str, count: int
) -> None:
    """Add the rows of a layout with so many hosts."""
    limited = LIMITS[layout]

    def run(way: str) -> tuple[float, ...]:
        with (
            tempfile.TemporaryDirectory() as folder,
            hosts.cluster(Path(folder), network, count) as made,
        ):
            made.lay_out(layout)
            return measure(made, ours) if way == "ours" else (limit(made, layout, ours),)

    title = f"{layout}, {count} hosts"
    costs = {
        way: [statistics.median(values) for values in zip(*some, strict=True)]
        for way, some in take_part(("ours", limited), rounds, run, report, title).items()
    }
    for place, (what, unit, most) in enumerate(MEASURES):
        value = costs["ours"][place] if "ours" in costs else None
        is_bound = most is not None and count == COUNTS[-1]
        bars = (at_most(value, most, unit),) if is_bound else ()
        bare = {limited: costs[limited][0] if limited in costs else None}
        row = Row(work=f"{layout}: {what}", unit=unit, ours=value, bars=bars, hosts=count)
        report.add(replace(row, bare=bare) if what == LIMITED else row)


def main() -> int:
    """Print the rows."""
    args = parser(__doc__ or "", rounds=1).parse_args()
    ours = os.path.abspath(args.ours)

    def run(report: Report) -> None:
        names = [f"algo-{number}" for number in range(1, COUNTS[-1] + 1)]
        # Else all would be one host to Open MPI, which keeps its files by the machine's name.
        with netns.network(names, names) as network:
            if not network.isolated:
                report.remark("no network namespaces here: hosts are loopback addresses, no MPI")
            for layout in (SERVERS, MPI) if network.isolated else (SERVERS,):
                for count in COUNTS:
                    compare(report, network, ours, args.rounds, layout, count)

    return measured("hosts", args, run)


if __name__ == "__main__":
    sys.exit(main())
