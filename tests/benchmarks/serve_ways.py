"""What the benchmark of ``serve`` compares: our server, a Flask application, a bare process."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import load
from tests.benchmarks.load import Body
from tests.benchmarks.report import Failed
from tests.harness import Base, eventually
from tests.s3 import free_port
from tests.serve import Serving

JSON, NPY = "application/json", "application/x-npy"
BARE = """
import json, sys, time
import numpy as np
import tensorflow as tf
model, data = sys.argv[1:]
predict = tf.saved_model.load(model).signatures["serving_default"]
(name,) = predict.structured_input_signature[1]
images = np.load(data)
def call(rows):
    (answer,) = predict(**{name: tf.constant(images[:rows])}).values()
    return answer.numpy()
call(1)
print("ready", flush=True)
for line in sys.stdin:
    rows, count = json.loads(line)
    times = []
    for _ in range(count):
        began = time.perf_counter()
        call(rows)
        times.append(time.perf_counter() - began)
    print(json.dumps(sorted(times)[count // 2]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that is loaded: ours, or the application of the peers."""

    pid: int
    port: int
    ready_seconds: float
    stop: Callable[[], None]
    serving: Serving | None = None


class Bare:
    """The model in a plain process, which calls its signature and no more."""

    def __init__(self, model: Path, images: Path) -> None:
        began = time.monotonic()
        self._process = subprocess.Popen(
            (sys.executable, "-c", BARE, str(model / "1"), str(images)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
        self._read()
        self.ready_seconds = time.monotonic() - began

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise Failed("the bare process has ended")
        return line

    def call(self, rows: int, count: int) -> float:
        """Return the median of so many calls, in seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps((rows, count)) + "\n")
        self._process.stdin.flush()
        return float(self._read())

    @property
    def mebibytes(self) -> float:
        """Its memory."""
        return mebibytes(self._process.pid)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def mebibytes(pid: int) -> float:
    """Return the resident memory of a process and all below it.

    What several of them share is counted once for each, so that other programs on this machine
    that use the same files change nothing.
    """
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        status = Path(f"/proc/{one}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+)", status)
        total += int(match[1]) if match else 0
        for thread in Path(f"/proc/{one}/task").iterdir():
            todo += map(int, (thread / "children").read_text().split())
    return total / 1024


def ours(folder: Path, model: Path, settings: Mapping[str, str]) -> Served:
    """Start the command ``serve`` on a model."""
    base = Base(folder)
    base.path("model").symlink_to(model)
    began = time.monotonic()
    serving = Serving(base, **settings).wait_until_ready()

    def stop() -> None:
        serving.running.process.kill()
        serving.running.wait()

    return Served(serving.running.pid, serving.port, time.monotonic() - began, stop, serving)


def flask(model: Path) -> Served:
    """Start the application that people write, with one worker and eight threads."""
    port = free_port()
    words = ("--workers", "1", "--threads", "8", "--log-level", "error")
    began = time.monotonic()
    process = subprocess.Popen(
        (
            *(sys.executable, "-m", "gunicorn", *words, "--bind", f"{load.HOST}:{port}"),
            "tests.benchmarks.flask_app:app",
        ),
        env={**os.environ, "MODEL": str(model / "1"), "TF_CPP_MIN_LOG_LEVEL": "2"},
    )

    def stop() -> None:
        process.terminate()
        process.wait(30)

    try:
        eventually(lambda: _answers(port) or process.poll() is not None, "Flask answers", 60)
        if process.poll() is not None:
            raise Failed("gunicorn has ended: are gunicorn and Flask installed?")
    except BaseException:
        stop()
        raise
    return Served(process.pid, port, time.monotonic() - began, stop)


def _answers(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection(load.HOST, port, timeout=5)
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except OSError:
        return False


def body(images: Any, kind: str) -> Body:
    """Return images as a body; the pixels of JSON are whole numbers, as they are in the data."""
    if kind == NPY:
        buffer = io.BytesIO()
        np.save(buffer, images)
        return Body(kind=kind, data=buffer.getvalue())
    return Body(kind=kind, data=json.dumps({"instances": images.astype(int).tolist()}).encode())


def asked(port: int, content: Body, count: int) -> float:
    """Return the median of so many requests on one connection, in seconds."""
    connection = http.client.HTTPConnection(load.HOST, port, timeout=60)
    headers = {"content-type": content.kind, "accept": content.kind}
    found = []
    for _ in range(count):
        began = time.perf_counter()
        connection.request("POST", "/invocations", content.data, headers)
        response = connection.getresponse()
        answer = response.read()
        found.append(time.perf_counter() - began)
        if response.status != 200:
            raise Failed(f"status {response.status}: {answer[:200]!r}")
    connection.close()
    return statistics.median(found)
