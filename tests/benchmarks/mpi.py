"""Measures MPI jobs: one that does nothing, one that initialises MPI, one step of Horovod.

One host, two ranks: the command `train` beside a bare `mpirun`, in turns. Two hosts, two ranks
each, on network namespaces of this machine: from the start of the last host to the first line of a
rank, and from the last line of the last rank, with MPI's own end, to the end of the last host.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import netns
from tests.benchmarks.report import (
    Bar,
    Failed,
    Report,
    Row,
    at_most,
    beyond,
    measured,
    parser,
    take_part,
)
from tests.benchmarks.servers import program

RANKS = 2
NOTHING = "import time; print('began', time.time(), flush=True); print('ended', time.time())\n"
MPI = """
import time
from mpi4py import MPI
print("began", time.time(), flush=True)
assert MPI.COMM_WORLD.allreduce(1) == MPI.COMM_WORLD.size
print("ended", time.time())
"""
HOROVOD = """
import time
import tensorflow as tf
import horovod.tensorflow as hvd
hvd.init()
print("began", time.time(), flush=True)
weights = tf.Variable(tf.zeros([1000]))
with hvd.DistributedGradientTape(tf.GradientTape()) as tape:
    loss = tf.reduce_sum((weights - hvd.rank()) ** 2)
(gradient,) = tape.gradient(loss, [weights])
weights.assign_sub(0.1 * gradient)
assert abs(float(weights[0]) - 0.1 * (hvd.size() - 1)) < 1e-6
print("ended", time.time())
"""
SECONDS = 100.0
"""No job may take longer."""


def base(folder: Path, names: list[str], host: netns.Host | None, script: str) -> dict[str, str]:
    """Write a host's base folder; return the variables of its job."""
    name = host.name if host else names[0]
    root = folder / name
    for path in ("code", "input/config", "model", "output/data"):
        (root / path).mkdir(parents=True, exist_ok=True)
    (root / "code/train.py").write_text(script)
    values = {
        "sagemaker_program": "train.py",
        "sagemaker_mpi_enabled": True,
        "sagemaker_mpi_num_of_processes_per_host": RANKS,
    }
    encoded = json.dumps({key: json.dumps(value) for key, value in values.items()})
    (root / "input/config/hyperparameters.json").write_text(encoded)
    interface = host.interface if host else "lo"
    resources = {"current_host": name, "hosts": names, "network_interface_name": interface}
    (root / "input/config/resourceconfig.json").write_text(json.dumps(resources))
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(root),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_BASE_DIR": str(root),
        "SM_RUNTIME_CLUSTER_SECRET": "a secret of this benchmark",
    }


