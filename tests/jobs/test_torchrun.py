"""Jobs whose processes torchrun brings together."""

from __future__ import annotations

import json
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
    assert "LaunchError: the torchrun: no! [" in cluster.bases[0].failure()
    assert b"no!" in b"".join(result.err for result in results)


HANGS = "import signal\nsignal.pause()\n"
ENDS_RANKS = """
import subprocess, sys, time
words = sys.argv[sys.argv.index("--no_python") + 1:]
import os
rank = subprocess.Popen(words, env={**os.environ, "RANK": "7", "LOCAL_RANK": "0", "WORLD_SIZE": "8",
    "MASTER_ADDR": "x"})
while not os.path.exists(os.path.join(os.environ["SM_OUTPUT_DATA_DIR"], "7")):
    time.sleep(0.05)
rank.kill()
"""


def launcher(cluster: Cluster, tmp_path: Path, text: str) -> Cluster:
    (tmp_path / "bin" / "torchrun").write_text(f"#!{sys.executable}\n{text}")
    return cluster


@pytest.mark.parametrize("at", [0, 1])
def test_a_stop_while_torchrun_starts_is_no_success(
    cluster: Cluster, tmp_path: Path, at: int
) -> None:
    launcher(cluster, tmp_path, HANGS).script(SCRIPT).start()
    for running in cluster.running.values():
        eventually(lambda r=running: b"torchrun:" in r.err, "torchrun is started", 60)
    cluster.running[at].send(signal.SIGTERM)
    results = cluster.wait()
    assert set(statuses(results)) == {143}, logs(results)
    found = cluster.failures()
    assert found["host"] == cluster.hosts[at].name
    assert found["message"] == "stopped by SIGTERM before the script started"
    assert not any(base.path("output/success").exists() for base in cluster.bases)


def test_a_launch_that_takes_too_long_is_told_of_and_fails(
    cluster: Cluster, tmp_path: Path
) -> None:
    launcher(cluster, tmp_path, HANGS).script(SCRIPT)
    results = cluster.start(SM_RUNTIME_PEER_WAIT_SECONDS="11").wait()
    assert set(statuses(results)) == {1}, logs(results)
    assert "no rank has begun in 11 s" in cluster.failures()["message"]
    assert "waiting for torchrun" in results[0].log


def test_the_time_limit_counts_while_ranks_are_launched(cluster: Cluster, tmp_path: Path) -> None:
    launcher(cluster, tmp_path, HANGS).script(SCRIPT)
    request = {"StoppingCondition": {"MaxRuntimeInSeconds": 2}}
    results = cluster.start(SM_RUNTIME_JOB=json.dumps(request)).wait()
    assert set(statuses(results)) == {143}, logs(results)
    assert "stopped by MaxRuntimeInSeconds (2 s)" in cluster.failures()["message"]


def test_a_launcher_that_ends_ranks_and_ends_well_has_failed(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.bases[0].path("input/config/resourceconfig.json").unlink()
    base = launcher(cluster, tmp_path, ENDS_RANKS).script(SCRIPT).bases[0]
    result = base.run()
    assert result.status == 1, result.log
    found = base.failure_json()
    assert found["rank"] == 7
    assert found["message"] == "torchrun ended the rank, for a reason that it does not give"


def test_ranks_that_fail_with_their_output_held_open_delay_nobody(cluster: Cluster) -> None:
    text = """
import os, subprocess, sys
subprocess.Popen(["sleep", "100"], start_new_session=True)
raise KeyError(os.environ["RANK"])
"""
    results = cluster.script(text).start().wait()
    assert set(statuses(results)) == {1}, logs(results)
    found = cluster.failures()
    assert (found["class"], found["message"]) == ("KeyError", f"'{found['rank']}'")
    assert found["last_lines"][-1] == f"KeyError: '{found['rank']}'"


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
                and b"launcher_stub" not in words
            ):
                return int(entry.name)
    raise AssertionError("rank 3 does not run")
