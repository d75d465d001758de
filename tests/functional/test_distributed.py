"""Jobs of several hosts, each a process with a base folder and a network of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import netns
from tests.harness import Base, Result, Running, eventually

SECRET = "a secret of this test's cluster"
HELLO = """
import os
print("ready", os.environ["SM_CURRENT_HOST"], flush=True)
open(os.path.join(os.environ["SM_MODEL_DIR"], "model-" + os.environ["SM_CURRENT_HOST"]), "w")
"""
WAITS = """
import os, signal, sys
def save(number, frame):
    open(os.path.join(os.environ["SM_MODEL_DIR"], "saved"), "w")
    sys.exit(int(os.environ.get("SM_HP_STATUS", "0")))
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    signal.pause()
"""
FAILS_ON_LAST = """
import os, signal, sys
print("ready", flush=True)
if os.environ["SM_CURRENT_HOST"] == os.environ["SM_HOSTS"].split('"')[-2]:
    raise KeyError("beta_1")
while True:
    signal.pause()
"""


class Cluster:
    """The hosts of one job; ``start`` starts their runtimes, or some of them."""

    def __init__(
        self, root: Path, network: netns.Network, hosts: Sequence[netns.Host] = ()
    ) -> None:
        self.network, self.hosts = network, hosts or network.hosts
        names = [host.name for host in self.hosts]
        self.bases = [Base(root / name / "ml") for name in names]
        self.running: dict[int, Running] = {}
        self.marker = f"SM_TEST_MARK={root}"
        for host, base in zip(self.hosts, self.bases, strict=True):
            base.write(
                "input/config/resourceconfig.json",
                {
                    "current_host": host.name,
                    "hosts": names,
                    "network_interface_name": host.interface,
                },
            )
            base.environ |= {
                "SM_RUNTIME_LAUNCHER": json.dumps(["{python}", "{script}", "{args}"]),
                "SM_RUNTIME_CLUSTER_SECRET": SECRET,
                "SM_TEST_MARK": str(root),
            }

    def script(self, text: str, **environ: str) -> Cluster:
        for base in self.bases:
            base.script(text)
            base.environ |= environ
        return self

    def start(self, *numbers: int, **environ: str) -> Cluster:
        for number in numbers or range(len(self.hosts)):
            host, base = self.hosts[number], self.bases[number]
            self.running[number] = base.start(prefix=host.prefix, **environ)
        return self

    def ready(self) -> Cluster:
        for running in self.running.values():
            eventually(lambda r=running: b"ready" in r.out or r.process.poll() is not None, "r", 60)
            assert b"ready" in running.out, running.err.decode()
        return self

    def wait(self) -> list[Result]:
        return [self.running[number].wait(60) for number in sorted(self.running)]

    def failures(self, *numbers: int) -> Any:
        """Return what the hosts' failure.json says, which is the same on all."""
        found = [self.bases[n].failure_json() for n in numbers or range(len(self.hosts))]
        assert all(one == found[0] for one in found), found
        return found[0]

    def left(self) -> list[str]:
        """Return the command lines of the job's living processes."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if self.marker.encode() in (entry / "environ").read_bytes():
                        found.append((entry / "cmdline").read_text())
                except OSError:
                    continue
        return found

    def close(self) -> None:
        for running in self.running.values():
            if running.process.poll() is None:
                running.process.kill()
                running.wait()


@pytest.fixture(scope="module")
def networks() -> Iterator[dict[int, netns.Network]]:
    with ExitStack() as undo:
        yield {
            count: undo.enter_context(netns.network([f"algo-{i}" for i in range(1, count + 1)]))
            for count in (2, 3)
        }


@pytest.fixture
def cluster(
    networks: dict[int, netns.Network], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    made = Cluster(tmp_path, networks[getattr(request, "param", 2)])
    yield made
    made.close()
    eventually(lambda: not made.left(), "no process is left", 30)


def statuses(results: Sequence[Result]) -> list[int]:
    return [result.status for result in results]


def logs(results: Sequence[Result]) -> str:
    return "\n".join(result.log for result in results)


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
