"""MPI jobs on several hosts: what every rank is given, runs and prints."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.docker.cluster import Cluster

MPI: dict[str, Any] = {"sagemaker_mpi_enabled": True, "sagemaker_mpi_num_of_processes_per_host": 2}
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SHOWS = """
import json, os
import numpy as np
from mpi4py import MPI
world = MPI.COMM_WORLD
ranks, total = np.full(1000, world.rank, dtype="f8"), np.empty(1000)
world.Allreduce(ranks, total)
seen, programs = False, set()
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read()
    except OSError:
        continue
    seen = seen or os.environ["AWS_SECRET_ACCESS_KEY"].encode() in words
    programs.add(os.path.basename(words.split(b"\\0")[0].decode()))
world.Barrier()
names = ("SM_CURRENT_HOST", "SM_NETWORK_INTERFACE_NAME", "FOO", "AWS_SECRET_ACCESS_KEY", "ONLY")
print(json.dumps({
    "size": world.size,
    "local": int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]),
    "total": sorted(set(total.tolist())),
    "seen": seen,
    "mpirun": "mpirun" in programs,
    "shell": sorted(programs & {"ssh", "sshd", "sh"}),
    "environ": {name: os.environ.get(name) for name in names},
    "directory": os.getcwd(),
}), flush=True)
"""
LINES = """
import os, sys
rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
for number in range(10_000):
    print(rank, number, "x" * (number % 97), sep="-", flush=number % 1000 == 0)
"""
RAISES = """
import time
import tensorflow as tf
import horovod.tensorflow as hvd
hvd.init()
hvd.allreduce(tf.ones(4))
if hvd.rank() == 2:
    print("raised at", time.time(), flush=True)
    raise ValueError("no more apples")
while True:
    hvd.allreduce(tf.ones(4))
"""


def test_every_rank_has_its_own_hosts_variables_and_no_secret_is_on_a_command_line(
    cpu_image: str, tmp_path: Path
) -> None:
    foo = "a b\nc"
    options = ("-e", f"FOO={foo}", "-e", f"AWS_SECRET_ACCESS_KEY={SECRET}")
    with Cluster(cpu_image, tmp_path, SHOWS, options=options, **MPI) as cluster:
        for name in cluster.hosts:
            cluster.start(name, options=("-e", f"ONLY={name}"))
        assert cluster.wait() == {0}, cluster.log()
        results = cluster.results()
        log = cluster.log()
        assert all(host.ml.exists("output/success") for host in cluster.hosts.values())
    assert sorted(results) == [0, 1, 2, 3]
    environs = [result["environ"] for result in results.values()]
    hosts = Counter(environ["SM_CURRENT_HOST"] for environ in environs)
    assert hosts == {"algo-1": 2, "algo-2": 2}
    assert all(environ["ONLY"] == environ["SM_CURRENT_HOST"] for environ in environs)
    assert {environ["SM_NETWORK_INTERFACE_NAME"] for environ in environs} == {"eth0"}
    assert {environ["FOO"] for environ in environs} == {foo}
    assert {environ["AWS_SECRET_ACCESS_KEY"] for environ in environs} == {SECRET}
    assert {result["local"] for result in results.values()} == {0, 1}
    for result in results.values():
        assert (result["size"], result["total"]) == (4, [6.0])
        assert not result["seen"]
        assert result["shell"] == []
        assert result["directory"] == "/opt/ml/code"
    assert any(result["mpirun"] for result in results.values())
    assert log.count(SECRET) == 4  # the script has shown it, nobody else


@pytest.mark.parametrize("program", ["run.sh", "package"])
def test_shell_scripts_and_modules_run_as_ranks(
    cpu_image: str, tmp_path: Path, program: str
) -> None:
    shows = (
        "import json, os, sys\n"
        "rank = os.environ['OMPI_COMM_WORLD_RANK']\n"
        "print(json.dumps({'rank': rank, 'args': sys.argv[1:]}))\n"
    )
    code = {
        "run.sh": 'exec python show.py "$@"\n',
        "show.py": shows,
        "package/__init__.py": "",
        "package/__main__.py": shows,
    }
    values: dict[str, Any] = {"sagemaker_program": program, "epochs": 3, "name": 'it\'s a "name"'}
    with Cluster(cpu_image, tmp_path, code, **MPI, **values) as cluster:
        assert cluster.run() == {0}, cluster.log()
        results = cluster.results()
    arguments = ["--epochs", "3", "--name", 'it\'s a "name"']
    assert results == {rank: {"rank": str(rank), "args": arguments} for rank in range(4)}


def test_80_000_lines_of_8_ranks_come_whole_and_in_each_ranks_order(
    cpu_image: str, tmp_path: Path
) -> None:
    values: dict[str, Any] = {**MPI, "sagemaker_mpi_num_of_processes_per_host": 4}
    with Cluster(cpu_image, tmp_path, LINES, **values) as cluster:
        assert cluster.run() == {0}, cluster.log()
        lines = cluster.lines()
    assert len(lines) == 80_000
    for rank in range(8):
        host = "algo-1" if rank < 4 else "algo-2"
        expected = [(rank, host, f"{rank}-{n}-{'x' * (n % 97)}") for n in range(10_000)]
        assert [line for line in lines if line[0] == rank] == expected


@pytest.mark.needs("horovod")
def test_a_rank_of_horovod_that_raises_ends_all_hosts_though_mpi4py_is_not_used(
    cpu_image: str, tmp_path: Path
) -> None:
    with Cluster(cpu_image, tmp_path, RAISES, **MPI) as cluster:
        assert cluster.run() == {1}, cluster.log()
        raised = next(float(line.split()[2]) for _, _, line in cluster.lines() if "raised" in line)
        assert cluster.ended - raised < 10
        failures = cluster.failures()
        text = cluster["algo-1"].ml.read("output/failure")
    assert failures[0] == failures[1]
    failure = failures[0]
    assert (failure["class"], failure["message"]) == ("ValueError", "no more apples")
    assert (failure["rank"], failure["host"], failure["exit"]) == (2, "algo-2", 1)
    assert (failure["file"], failure["line"]) == ("train.py", 9)
    assert "no more apples" in text.splitlines()[0] and "Traceback" in text


@pytest.mark.parametrize("name", ["sm-runtime", "Open MPI"])
def test_hosts_with_other_versions_are_refused_by_name(
    cpu_image: str, tmp_path: Path, name: str
) -> None:
    if name == "sm-runtime":
        path, text = "__init__.py", '__version__ = "0.0.0"\n'
        target = "/usr/local/lib/python3.11/dist-packages/sm_runtime/__init__.py"
    else:
        path, text = "mpirun", "#!/bin/sh\necho 'mpirun (Open MPI) 0.0.0'\n"
        target = "/usr/local/bin/mpirun"
    other = tmp_path / path
    other.write_text(text, encoding="utf-8")
    other.chmod(0o755)
    with Cluster(cpu_image, tmp_path, "print('{}')", **MPI) as cluster:
        cluster.start("algo-1")
        cluster.start("algo-2", options=("-v", f"{other}:{target}:ro"))
        assert cluster.wait() == {1}, cluster.log()
        assert cluster.results() == {}
        failures = cluster.failures()
    assert failures[0] == failures[1]
    failure = failures[0]
    assert failure["message"].startswith(f"{name} is ")
    assert "0.0.0 on algo-2" in failure["message"]
    assert json.dumps(failure["host"]) == '"algo-2"'
