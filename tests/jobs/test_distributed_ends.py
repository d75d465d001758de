"""How jobs of several hosts end: stops, silence, hosts that are late, fail early or cannot save."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.harness import eventually
from tests.hosts import HELLO, SECRET, WAITS, Cluster, logs, statuses


@pytest.mark.parametrize("silent", [0, 1])
def test_a_host_that_says_nothing_any_more_ends_the_others(cluster: Cluster, silent: int) -> None:
    cluster.script(WAITS).start(SM_RUNTIME_PEER_SILENCE_SECONDS="2").ready()
    host, network = cluster.hosts[silent], cluster.network
    with network.cut(host) if network.isolated else nullcontext():
        if not network.isolated:
            cluster.running[silent].send(signal.SIGSTOP)
        other = cluster.running[1 - silent].wait(60)
        assert other.status == 1, other.log
        found = cluster.failures(1 - silent)
        assert found["host"] == host.name
        assert "it has been silent for 2 s" in found["message"]
        cluster.running[silent].send(signal.SIGCONT)
        assert cluster.running[silent].wait(60).status == 1


@pytest.mark.parametrize("at", [0, 1])
def test_a_stop_on_one_host_reaches_all_with_their_grace(cluster: Cluster, at: int) -> None:
    cluster.script(WAITS).start().ready()
    cluster.running[at].send(signal.SIGTERM)
    results = cluster.wait()
    assert statuses(results) == [0, 0], logs(results)
    assert all(base.path("model/saved").exists() for base in cluster.bases)


def test_a_second_request_to_stop_changes_nothing(cluster: Cluster) -> None:
    cluster.script(WAITS).start().ready()
    for running in cluster.running.values():
        running.send(signal.SIGTERM)
        running.send(signal.SIGTERM)
    results = cluster.wait()
    assert statuses(results) == [0, 0], logs(results)


def test_a_host_that_fails_when_stopped_does_not_hasten_the_others_end(cluster: Cluster) -> None:
    slow = WAITS.replace(
        "    open(",
        "    if os.environ['SM_CURRENT_HOST'] == os.environ['SLOW']:\n"
        "        import time; time.sleep(2)\n"
        "    else:\n"
        "        sys.exit(9)\n"
        "    open(",
    )
    cluster.script(slow, SLOW=cluster.hosts[1].name).start().ready()
    cluster.running[0].send(signal.SIGTERM)
    results = cluster.wait()
    assert set(statuses(results)) == {9}, logs(results)
    assert cluster.bases[1].path("model/saved").exists()
    assert cluster.failures()["host"] == cluster.hosts[0].name


@pytest.mark.parametrize("at", [0, 1])
def test_a_stop_while_others_are_waited_for_ends_within_ten_seconds(
    cluster: Cluster, at: int
) -> None:
    cluster.script(HELLO).start(at)
    running = cluster.running[at]
    eventually(lambda: b"requirements" in running.err or len(running.err) > 200, "it waits", 60)
    running.send(signal.SIGTERM)
    result = running.wait(9.5)
    assert result.status == 143, result.log
    assert "stopped by SIGTERM before the script started" in cluster.bases[at].failure()


@pytest.mark.parametrize("at", [0, 1])
def test_a_stop_while_a_host_installs_ends_all(cluster: Cluster, at: int, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "setup.py").write_text(
        "import time\nprint('x')\nopen('/proc/self/comm', 'w').write('smslow')\ntime.sleep(100)\n"
    )
    cluster.script(HELLO)
    cluster.bases[at].write("code/requirements.txt", str(slow))
    cluster.start()
    eventually(lambda: any("slow" in line or "pip" in line for line in cluster.left()), "pip", 60)
    cluster.running[at].send(signal.SIGTERM)
    results = cluster.wait()
    assert set(statuses(results)) == {143}, logs(results)
    assert cluster.failures()["host"] == cluster.hosts[at].name


@pytest.mark.parametrize("at", [0, 1])
def test_a_host_that_cannot_install_ends_all_that_wait(
    cluster: Cluster, at: int, tmp_path: Path
) -> None:
    cluster.script(HELLO)
    cluster.bases[at].write("code/requirements.txt", str(tmp_path / "no-such-package"))
    results = cluster.start().wait()
    assert set(statuses(results)) == {1}, logs(results)
    found = cluster.failures()
    assert (found["class"], found["host"]) == ("InstallError", cluster.hosts[at].name)
    assert b"ready" not in b"".join(result.out for result in results)


def test_a_host_that_fails_before_the_others_come_tells_them_when_they_do(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.script(HELLO)
    cluster.bases[0].write("code/requirements.txt", str(tmp_path / "no-such-package"))
    cluster.start(0)
    eventually(lambda: b"InstallError" in cluster.running[0].err, "it has failed", 60)
    results = cluster.start(1).wait()
    assert statuses(results) == [1, 1], logs(results)
    assert cluster.failures()["class"] == "InstallError"


@pytest.mark.parametrize("late", [0, 1])
def test_a_host_that_starts_late_is_waited_for(cluster: Cluster, late: int) -> None:
    cluster.script(HELLO).start(1 - late)
    waiting = cluster.running[1 - late]
    threading.Event().wait(1.5)
    assert waiting.process.poll() is None
    results = cluster.start(late).wait()
    assert statuses(results) == [0, 0], logs(results)


@pytest.mark.parametrize("cluster", [3], indirect=True)
def test_a_host_that_never_comes_fails_all_by_name(cluster: Cluster) -> None:
    results = cluster.script(HELLO).start(0, 1, SM_RUNTIME_PEER_WAIT_SECONDS="2").wait()
    assert statuses(results) == [1, 1], logs(results)
    found = cluster.failures(0, 1)
    missing = cluster.hosts[2]
    assert f"{missing.name}: has not connected (resolved {missing.address})" in found["message"]
    assert "for 2 s" in found["message"]


@pytest.mark.parametrize("at", [0, 1])
def test_a_host_that_cannot_save_fails_all(cluster: Cluster, at: int, tmp_path: Path) -> None:
    cluster.script(HELLO)
    for number, base in enumerate(cluster.bases):
        target = tmp_path / ("file" if number == at else "folder")
        if number == at:
            target.write_text("this is no folder")
        else:
            target.mkdir()
        base.environ["SM_RUNTIME_JOB"] = json.dumps(
            {
                "TrainingJobName": "j",
                "OutputDataConfig": {"S3OutputPath": f"file://{target}"},
            }
        )
    results = cluster.start().wait()
    assert len(set(statuses(results))) == 1 and results[0].status == 1, logs(results)
    assert cluster.failures()["host"] == cluster.hosts[at].name
    assert not any(base.path("output/success").exists() for base in cluster.bases)


def test_a_reader_of_the_log_that_stalls_ends_no_job(cluster: Cluster) -> None:
    text = HELLO + "\nfor _ in range(40):\n    print('x' * 99_999)\n"
    cluster.script(text)
    read, write = os.pipe()
    base, host = cluster.bases[1], cluster.hosts[1]
    process = subprocess.Popen(
        [*host.prefix, sys.executable, "-m", "sm_runtime", "train"],
        env={**base.environ, "SM_RUNTIME_PEER_SILENCE_SECONDS": "2"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=write,
    )
    os.close(write)
    cluster.start(0, SM_RUNTIME_PEER_SILENCE_SECONDS="2")
    eventually(lambda: b"ready" in cluster.running[0].out, "it runs", 60)
    threading.Event().wait(3)  # longer than a host may be silent
    assert process.poll() is None
    count = 0
    while data := os.read(read, 1 << 20):
        count += len(data)
    os.close(read)
    assert count > 40 * 99_999
    assert process.wait(60) == 0
    assert statuses(cluster.wait()) == [0]


def test_the_script_does_not_get_the_secret(cluster: Cluster) -> None:
    cluster.script(
        "import os\nprint('ready', [n for n in os.environ if 'CLUSTER_SECRET' in n], flush=True)\n"
    )
    results = cluster.start().wait()
    assert statuses(results) == [0, 0], logs(results)
    assert all(b"ready []" in result.out for result in results)
    assert SECRET not in logs(results)


def test_hosts_that_only_wait_compute_nothing(cluster: Cluster) -> None:
    cluster.script(WAITS).start().ready()

    def ticks(number: int) -> int:
        text = Path(f"/proc/{cluster.running[number].pid}/stat").read_text()
        return sum(map(int, text.rpartition(")")[2].split()[11:13]))

    before = [ticks(0), ticks(1)]
    threading.Event().wait(3)
    spent = [ticks(0) - before[0], ticks(1) - before[1]]
    assert max(spent) / os.sysconf("SC_CLK_TCK") < 0.15, spent
    cluster.running[0].send(signal.SIGTERM)
    assert statuses(cluster.wait()) == [0, 0]


@pytest.mark.parametrize("secrets", [("", SECRET), (SECRET + "2", SECRET)])
def test_hosts_without_the_same_secret_fail_and_say_so(
    cluster: Cluster, secrets: tuple[str, str]
) -> None:
    for number, base in enumerate(cluster.script(HELLO).bases):
        base.environ["SM_RUNTIME_CLUSTER_SECRET"] = secrets[number]
    results = cluster.start(SM_RUNTIME_PEER_WAIT_SECONDS="20").wait()
    assert set(statuses(results)) == {1}, logs(results)
    assert "SM_RUNTIME_CLUSTER_SECRET" in cluster.bases[1].failure()
    if cluster.network.isolated:
        assert "SM_RUNTIME_CLUSTER_SECRET" in cluster.bases[0].failure()


def test_the_secret_may_be_a_file(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    del cluster.script(HELLO).bases[1].environ["SM_RUNTIME_CLUSTER_SECRET"]
    cluster.bases[1].environ["SM_RUNTIME_CLUSTER_SECRET_FILE"] = str(tmp_path / "secret")
    results = cluster.start().wait()
    assert statuses(results) == [0, 0], logs(results)
