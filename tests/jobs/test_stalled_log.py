"""A log that has no reader takes nothing from the time in which a stopped job saves."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import hosts
from tests.harness import RUNTIME, Base, eventually

FILL = """
import os, signal, sys
def save(number, frame):
    {says}
    with open(os.path.join(os.environ["SM_MODEL_DIR"], "saved"), "w") as file:
        file.write("weights")
    os._exit({status})
signal.signal(signal.SIGTERM, save)
line = b"x" * 1023 + b"\\n"
os.set_blocking({stream}, False)
full = 0
while True:
    try:
        os.write({stream}, line)
        full = 0
    except BlockingIOError:
        full += 1
    if full == 20:  # nothing has moved for a while: all pipes are full
        os.set_blocking({stream}, True)
        open(os.path.join(os.environ["SM_MODEL_DIR"], "full"), "w").close()
        while True:
            signal.pause()
    signal.sigtimedwait([signal.SIGUSR2], 0.01 if full else 0)
"""
"""Fills the log, then saves when it is asked to stop."""
SAYS = {
    "silent": "pass",
    "prints": "os.write({stream}, b'y' * 3_000_000)",
}


class Unread:
    """The runtime, with pipes for its output that nothing is read from."""

    def __init__(self, base: Base, prefix: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self.base = base
        self.pipes = [os.pipe(), os.pipe()]
        self.process = subprocess.Popen(
            (*prefix, *RUNTIME, "train"),
            env={**base.environ, **environ},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=self.pipes[0][1],
            stderr=self.pipes[1][1],
        )
        for _, writer in self.pipes:
            os.close(writer)

    def full(self) -> Unread:
        eventually(self.base.path("model/full").exists, "the log is full", 30)
        return self

    def stop(self, seconds: float) -> tuple[int, float]:
        """Ask for a stop; return the status and the seconds to the end, ``seconds`` at most."""
        started = time.monotonic()
        self.process.terminate()
        return self.process.wait(seconds), time.monotonic() - started

    def read(self) -> bytes:
        """Return what is still in the pipes."""
        found = b""
        for reader, _ in reversed(self.pipes):
            while data := os.read(reader, 65536):
                found += data
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for reader, _ in self.pipes:
            os.close(reader)


@contextmanager
def unread(base: Base, *prefix: str, **environ: str) -> Iterator[Unread]:
    made = Unread(base, prefix, environ)
    try:
        yield made
    finally:
        made.close()


def request(base: Base, store: Path) -> None:
    base.write(
        "input/config/job.json",
        {"TrainingJobName": "j", "OutputDataConfig": {"S3OutputPath": store.as_uri()}},
    )


@pytest.mark.parametrize("says", SAYS)
@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("status", [0, 7])
def test_a_stopped_job_is_saved_in_time(
    base: Base, tmp_path: Path, says: str, stream: int, status: int
) -> None:
    store = tmp_path / "store"
    request(base, store)
    text = FILL.format(says=SAYS[says].format(stream=stream), stream=stream, status=status)
    with unread(base.script(text), SM_RUNTIME_STOP_TIMEOUT_SECONDS="30") as running:
        ended, _ = running.full().stop(30)
        assert ended == status
        assert (store / "j/output/model.tar.gz").exists()
        assert base.path("output/failure" if status else "output/success").exists()
        if status:
            assert base.failure().startswith("ExecuteUserScriptError")


def test_a_script_that_is_stuck_in_its_own_output_can_save_after_a_stop(base: Base) -> None:
    """The handler runs only when the write returns: what has no reader is dropped then."""
    text = FILL.format(says=SAYS["prints"].format(stream=1), stream=1, status=0)
    with unread(base.script(text)) as running:
        ended, seconds = running.full().stop(60)
        assert (ended, base.path("model/saved").read_text()) == (0, "weights")
        assert seconds < 60


def test_the_lines_of_a_log_that_stalls_cost_no_second_each(base: Base) -> None:
    """Without a stop the log has its 30 seconds once, not for each line of the runtime's own."""
    text = FILL.format(says="pass", stream=2, status=0).replace("signal.pause()", "os._exit(3)")
    with unread(base.script(text)) as running:
        assert running.full().process.wait(60) == 3
        assert base.failure_json()["exit"] == 3


def test_a_reader_that_comes_back_gets_the_lines_that_follow(base: Base) -> None:
    text = FILL.format(says="pass", stream=2, status=0)
    with unread(base.script(text)) as running:
        running.full().process.terminate()
        eventually(base.path("model/saved").exists, "the script has saved")
        log = running.read()
        assert b"Reporting training SUCCESS" in log
        assert running.process.wait(30) == 0


def test_a_slow_reader_gets_all_of_it_where_there_is_time(base: Base) -> None:
    base.script("import sys\nfor i in range(3000): print('x' * 999)\n")
    with unread(base) as running:
        found = bytearray()
        while data := os.read(running.pipes[0][0], 30_000):
            found += data
            time.sleep(0.001)
        assert running.process.wait(30) == 0
    assert found == (b"x" * 999 + b"\n") * 3000


def test_each_host_of_a_job_is_saved_in_time(cluster: hosts.Cluster) -> None:
    text = FILL.format(says=SAYS["prints"].format(stream=1), stream=1, status=0)
    for base in cluster.bases:
        base.script(text)
        base.environ["SM_RUNTIME_STOP_TIMEOUT_SECONDS"] = "30"
    made = [
        Unread(base, host.prefix, {})
        for base, host in zip(cluster.bases, cluster.hosts, strict=True)
    ]
    try:
        for one in made:
            one.full()
        status, _ = made[0].stop(30)
        assert [status, made[1].process.wait(30)] == [0, 0]
        for base in cluster.bases:
            assert base.path("model/saved").exists()
            assert base.path("output/success").exists()
    finally:
        for one in made:
            one.close()
