"""Distributed jobs: what starts on each host, and what each says in the end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness import eventually
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
