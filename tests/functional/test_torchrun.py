"""Jobs whose processes torchrun brings together."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.harness import eventually
from tests.hosts import Cluster, logs, statuses

SCRIPT = """
import os, signal, sys
rank, host = int(os.environ["RANK"]), os.environ["SM_CURRENT_HOST"]
print("rank", rank, "of", os.environ["WORLD_SIZE"], "local", os.environ["LOCAL_RANK"], "on", host,
    "for", os.environ["MASTER_ADDR"], *sys.argv[1:], flush=True)
for number in range(int(os.environ.get("LINES", "0"))):
    sys.stdout.write(f"line {rank} {number:05} ")
    sys.stdout.flush()
    sys.stdout.write("x" * 50 + "\\n")
if os.environ.get("ENDS"):
    sys.exit()
if rank == 3 and "FAILS" in os.environ:
    raise KeyError("beta_1")
def save(number, frame):
    open(os.path.join(os.environ["SM_MODEL_DIR"], str(rank)), "w")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
open(os.path.join(os.environ["SM_OUTPUT_DATA_DIR"], str(rank)), "w")
while True:
    signal.pause()
"""


@pytest.fixture
def cluster(cluster: Cluster, tmp_path: Path) -> Cluster:
    programs = tmp_path / "bin"
    programs.mkdir()
    launcher = programs / "torchrun"
    source = Path(__file__).parents[1] / "programs" / "torchrun"
    launcher.write_text(f"#!{sys.executable}\n{source.read_text()}")
    launcher.chmod(0o755)
    for base in cluster.bases:
        base.write(
            "input/config/hyperparameters.json",
            {
                "sagemaker_torch_distributed_enabled": "true",
                "sagemaker_mpi_num_of_processes_per_host": "2",
                "sagemaker_program": "train.py",
                "lr": "0.1",
            },
        )
        base.environ["SM_RUNTIME_LAUNCHER"] = ""
        base.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    return cluster


def test_the_ranks_run_on_their_hosts_with_what_torchrun_gives_them(cluster: Cluster) -> None:
    results = cluster.script(SCRIPT, ENDS="1", LINES="2000").start().wait()
    assert statuses(results) == [0, 0], logs(results)
    for number, result in enumerate(results):
        host = cluster.hosts[number].name
        lines = result.out.decode().splitlines()
        assert sorted(line for line in lines if line.startswith("rank")) == [
            f"rank {2 * number + local} of 4 local {local} on {host} for"
            f" {cluster.hosts[0].name} --lr 0.1"
            for local in (0, 1)
        ]
        for rank in (2 * number, 2 * number + 1):
            own = [line for line in lines if line.startswith(f"line {rank} ")]
            assert own == [f"line {rank} {count:05} {'x' * 50}" for count in range(2000)]


def test_one_host_needs_no_address(cluster: Cluster) -> None:
    base = cluster.bases[0]
    base.path("input/config/resourceconfig.json").unlink()
    result = cluster.script(SCRIPT, ENDS="1").bases[0].run()
    assert result.status == 0, result.log
    assert "--master_addr" not in result.log
    assert result.out.decode().count(" of 2 local ") == 2


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_one_rank_that_fails_ends_all_and_torchrun_does_not_wait(
    cluster: Cluster, how: str
) -> None:
    fails = {"FAILS": "1"} if how == "raise" else {}
    cluster.script(SCRIPT, **fails).start()
    if how == "kill":
        mark = cluster.bases[1].path("output/data/3")
        eventually(mark.exists, "rank 3 runs", 60)
        os.kill(_rank_3(cluster), signal.SIGKILL)
    results = cluster.wait()
    found = cluster.failures()
    assert (found["rank"], found["host"]) == (3, cluster.hosts[1].name), logs(results)
    status, name = (1, "KeyError") if how == "raise" else (137, "ExecuteUserScriptError")
    assert set(statuses(results)) == {status}
    assert found["class"] == name


def test_a_stop_on_one_host_reaches_every_rank_of_all(cluster: Cluster) -> None:
    cluster.script(SCRIPT).start()
    marks = [cluster.bases[rank // 2].path(f"output/data/{rank}") for rank in range(4)]
    eventually(lambda: all(mark.exists() for mark in marks), "all run", 60)
    cluster.running[1].send(signal.SIGTERM)
    results = cluster.wait()
    assert statuses(results) == [0, 0], logs(results)
    assert all(cluster.bases[rank // 2].path(f"model/{rank}").exists() for rank in range(4))


def test_a_torchrun_that_cannot_start_is_named(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "bin" / "torchrun").write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no!')\n")
    results = cluster.script(SCRIPT).start().wait()
    assert set(statuses(results)) == {1}, logs(results)
    assert "the torchrun ended with exit code 1" in cluster.bases[0].failure()
    assert b"no!" in b"".join(result.err for result in results)


def _rank_3(cluster: Cluster) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes().split(b"\0")
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if (
                b"RANK=3" in environ
                and cluster.marker.encode() in environ
                and b"knock" not in words
            ):
                return int(entry.name)
    raise AssertionError("rank 3 does not run")
