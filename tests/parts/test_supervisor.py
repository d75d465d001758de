"""A supervisor and real processes, where an exact moment counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from sm_runtime.job.model import Command
from sm_runtime.processes import tree
from sm_runtime.processes.relay import open_sinks
from sm_runtime.processes.stop import StopPolicy
from sm_runtime.processes.supervisor import Supervisor
from sm_runtime.processes.workload import SingleProcess, Streams
from tests.harness import eventually

COUNTS = """
import signal, sys, time
count = 0
def stop(number, frame):
    global count
    count += 1
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while not count:
    time.sleep(0.01)
time.sleep(0.5)
sys.exit(count)
"""


def command(script: str) -> Command:
    return Command(argv=("sh", "-c", script), cwd="/", env={"PATH": os.environ["PATH"]})


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.mark.parametrize("signals_all", [True, False])
def test_a_signal_for_all_processes_is_not_passed_on_and_one_for_us_is(signals_all: bool) -> None:
    with Supervisor(*open_sinks()) as supervisor:
        supervisor.expect_signals_for_all()

        def stop(line: memoryview) -> None:
            for pid in children() if signals_all else ():
                os.kill(pid, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

        supervisor.tap = lambda: stop
        script = Command(argv=(sys.executable, "-c", COUNTS), cwd="/", env={})
        [ended] = supervisor.run(SingleProcess(script, StopPolicy(grace_seconds=60.0))).values()
    assert (ended.status, ended.stopped_by) == (1, "SIGTERM")
    assert not children(), "nor is the process that was watched left"


def test_a_process_that_starts_after_a_signal_for_all_is_asked() -> None:
    with Supervisor(*open_sinks()) as supervisor:
        supervisor.expect_signals_for_all()
        for pid in (*children(), os.getpid()):
            os.kill(pid, signal.SIGTERM)
        [ended] = supervisor.run(SingleProcess(command("sleep 60"), StopPolicy())).values()
    assert (ended.signal, ended.stopped_by) == (signal.SIGTERM, "SIGTERM")


def test_a_service_takes_no_signal_but_sigkill(tmp_path: Path) -> None:
    shows = (
        "import json, signal, sys; blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "json.dump(sorted(map(int, blocked)), open(sys.argv[1], 'w'))"
    )
    blocked = tmp_path / "blocked"
    script = Command(argv=(sys.executable, "-c", shows, str(blocked)), cwd="/", env={})
    with Supervisor(*open_sinks()) as supervisor:
        workload = SingleProcess(script, StopPolicy(), Streams.STDERR)
        supervisor.run(workload)
    assert json.loads(blocked.read_text()) == [1, 2, 3, 10, 12, 15]


def test_an_end_between_the_start_and_a_stop_from_before_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Supervisor(*open_sinks()) as supervisor:
        os.kill(os.getpid(), signal.SIGTERM)
        wait = supervisor._wait

        def late(seconds: float | None, files: Iterable[int] = ()) -> bytes:
            if seconds == 0.0:
                time.sleep(0.3)  # the process ends, and its SIGCHLD is read with the SIGTERM
            return wait(seconds, files)

        monkeypatch.setattr(supervisor, "_wait", late)
        workload = SingleProcess(command("exit 3"), StopPolicy(grace_seconds=60.0))
        [ended] = supervisor.run(workload).values()
    assert (ended.status, ended.killed) == (3, False)


def test_a_script_alone_is_asked_and_ends_without_a_look_at_all_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine may have thousands of them, of which many hosts' runtimes would look at each."""

    def search() -> Iterable[tuple[int, int, int, int]]:
        raise AssertionError("all processes of the machine are looked at")

    monkeypatch.setattr(tree, "_living", search)
    with Supervisor(*open_sinks()) as supervisor:
        supervisor.tap = lambda: lambda _: supervisor.ask("a test")
        script = Command(argv=(sys.executable, "-c", COUNTS), cwd="/", env={})
        [ended] = supervisor.run(SingleProcess(script, StopPolicy(grace_seconds=60.0))).values()
    assert (ended.status, ended.stopped_by) == (1, "a test")


def test_children_that_have_none_are_known_at_once() -> None:
    assert tree.grandchildless() == []
    pipe = subprocess.PIPE
    alone = subprocess.Popen("cat", stdin=pipe)
    parent = subprocess.Popen(("sh", "-c", "cat; :"), stdin=pipe)
    eventually(lambda: tree.grandchildless({alone.pid}) is None, "the second has a child")
    assert tree.grandchildless({parent.pid}) == [alone.pid]
    assert tree.grandchildless({alone.pid, parent.pid}) == []
    for process in (alone, parent):
        assert process.stdin
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert tree.grandchildless() is None, "what has ended may have left us its children"
        process.wait()
    assert tree.grandchildless() == []


def test_what_looks_at_the_output_and_fails_costs_the_script_nothing() -> None:
    def tap(_data: memoryview) -> None:
        raise MemoryError

    with Supervisor(*open_sinks()) as supervisor:
        supervisor.tap = lambda: tap
        script = "for i in 1 2 3; do echo $i; sleep 0.05; done; exit 4"
        [ended] = supervisor.run(SingleProcess(command(script), StopPolicy())).values()
    assert (ended.status, ended.signal) == (4, None)
    assert ended.stdout_tail == b"1\n2\n3\n"