def one_host(folder: Path, ours: str, text: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return the ways to run two ranks on one host."""
    environ = base(folder, ["algo-1"], None, text)
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    script, python = str(folder / "algo-1/code/train.py"), f"{ours}/bin/python"
    spread = ["--oversubscribe", "-np", str(RANKS)]
    return {
        "bare mpirun": ([program("mpirun"), *spread, python, script], {**environ, **allowed}),
        "ours": ([f"{ours}/bin/train"], environ),
    }


def finish(process: subprocess.Popen[bytes]) -> str:
    """Return the output of a process that has to end well."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise Failed(f"not done within {SECONDS:.0f} s: {_last(err)}") from None
    if process.returncode:
        raise Failed(f"status {process.returncode}: {_last(err)}")
    return out.decode("utf-8", "replace")


def start(argv: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process whose output is kept."""
    return subprocess.Popen(
        argv,
        env=environ,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _last(err: bytes) -> str:
    return (err.decode("utf-8", "replace").strip().splitlines() or [""])[-1][:300]


def two_hosts(folder: Path, network: netns.Network, ours: str, text: str) -> tuple[float, float]:
    """Return the seconds before the first rank's first line and after the last rank's last."""
    names = [host.name for host in network.hosts]
    processes = []
    for host in network.hosts:
        environ = base(folder, names, host, text)
        began = time.time()
        processes.append(start([*host.prefix, f"{ours}/bin/train"], environ))
    outputs, ended = [], 0.0
    try:
        for process in processes:
            outputs.append(finish(process))
            ended = time.time()
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    words = [line.split() for output in outputs for line in output.splitlines()]
    times: dict[str, list[float]] = {"began": [], "ended": []}
    for line in words:
        for what, found in times.items():
            # A line begins with the rank's name, which may touch the first word.
            if len(line) > 1 and line[-2].endswith(what):
                found.append(float(line[-1]))
    if len(times["ended"]) != RANKS * len(names):
        raise Failed(f"{len(times['ended'])} ranks have ended")
    return min(times["began"]) - began, ended - max(times["ended"])


def alone(report: Report, folder: Path, ours: str, rounds: int, title: str, text: str) -> None:
    """Add the row of a script on one host."""
    title = f"{title}, 1 host x {RANKS} ranks"
    ways = one_host(folder, ours, text)

    def run(name: str) -> tuple[float]:
        began = time.perf_counter()
        output = finish(start(*ways[name]))
        seconds = time.perf_counter() - began
        if output.count("ended") != RANKS:
            raise Failed(f"{output.count('ended')} of {RANKS} ranks have ended")
        return (seconds,)

    found = {
        name: statistics.median(cost[0] for cost in some[1:])
        for name, some in take_part(tuple(ways), rounds + 1, run, report, title).items()
    }
    mine, bare = found.get("ours"), found.get("bare mpirun")
    bar = beyond(mine, bare, 0.5, "mpirun")
    report.add(Row(work=title, unit="s", ours=mine, bare={"bare mpirun": bare}, bars=(bar,)))


MEASURES = (("last host's start to first line", 2.0), ("last line to last host's end", 1.0))
"""What is taken of a job on two hosts, and its limit in seconds."""


def together(report: Report, folder: Path, ours: str, rounds: int, what: str, text: str) -> None:
    """Add the rows of a script on two hosts."""
    title = f"2 hosts x {RANKS} ranks, {what}"
    names = ["algo-1", "algo-2"]
    # Else both would be one host to Open MPI, which keeps its files by the machine's name.
    with netns.network(names, names) as network:
        if not network.isolated:
            report.remark(f"{title}: no network namespaces here: the hosts are loopback addresses")
        some = take_part(
            ("ours",), rounds, lambda _: two_hosts(folder, network, ours, text), report, title
        ).get("ours")
    for place, (measure, limit) in enumerate(MEASURES):
        value = statistics.median(cost[place] for cost in some) if some else None
        # The first line of a script that uses MPI comes when MPI has been initialised.
        is_bound = place or text is NOTHING
        bars: tuple[Bar, ...] = (at_most(value, limit, "s"),) if is_bound else ()
        report.add(Row(work=f"{title}: {measure}", unit="s", ours=value, bars=bars))


def compare(report: Report, folder: Path, ours: str, rounds: int) -> None:
    """Add the rows."""
    alone(report, folder, ours, rounds, "an MPI job that does nothing", NOTHING)
    alone(report, folder, ours, rounds, "an MPI job that initialises MPI (mpi4py)", MPI)
    # Most of it is TensorFlow's import.
    alone(report, folder, ours, min(rounds, 5), "an MPI job of one step (Horovod)", HOROVOD)
    together(report, folder, ours, rounds, "nothing", NOTHING)
    together(report, folder, ours, rounds, "mpi4py", MPI)


def main() -> int:
    """Print the rows."""
    args = parser(__doc__ or "", rounds=7).parse_args()

    def run(report: Report) -> None:
        with tempfile.TemporaryDirectory() as folder:
            compare(report, Path(folder), os.path.abspath(args.ours), args.rounds)

    return measured("mpi", args, run)


if __name__ == "__main__":
    sys.exit(main())
