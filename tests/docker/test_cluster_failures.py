"""Hosts that die, lose the network, are stopped, come late or never: all end, and say why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.docker.cluster import Cluster

MPI: dict[str, Any] = {"sagemaker_mpi_enabled": True, "sagemaker_mpi_num_of_processes_per_host": 2}
KILLED = """
import argparse, os, signal, time
from mpi4py import MPI
parser = argparse.ArgumentParser()
parser.add_argument("--victim", type=int)
world = MPI.COMM_WORLD
world.Barrier()
if world.rank == parser.parse_args().victim:
    print("killed at", time.time(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
world.Barrier()
"""
ABORTS = """
import argparse
from mpi4py import MPI
parser = argparse.ArgumentParser()
parser.add_argument("--error", type=int)
world = MPI.COMM_WORLD
world.Barrier()
if world.rank == 3:
    world.Abort(parser.parse_args().error)
world.Barrier()
"""
WAITS = """
import signal
from mpi4py import MPI
MPI.COMM_WORLD.Barrier()
print("ready", flush=True)
signal.pause()
"""
SAVES = """
import argparse, os, signal, sys, threading
from mpi4py import MPI
parser = argparse.ArgumentParser()
parser.add_argument("--careless", type=int)
rank = MPI.COMM_WORLD.rank
asked = threading.Event()
def save(number, _):
    # What takes long, as a checkpoint does.
    threading.Timer(3, asked.set).start()
if rank != parser.parse_args().careless:
    signal.signal(signal.SIGTERM, save)
MPI.COMM_WORLD.Barrier()
print("ready", flush=True)
while not asked.wait(0.1):
    pass
with open(os.path.join(os.environ["SM_MODEL_DIR"], f"saved-{rank}"), "w") as file:
    file.write("step 12")
"""


def saved(cluster: Cluster) -> set[str]:
    """Return the names of what the ranks have saved."""
    return {
        path.name for host in cluster.hosts.values() for path in (host.ml.root / "model").iterdir()
    }


def killed(image: str, folder: Path, victim: int) -> dict[str, Any]:
    """Run four ranks of which one is killed; return what both hosts say, and ``seconds``."""
    with Cluster(image, folder, KILLED, **MPI, victim=victim) as cluster:
        assert cluster.run() == {137}, cluster.log()
        lines = [line.split() for _, _, line in cluster.lines()]
        first, second = cluster.failures()
        assert first == second, cluster.log()
        headlines = {
            host.ml.read("output/failure").splitlines()[0] for host in cluster.hosts.values()
        }
        assert len(headlines) == 1
        began = next(float(words[2]) for words in lines if words[0] == "killed")
        return {**first, "headline": headlines.pop(), "seconds": cluster.ended - began}


@pytest.mark.parametrize("victim", [0, 1, 2, 3, 3])
def test_a_killed_rank_ends_all_hosts_and_all_name_it(
    cpu_image: str, tmp_path: Path, victim: int
) -> None:
    found = killed(cpu_image, tmp_path, victim)
    host = "algo-1" if victim < 2 else "algo-2"
    assert (found["rank"], found["host"], found["signal"]) == (victim, host, "SIGKILL")
    assert f"rank {victim}, {host}" in found["headline"]
    assert "SIGKILL" in found["headline"]
    assert found["seconds"] < 10


@pytest.mark.parametrize(
    ("code", "status", "messages"),
    [
        # Whichever is known first: the end of the rank, or what mpirun says of it.
        (7, 7, {"the script ended with exit code 7", "called MPI_Abort with error code 7"}),
        (0, 1, {"called MPI_Abort with error code 0"}),  # which mpirun itself takes for an end
    ],
)
def test_an_abort_is_no_success_whatever_its_code(
    cpu_image: str, tmp_path: Path, code: int, status: int, messages: set[str]
) -> None:
    with Cluster(cpu_image, tmp_path, ABORTS, **MPI, error=code) as cluster:
        assert cluster.run() == {status}, cluster.log()
        first, second = cluster.failures()
    assert first == second
    assert first["message"] in messages
    assert (first["rank"], first["host"]) == (3, "algo-2")


@pytest.mark.parametrize("victim", ["algo-1", "algo-2"])
def test_a_killed_container_ends_the_other_which_names_it(
    cpu_image: str, tmp_path: Path, victim: str
) -> None:
    with Cluster(cpu_image, tmp_path, WAITS, **MPI) as cluster:
        cluster.start()
        for host in cluster.hosts.values():
            host.ready("ready")
        killed_at = cluster[victim].send("KILL")
        statuses = cluster.wait()
        assert 137 in statuses and 0 not in statuses, cluster.log()
        assert cluster.ended - killed_at < 10
        (failure,) = cluster.failures()
    assert failure["class"] == "HostLostError"
    assert failure["host"] == victim
    assert failure["message"].startswith(f"{victim} (")


def test_a_host_that_is_cut_off_the_network_ends_and_so_do_the_others(
    cpu_image: str, tmp_path: Path
) -> None:
    with Cluster(cpu_image, tmp_path, WAITS, **MPI) as cluster:
        cluster.start()
        for host in cluster.hosts.values():
            host.ready("ready")
        cut_at = cluster.cut("algo-2")
        statuses = cluster.wait()
        assert 0 not in statuses, cluster.log()
        assert cluster.ended - cut_at < 30
        first, second = cluster.failures()
    assert (first["class"], first["host"]) == ("HostLostError", "algo-2")
    # Seen from there, it is the leader who is gone.
    assert (second["class"], second["host"]) == ("HostLostError", "algo-1")
    assert "silent for 20 s" in first["message"]


@pytest.mark.parametrize("stopped", ["algo-1", "algo-2"])
def test_a_stop_on_one_host_reaches_every_rank_and_all_save(
    cpu_image: str, tmp_path: Path, stopped: str
) -> None:
    with Cluster(cpu_image, tmp_path, SAVES, **MPI) as cluster:
        cluster.start()
        for host in cluster.hosts.values():
            host.ready("ready")
        cluster[stopped].send("TERM")
        assert cluster.wait() == {0}, cluster.log()
        assert saved(cluster) == {"saved-0", "saved-1", "saved-2", "saved-3"}
        assert cluster.failures() == []


@pytest.mark.parametrize("careless", [1, 2])
def test_a_rank_that_does_not_handle_the_stop_takes_nobodys_grace_away(
    cpu_image: str, tmp_path: Path, careless: int
) -> None:
    with Cluster(cpu_image, tmp_path, SAVES, **MPI, careless=careless) as cluster:
        cluster.start()
        for host in cluster.hosts.values():
            host.ready("ready")
        cluster["algo-2"].send("TERM")
        assert cluster.wait() == {143}, cluster.log()
        assert saved(cluster) == {f"saved-{rank}" for rank in range(4)} - {f"saved-{careless}"}
        first, second = cluster.failures()
    assert first == second
    assert first["rank"] == careless


def test_a_host_that_comes_late_is_waited_for(cpu_image: str, tmp_path: Path) -> None:
    script = "import os; print(os.environ['SM_CURRENT_HOST'])"
    with Cluster(cpu_image, tmp_path, script, **MPI) as cluster:
        cluster.start("algo-1")
        cluster["algo-1"].ready("waiting for algo-2 (10 s / 300 s)")
        cluster.start("algo-2")
        assert cluster.wait() == {0}, cluster.log()
        assert sorted(host for _, host, _ in cluster.lines()) == [*["algo-1"] * 2, *["algo-2"] * 2]
        assert "its name does not resolve" in cluster["algo-1"].log()


def test_a_host_that_never_comes_is_named_by_all_with_the_cause(
    cpu_image: str, tmp_path: Path
) -> None:
    options = ("-e", "SM_RUNTIME_PEER_WAIT_SECONDS=25")
    with Cluster(cpu_image, tmp_path, WAITS, count=3, options=options, **MPI) as cluster:
        cluster.start("algo-1", "algo-2")
        assert cluster.wait() == {1}, cluster.log()
        failures = cluster.failures()
        logs = [cluster[name].log() for name in ("algo-1", "algo-2")]
        seconds = cluster.ended - cluster["algo-1"].began
    assert seconds < 45  # the last look-up of the name may take its time
    assert failures[0] == failures[1]
    assert (failures[0]["class"], failures[0]["host"]) == ("PeerError", "algo-3")
    expected = r"algo-3: its name does not resolve \(.+\) for 25 s"
    assert re.fullmatch(expected, failures[0]["message"])
    for log in logs:
        assert len(re.findall("waiting for algo-3", log)) == 2, log


def test_a_leader_whose_runtime_never_comes_is_named_with_the_cause(
    cpu_image: str, tmp_path: Path
) -> None:
    options = ("-e", "SM_RUNTIME_PEER_WAIT_SECONDS=8")
    with Cluster(cpu_image, tmp_path, WAITS, options=options, **MPI) as cluster:
        cluster.start("algo-1", command=("sleep", "20"))
        cluster.start("algo-2")
        assert cluster.wait() == {0, 1}, cluster.log()
        (failure,) = cluster.failures()
        seconds = cluster["algo-2"].ended - cluster["algo-2"].began
    assert seconds < 15
    assert failure["host"] == "algo-1"
    assert re.fullmatch(
        r"algo-1: [0-9.]+ port 71\d\d: Connection refused for 8 s", failure["message"]
    )
