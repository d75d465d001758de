"""Distributed jobs: what starts on each host, and what each says in the end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness import Base, eventually
from tests.hosts import HELLO, WAITS, Cluster, logs, statuses

FAILS_ON_LAST = """
import os, signal, sys
print("ready", flush=True)
if os.environ["SM_CURRENT_HOST"] == os.environ["SM_HOSTS"].split('"')[-2]:
    raise KeyError("beta_1")
while True:
    signal.pause()
"""


@pytest.mark.parametrize("cluster", [2, 3], indirect=True)
def test_hosts_start_together_and_end_well(cluster: Cluster) -> None:
    results = cluster.script(HELLO).start().wait()
    assert set(statuses(results)) == {0}, logs(results)
    for base, host, result in zip(cluster.bases, cluster.hosts, results, strict=True):
        assert f"ready {host.name}".encode() in result.out
        assert base.path("output/success").exists()
        assert not base.path("output/failure").exists()


def test_nothing_listens_once_all_are_there_nor_afterwards(cluster: Cluster) -> None:
    before = [host.listeners() for host in cluster.hosts]
    cluster.script(WAITS).start(0)
    leader = cluster.hosts[0]
    address = leader.address if cluster.network.isolated else "127.0.0.1"
    opened = eventually(lambda: leader.listeners() - before[0], "the leader listens", 60)
    assert {place for place, _ in opened} == {address}
    assert {port for _, port in opened} <= set(range(7117, 7127))
    cluster.start(1).ready()
    assert [host.listeners() for host in cluster.hosts] == before
    cluster.running[0].send(signal.SIGTERM)
    results = cluster.wait()
    assert statuses(results) == [0, 0], logs(results)
    assert [host.listeners() for host in cluster.hosts] == before


@pytest.mark.parametrize("cluster", [2, 3], indirect=True)
def test_a_script_that_fails_anywhere_ends_all_with_the_same_truth(cluster: Cluster) -> None:
    results = cluster.script(FAILS_ON_LAST).start().wait()
    assert set(statuses(results)) == {1}, logs(results)
    found = cluster.failures()
    assert (found["class"], found["host"]) == ("KeyError", cluster.hosts[-1].name)
    assert found["file"] == "train.py"
    assert max(result.seconds for result in results) < 30


@pytest.mark.parametrize("cluster", [3], indirect=True)
def test_a_script_that_is_killed_is_named_on_all_hosts(cluster: Cluster) -> None:
    cluster.script(WAITS.replace("print(", "print(os.getpid(),")).start().ready()
    os.kill(int(bytes(cluster.running[1].out).split()[0]), signal.SIGKILL)
    results = cluster.wait()
    assert set(statuses(results)) == {137}, logs(results)
    found = cluster.failures()
    assert (found["signal"], found["host"]) == ("SIGKILL", cluster.hosts[1].name)


@pytest.mark.parametrize("cluster", [3], indirect=True)
@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_dies_ends_all_others(cluster: Cluster, lost: int) -> None:
    cluster.script(WAITS).start().ready()
    running = cluster.running.pop(lost)
    script = int(Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()[0])
    running.process.kill()
    os.kill(script, signal.SIGKILL)
    running.wait()
    results = cluster.wait()
    assert set(statuses(results)) == {1}, logs(results)
    others = [number for number in range(3) if number != lost]
    found = cluster.failures(*others)
    assert (found["class"], found["host"]) == ("HostLostError", cluster.hosts[lost].name)


def test_lines_of_ranks_begin_as_open_mpi_and_the_toolkit_write_them(base: Base) -> None:
    """Expressions for metrics, and tools, look for the whole of it, the colon included."""
    base.hyperparameters(sagemaker_mpi_enabled=True, sagemaker_mpi_num_of_processes_per_host=2)
    base.write("input/config/resourceconfig.json", {"current_host": "algo-1", "hosts": ["algo-1"]})
    base.script("import sys\nprint('loss: 0.5')\nprint('late', file=sys.stderr)")
    result = base.run()
    assert result.status == 0, result.log
    lines = (result.out + result.err).decode().splitlines()
    for rank in range(2):
        assert f"[1,mpirank:{rank},algo-1]<stdout>:loss: 0.5" in lines
        assert f"[1,mpirank:{rank},algo-1]<stderr>:late" in lines


SETUPS = {
    "sagemaker_multi_worker_mirrored_strategy_enabled": (
        "Running distributed training job with multi_worker_mirrored_strategy setup"
    ),
    "sagemaker_parameter_server_enabled": "Running distributed training job with parameter servers",
}


@pytest.mark.parametrize("key", SETUPS)
def test_tensorflows_ways_of_training_are_announced_as_by_its_toolkit(
    cluster: Cluster, key: str
) -> None:
    for base in cluster.bases:
        base.hyperparameters(**{key: "true"})
        base.environ["SM_RUNTIME_LAUNCHER"] = ""
    cluster.script("import os\nprint('config', os.environ['TF_CONFIG'])")
    results = cluster.start().wait()
    assert statuses(results) == [0, 0], logs(results)
    for result in results:
        told = result.out.decode().partition("config ")[2].splitlines()[0]
        lines = [line for line in result.log.splitlines() if " sm-runtime " in line]
        assert [line for line in lines if line.endswith(f" {SETUPS[key]}")], result.log
        assert [line for line in lines if line.endswith(f" TF_CONFIG={told}")], result.log


def test_one_host_with_multi_worker_mirrored_is_announced_too(base: Base) -> None:
    base.hyperparameters(sagemaker_multi_worker_mirrored_strategy_enabled="true")
    result = base.script("").run()
    assert result.status == 0, result.log
    assert SETUPS["sagemaker_multi_worker_mirrored_strategy_enabled"] in result.log
    assert ' TF_CONFIG={"cluster": {"worker": [' in result.log
