"""Jobs on several hosts without root, without a writable root, and without anything left behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.docker.cluster import Cluster
from tests.docker.container import Ml, docker, run

MPI: dict[str, Any] = {"sagemaker_mpi_enabled": True, "sagemaker_mpi_num_of_processes_per_host": 2}
RESTRICTED = (
    *("--user", "1000:1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--read-only", "--tmpfs", "/tmp"),
)
SUMS = """
import os
import numpy as np
from mpi4py import MPI
total = np.empty(100_000)
MPI.COMM_WORLD.Allreduce(np.ones(100_000), total)
print(os.getuid(), total.sum(), flush=True)
"""
ENDS = """
import argparse, signal, subprocess, sys
from mpi4py import MPI
parser = argparse.ArgumentParser()
parser.add_argument("--how")
how = parser.parse_args().how
world = MPI.COMM_WORLD
subprocess.Popen(["sleep", "1000"], start_new_session=True)
world.allreduce(b"x" * 100_000, MPI.MAX)
print("ready", flush=True)
if how == "stop":
    signal.pause()
if how == "fail" and world.rank == 3:
    sys.exit(3)
world.Barrier()
"""
LISTS = """
train; status=$?
echo "left $(ls -A /tmp /dev/shm | tr '\\n' ' ')"
for process in /proc/[0-9]*; do
    case $(cat $process/comm) in
    sh | tini | cat) ;;
    *) echo "runs $(tr '\\0' ' ' <$process/cmdline)" ;;
    esac
done
# Docker's own name server listens at 127.0.0.11.
cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == "0A" && $2 !~ /^0B00007F/ { print "listens " $2 }'
exit $status
"""
STOPS = "kill -TERM $(grep -lx train /proc/[0-9]*/comm | cut -d/ -f3 | sort -n | head -n 1)"


def test_mpi_needs_no_root_no_sshd_and_no_writable_root_and_finds_the_interface(
    cpu_image: str, tmp_path: Path
) -> None:
    with Cluster(cpu_image, tmp_path, SUMS, interface="ens5", options=RESTRICTED, **MPI) as cluster:
        assert cluster.run() == {0}, cluster.log()
        assert [line for _, _, line in cluster.lines()] == ["1000 400000.0"] * 4
        for host in cluster.hosts.values():
            assert re.search(r"using eth0 \([0-9.]+\), ens5 not found", host.log()), host.log()
    assert run(cpu_image, "sh", "-c", "command -v sshd").status != 0


@pytest.mark.parametrize("kind", ["mpi", "parameter_server", "multi_worker_mirrored_strategy"])
def test_a_single_host_whose_own_name_does_not_resolve_starts_at_once(
    cpu_image: str, ml: Ml, kind: str
) -> None:
    ml.write("code/train.py", "print('started')")
    ml.write("input/config/resourceconfig.json", {"current_host": "algo-1", "hosts": ["algo-1"]})
    values: dict[str, Any] = {"sagemaker_program": "train.py", f"sagemaker_{kind}_enabled": True}
    encoded = {key: json.dumps(value) for key, value in values.items()}
    ml.write("input/config/hyperparameters.json", encoded)
    done = run(cpu_image, options=(*ml.mount, "--network", "none", *RESTRICTED[4:]))
    assert done.status == 0, done.err
    assert "started" in done.out
    assert "waiting" not in done.err


@pytest.mark.parametrize(("how", "status"), [("well", 0), ("fail", 3), ("stop", 143)])
def test_nothing_is_left_behind(cpu_image: str, tmp_path: Path, how: str, status: int) -> None:
    command = ("sh", "-c", LISTS)
    with Cluster(cpu_image, tmp_path, ENDS, command=command, **MPI, how=how) as cluster:
        cluster.start()
        if how == "stop":
            for host in cluster.hosts.values():
                host.ready("ready")
            docker("exec", cluster["algo-2"].container, "sh", "-c", STOPS)
        assert cluster.wait() == {status}, cluster.log()
        for host in cluster.hosts.values():
            tail = host.log().partition("Reporting training")[2].splitlines()[1:]
            assert tail == ["left /dev/shm:  /tmp: "], host.log()
