"""Runs the real command on a base folder that a test describes as a dict of files."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import sm_runtime

RUNTIME = (sys.executable, "-m", "sm_runtime")
PACKAGE = Path(sm_runtime.__file__).parent
"""The package under test, as it is installed."""
REQUIRED = ("packaging", "psutil")
"""What it requires."""


def eventually(condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    """Poll until ``condition()`` is true and return its value."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        pause.wait(0.01)
    return value


def package_alone(folder: Path) -> Path:
    """Return a folder, for PYTHONPATH, that holds the package, what it requires, and no more."""
    beside = folder / "runtime"
    beside.mkdir(exist_ok=True)
    for place in (PACKAGE, *map(package_folder, REQUIRED)):
        if not (beside / place.name).exists():
            (beside / place.name).symlink_to(place)
    return beside


def package_folder(name: str) -> Path:
    """Return the folder of a package that is installed."""
    spec = importlib.util.find_spec(name)
    assert spec and spec.origin
    return Path(spec.origin).parent


@dataclass
class Result:
    status: int
    out: bytes
    err: bytes
    seconds: float

    @property
    def log(self) -> str:
        return self.err.decode("utf-8", "replace")


class Running:
    """The command while it runs; ``ready()`` waits for a line of its standard output.

    What a test that failed has left running is killed at its end.
    """

    started_by_test: ClassVar[list[Running]] = []

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.started_by_test.append(self)
        self.pid = process.pid
        self.started = time.monotonic()
        self.out = bytearray()
        self.err = bytearray()
        self._threads = [
            threading.Thread(target=self._read, args=args, daemon=True)
            for args in ((process.stdout, self.out), (process.stderr, self.err))
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _read(stream: Any, into: bytearray) -> None:
        while data := os.read(stream.fileno(), 65536):
            into += data

    def ready(self, text: bytes = b"ready") -> None:
        eventually(lambda: text in self.out or self.process.poll() is not None, f"{text!r}")
        assert text in self.out, bytes(self.err)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 30.0) -> Result:
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for thread in self._threads:
            thread.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        if status < 0:  # a shell's view
            status = 128 - status
        seconds = time.monotonic() - self.started
        return Result(status, bytes(self.out), bytes(self.err), seconds)


class Base:
    """A base folder (``/opt/ml``) for one job."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True, exist_ok=True)
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/root"),
            "SAGEMAKER_BASE_DIR": str(root),
            "AWS_EC2_METADATA_DISABLED": "true",
            "LANG": "C.UTF-8",
        }

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def write(self, name: str, content: str | bytes | Any) -> Path:
        """Write a file: text, bytes, or anything else as JSON."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
        return path

    def script(self, text: str, name: str = "train.py") -> Base:
        """Write the script and make it the entry point."""
        self.write(f"code/{name}", text)
        self.environ["SAGEMAKER_PROGRAM"] = name
        return self

    def hyperparameters(self, **values: Any) -> Base:
        self.write("input/config/hyperparameters.json", values)
        return self

    def start(
        self,
        *arguments: str,
        prefix: tuple[str, ...] = (),
        command: tuple[str, ...] = (*RUNTIME, "train"),
        **environ: str,
    ) -> Running:
        process = subprocess.Popen(
            [*prefix, *command, *arguments],
            env={**self.environ, **environ},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return Running(process)

    def run(self, *arguments: str, seconds: float = 60.0, **options: Any) -> Result:
        return self.start(*arguments, **options).wait(seconds)

    def failure(self) -> str:
        return self.path("output/failure").read_text()

    def failure_json(self) -> Mapping[str, Any]:
        document: Mapping[str, Any] = json.loads(self.path("output/data/failure.json").read_text())
        return document


def at_opt_ml(folder: Path) -> tuple[str, ...]:
    """Return a prefix that has a command see ``folder`` as ``/opt/ml`` (as root).

    In a mount namespace of its own; ``/opt/ml`` itself is left: to remove it would unmount what
    another test has mounted there.
    """
    script = 'mkdir -p /opt/ml && mount --bind "$1" /opt/ml && shift && exec "$@"'
    return ("unshare", "-m", "sh", "-ec", script, "sh", str(folder))


@contextmanager
def control_group(controller: str, v1: Mapping[str, str], v2: Mapping[str, str]) -> Iterator[Any]:
    """Yield a prefix that runs a command in a cgroup of its own, with these settings (as root)."""
    root = Path("/sys/fs/cgroup")
    hybrid = (root / controller).is_dir()
    group = (root / controller if hybrid else root) / f"sm-runtime-test-{os.getpid()}"
    group.mkdir()
    if not hybrid:
        (root / "cgroup.subtree_control").write_text(f"+{controller}")
    for name, value in (v1 if hybrid else v2).items():
        (group / name).write_text(value)
    yield ("sh", "-c", f'echo $$ > "{group}/cgroup.procs"; exec "$@"', "sh")
    eventually(lambda: not (group / "cgroup.procs").read_text(), "the cgroup is empty")
    group.rmdir()


def processes_with(marker: str) -> list[int]:
    """Return the living processes whose command line or environment holds ``marker``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if marker.encode() in text and state not in "ZX":
                found.append(int(entry.name))
    return found
