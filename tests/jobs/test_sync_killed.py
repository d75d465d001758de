"""Whenever a job is killed, the place holds a checkpoint that can be loaded, and a newer one."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sm_runtime.storage.files import LocalStore
from sm_runtime.sync.mirror import Folder, Mirror
from tests.harness import eventually
from tests.s3 import CREDENTIALS, serving

PATIENT = 60.0

# Saves as TensorFlow does: data, index, pointer, each beside and then renamed; keeps the last two.
WRITER = """
import hashlib, json, os, random, sys, threading
folder, pause = sys.argv[1], threading.Event()
def save(name, content):
    with open(f"{folder}/{name}.tmp", "wb") as file:
        file.write(content)
    os.rename(f"{folder}/{name}.tmp", f"{folder}/{name}")
try:
    step = json.load(open(f"{folder}/checkpoint"))["step"]
except FileNotFoundError:
    step = 0
while True:
    step += 1
    content = random.randbytes(random.randrange(1, 300_000))
    save(f"ckpt-{step}.data-00000-of-00001", content)
    save(f"ckpt-{step}.index", b"%d" % len(content))
    digest = hashlib.sha256(content).hexdigest()
    save("checkpoint", json.dumps({"step": step, "sha256": digest}).encode())
    for kind in ("data-00000-of-00001", "index"):
        for name in os.listdir(folder):
            if name.endswith(kind) and int(name.split(".")[0][5:]) <= step - 2:
                os.unlink(f"{folder}/{name}")
    pause.wait(random.uniform(0, 0.05))
"""

# A job: restores, starts the writer, syncs, and at SIGTERM ends the writer and sends the rest.
JOB = """
import json, os, signal, subprocess, sys
from sm_runtime import sync
from sm_runtime.job.model import Cluster, Job, Sync
from sm_runtime.job.model import Paths
base, uri, writer = sys.argv[1:]
job = Job(paths=Paths(base), cluster=Cluster(current_host="a", hosts=("a",)), managed=False,
          checkpoints=Sync(local_path=base + "/checkpoints", uri=uri))
syncs = sync.open_syncs(job, os.environ)
syncs.restore()
process = subprocess.Popen([sys.executable, "-c", writer, base + "/checkpoints"])
syncs.start()
syncs.hurry()
signal.signal(signal.SIGTERM, lambda *_: None)
print("ready", flush=True)
signal.pause()
process.kill()
process.wait()
(saved,) = syncs.finish(60)
print(saved.failure, flush=True)
"""


class Place:
    """Where the job's checkpoints go: a folder, which a server may show as a bucket."""

    def __init__(self, folder: Path, uri: str, environ: dict[str, str]) -> None:
        self.folder, self.uri, self.environ = folder, uri, environ

    def job(self, base: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            (sys.executable, "-c", JOB, base, self.uri, WRITER),
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "AWS_EC2_METADATA_DISABLED": "true", **self.environ},
        )

    def step(self) -> int:
        """Return the step of the checkpoint in the place, which must be whole; 0: none yet."""
        if not (self.folder / "checkpoint").exists():
            return 0
        found = json.loads((self.folder / "checkpoint").read_bytes())
        content = (self.folder / f"ckpt-{found['step']}.data-00000-of-00001").read_bytes()
        assert hashlib.sha256(content).hexdigest() == found["sha256"]
        assert int((self.folder / f"ckpt-{found['step']}.index").read_bytes()) == len(content)
        step: int = found["step"]
        return step


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "file":
        yield Place(tmp_path / "place", (tmp_path / "place").as_uri(), {})
        return
    folder = tmp_path / "buckets" / "bucket" / "job"
    folder.mkdir(parents=True)
    with serving(tmp_path / "buckets") as server:
        environ = {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": server.url, "AWS_REGION": "us-east-1"}
        yield Place(folder, "s3://bucket/job", environ)


def kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENT)
    assert process.stdout is not None
    process.stdout.close()


def ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


def later(condition: Callable[[], bool]) -> None:
    eventually(condition, "a newer checkpoint", PATIENT)


def test_a_job_that_is_killed_any_number_of_times_gets_on(place: Place, tmp_path: Path) -> None:
    """Each attempt is a new container: its folders are empty, and it begins with what is there."""
    chance = random.Random(1)
    before = 0
    for attempt in range(8):
        process = place.job(tmp_path / f"container-{attempt}")
        try:
            ready(process)
            later(lambda: (place.folder / "checkpoint").exists())
            threading.Event().wait(chance.uniform(0, 0.8))
        finally:
            kill(process)
        step = place.step()
        assert step >= before
        before = step
    assert before > 0


def test_what_is_saved_last_is_there_after_a_stop(place: Place, tmp_path: Path) -> None:
    process = place.job(tmp_path / "container")
    try:
        ready(process)
        later(lambda: (place.folder / "checkpoint").exists())
        process.terminate()
        assert process.stdout is not None
        assert process.stdout.readline() == b"None\n"
        assert process.wait(PATIENT) == 0
    finally:
        kill(process)
    local = tmp_path / "container" / "checkpoints"
    here = {p.name: p.read_bytes() for p in local.iterdir() if p.suffix != ".tmp"}
    assert {p.name: p.read_bytes() for p in place.folder.iterdir()} == here
    assert place.step() > 0


class Slow(LocalStore):
    """A store at 10 MB/s that needs 50 ms for each file, and notes each step that it holds."""

    def __init__(self, place: Place) -> None:
        super().__init__(str(place.folder))
        self.steps: list[int] = []
        self._place = place

    def put(self, key: str, source: int, size_bytes: int) -> None:
        threading.Event().wait(0.05 + size_bytes / 10e6)
        super().put(key, source, size_bytes)
        if key == "checkpoint":  # nothing else happens until this is done
            self.steps.append(self._place.step())


def test_a_store_that_is_slower_than_the_writer_is_never_torn(tmp_path: Path) -> None:
    """The writer has long deleted a checkpoint when its turn comes: it arrives all the same."""
    place = Place(tmp_path / "place", (tmp_path / "place").as_uri(), {})
    local = tmp_path / "local"
    local.mkdir()
    store = Slow(place)
    folder = Folder(
        what="checkpoints", path=str(local), uri=place.uri, setting="x", deletes=True, required=True
    )
    mirror = Mirror(folder, store)
    with subprocess.Popen((sys.executable, "-c", WRITER, local)) as process:
        mirror.start()
        mirror.hurry()
        try:
            later(lambda: len(store.steps) >= 5)
        finally:
            process.kill()
    mirror.end(float("inf"))
    mirror.wait(PATIENT)
    assert mirror.ended
    assert mirror.result().failure is None
    assert store.steps == sorted(store.steps)
    assert store.steps[-1] > len(store.steps)
    assert sorted(os.listdir(place.folder)) == sorted(
        name for name in os.listdir(local) if not name.endswith(".tmp")
    )
