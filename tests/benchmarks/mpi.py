"""Measures MPI jobs that do nothing, in containers of the image sm-runtime:cpu.

One host, two ranks: the command `train` beside a bare `mpirun`, in turns, in one container. Two
hosts, two ranks each: from the start of the last container to the first line of a rank, and from
the end of the last rank to the end of the last container.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import options
from tests.docker.cluster import Cluster
from tests.docker.container import run

IMAGE = "sm-runtime:cpu"
SCRIPT = "import time; print('began', time.time(), flush=True); print('ended', time.time())\n"
TIMER = """
import json, subprocess, sys, time
bare = ("mpirun", "--allow-run-as-root", "-np", "2", sys.executable, "/opt/ml/code/train.py")
seconds = {"bare": [], "ours": []}
for number in range(int(sys.argv[1]) + 1):
    for name, argv in (("bare", bare), ("ours", ("train",))):
        began = time.perf_counter()
        subprocess.run(argv, check=True, capture_output=True)
        if number:
            seconds[name].append(time.perf_counter() - began)
print(json.dumps(seconds))
"""
"""Runs both in turns, one round to warm up."""


def one_host(folder: Path, rounds: int) -> dict[str, float]:
    """Return the medians of the seconds that two ranks on one host take."""
    with Cluster(IMAGE, folder, SCRIPT, count=1, **_mpi(2)) as cluster:
        words = ("python", "-c", TIMER, str(rounds))
        done = run(IMAGE, *words, options=cluster["algo-1"].ml.mount, seconds=60.0 * rounds)
    if done.status:
        raise SystemExit(done.err)
    return {name: statistics.median(some) for name, some in json.loads(done.out).items()}


def two_hosts(folder: Path, rounds: int) -> dict[str, float]:
    """Return the medians of the seconds before the first rank's first line and after the last's."""
    before, after = [], []
    for _ in range(rounds):
        with Cluster(IMAGE, folder, SCRIPT, **_mpi(2)) as cluster:
            if cluster.run() != {0}:
                raise SystemExit(cluster.log())
            times = [(line.split()[0], float(line.split()[1])) for _, _, line in cluster.lines()]
            started = max(host.began for host in cluster.hosts.values())
            before.append(min(at for what, at in times if what == "began") - started)
            after.append(cluster.ended - max(at for what, at in times if what == "ended"))
    return {"before": statistics.median(before), "after": statistics.median(after)}


def _mpi(each: int) -> dict[str, Any]:
    return {"sagemaker_mpi_enabled": True, "sagemaker_mpi_num_of_processes_per_host": each}


def main() -> None:
    """Print a table of its own."""
    rounds = options(__doc__ or "", rounds=7).rounds
    with tempfile.TemporaryDirectory() as folder:
        one, two = one_host(Path(folder), rounds), two_hosts(Path(folder), rounds)
    print(
        "\n| MPI jobs that do nothing | seconds |\n| --- | --- |\n"
        f"| 1 host, 2 ranks: bare mpirun | {one['bare']:.3f} |\n"
        f"| 1 host, 2 ranks: ours | {one['ours']:.3f} ({one['ours'] - one['bare']:+.3f}) |\n"
        f"| 2 hosts: last host's start to the first rank's first line | {two['before']:.3f} |\n"
        f"| 2 hosts: last rank's end to the end of every container | {two['after']:.3f} |"
    )


if __name__ == "__main__":
    main()
