"""A supervisor and real processes, where an exact moment counts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

import pytest

from sm_runtime.job.model import Command
from sm_runtime.processes.relay import open_sinks
from sm_runtime.processes.stop import StopPolicy
from sm_runtime.processes.supervisor import Supervisor
from sm_runtime.processes.workload import SingleProcess


def command(script: str) -> Command:
    return Command(argv=("sh", "-c", script), cwd="/", env={"PATH": os.environ["PATH"]})


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


def test_what_looks_at_the_output_and_fails_costs_the_script_nothing() -> None:
    def tap(_data: memoryview) -> None:
        raise MemoryError

    with Supervisor(*open_sinks()) as supervisor:
        supervisor.tap = lambda: tap
        script = "for i in 1 2 3; do echo $i; sleep 0.05; done; exit 4"
        [ended] = supervisor.run(SingleProcess(command(script), StopPolicy())).values()
    assert (ended.status, ended.signal) == (4, None)
    assert ended.stdout_tail == b"1\n2\n3\n"
