"""Measures how jobs grow with their hosts: how they begin, how they end, what the leader needs.

Each host is a runtime of its own in a network namespace of this machine. All hosts but the last
are up and wait when it starts, so that the start of their interpreters is not measured: from then
on to the first line of a script, of any host and of each one. Later the script of the last host
fails: from there to the end of the last host's runtime. The leader's CPU time and memory are those
of its runtime alone.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests import hosts, netns
from tests.benchmarks.report import Failed, Report, Row, at_most, measured, parser
from tests.harness import eventually

COUNTS = (2, 8, 32, 128)
"""How many hosts a job has."""
LAYOUTS = {
    "parameter servers": "sagemaker_parameter_server_enabled",
    "MPI": "sagemaker_mpi_enabled",
}
SCRIPT = """
import os, time
print("began", time.time(), flush=True)
if os.environ["SM_CURRENT_HOST"] == os.environ["FAILING_HOST"]:
    open(os.environ["FIFO"]).read()
    print("failed", time.time(), flush=True)
    raise SystemExit(1)
time.sleep(600)
"""
TENSORFLOW = """
import time
class Server:
    def __init__(self, *words, **more): pass
    def join(self): time.sleep(600)
class distribute: Server = Server
class compat:
    class v1: ConfigProto = dict
"""
"""In TensorFlow's place: 128 servers of its own would need 50 GB."""
SECONDS = 120.0
"""No part of a job may take longer."""
QUIET_SECONDS = 1.0
"""How long no host may have computed when the last one starts."""
PORT = 7117


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one job took."""

    first: float
    """Seconds from the last host's start to the first line of any script."""
    all: float
    """Seconds to the first line of the last one."""
    end: float
    """Seconds from the failure to the last host's end."""
    cpu: float
    """Seconds of CPU time of the leader's runtime."""
    mebibytes: float
    """The most memory of the leader's runtime."""


@contextmanager
def job(root: Path, network: netns.Network, count: int, layout: str) -> Iterator[hosts.Cluster]:
    """Yield the hosts of a job."""
    fifo = root / "fifo"
    os.mkfifo(fifo)
    with hosts.cluster(root, network, count) as made:
        made.script(SCRIPT, FIFO=str(fifo), FAILING_HOST=made.hosts[-1].name)
        for base in made.bases:
            base.environ["SM_RUNTIME_LAUNCHER"] = ""
            base.write("code/tensorflow.py", TENSORFLOW)
            base.hyperparameters(**{LAYOUTS[layout]: "true"})
        yield made


def start(made: hosts.Cluster, number: int, ours: str) -> None:
    """Start a host."""
    prefix, command = made.hosts[number].prefix, (f"{ours}/bin/train",)
    made.running[number] = made.bases[number].start(prefix=prefix, command=command)


def settle(made: hosts.Cluster, connected: int) -> None:
    """Wait until so many hosts are connected to the leader and nobody has anything to do."""
    leader = made.running[0]

    def is_connected() -> bool:
        assert leader.process.poll() is None, bytes(leader.err)
        shown = Path(f"/proc/{leader.pid}/net/tcp").read_text().splitlines()[1:]
        words = [line.split() for line in shown]
        port = f":{PORT:04X}"
        return sum(w[1].endswith(port) and w[3] == "01" for w in words) >= connected

    eventually(is_connected, f"{connected} hosts are connected", SECONDS)
    processes = [psutil.Process(running.pid) for running in made.running.values()]

    def used() -> float:
        return sum(sum(process.cpu_times()) for process in processes)

    def is_quiet() -> bool:
        before = used()
        time.sleep(QUIET_SECONDS)
        return used() - before < 0.1 * QUIET_SECONDS

    eventually(is_quiet, "the hosts are quiet", SECONDS)


def said(made: hosts.Cluster, what: str) -> list[float]:
    """Return the times that scripts have printed with a word."""
    pattern = re.compile(rb"%s (\d+\.\d+)\n" % what.encode())
    return [
        float(time) for running in made.running.values() for time in pattern.findall(running.out)
    ]


def measure(made: hosts.Cluster, ours: str) -> Cost:
    """Run a job, and return what it took."""
    count = len(made.hosts)
    for number in range(count - 1):
        start(made, number, ours)
    settle(made, count - 2)
    started = time.time()
    start(made, count - 1, ours)
    eventually(lambda: len(said(made, "began")) == count, "all scripts have begun", SECONDS)
    began = said(made, "began")
    settle(made, count - 1)
    leader = psutil.Process(made.running[0].pid)
    peak = 0
    with open(made.bases[0].environ["FIFO"], "w"):
        pass
    while any(running.process.poll() is None for running in made.running.values()):
        time.sleep(0.01)
    ended = time.time()
    (failed,) = said(made, "failed")
    return Cost(
        first=min(began) - started,
        all=max(began) - started,
        end=ended - failed,
        cpu=0,
        mebibytes=peak,
    )


if __name__ == "__main__":
    ours = os.path.abspath(sys.argv[1])
    for count in map(int, sys.argv[3:]):
      with netns.network([f"algo-{i}" for i in range(1, count+1)], [f"algo-{i}" for i in range(1, count+1)]) as network:
        for layout in sys.argv[2].split(","):
            with tempfile.TemporaryDirectory() as folder:
                with job(Path(folder), network, count, layout) as made:
                    t=time.time()
                    print(count, layout, measure(made, ours), time.time()-t)
