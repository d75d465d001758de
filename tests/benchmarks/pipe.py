"""Measures how fast a Pipe channel gives what a server has, beside a plain download of the same.

Both go through the same server of this machine; the reader of the FIFO is ``cat``. The first byte
is that of a data set of ``MANY`` objects.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sm_runtime.channels.pipe import Feeds
from sm_runtime.channels.selection import Origins
from sm_runtime.model import Channel, Cluster, Job, Source
from sm_runtime.paths import Paths
from tests.harness import eventually
from tests.s3 import ACCESS_KEY, CREDENTIALS, SECRET_KEY, free_port

SHAPES = {"1 x 1 GiB": (1, 1 << 30), "64 x 8 MiB": (64, 8 << 20), "5,000 x 10 KiB": (5000, 10240)}
MANY = 20_000


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve ``folder``; with the checksum that rclone makes of each object only it is measured."""
    port = free_port()
    command = ("rclone", "serve", "s3", "--etag-hash", "", "--vfs-cache-mode", "off")
    keys = ("--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}")
    quiet = subprocess.DEVNULL
    with subprocess.Popen((*command, *keys, str(folder)), stdout=quiet, stderr=quiet) as server:
        try:
            with Origins(environ(f"http://127.0.0.1:{port}"), "") as origins:
                eventually(lambda: _answers(origins), "a server", 30)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _answers(origins: Origins) -> bool:
    try:
        return list(origins("s3://b/").list("s3://b/none")) == []
    except Exception:
        return False


def environ(url: str) -> dict[str, str]:
    """Return the variables that lead to a server."""
    return {**CREDENTIALS, "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL_S3": url}


@contextmanager
def fed(folder: Path, uri: str, url: str) -> Iterator[str]:
    """Feed ``uri`` and yield the path of the first epoch."""
    source = Source(uri=uri)
    channel = Channel(name="train", path=f"{folder}/train", mode="Pipe", source=source)
    cluster = Cluster(current_host="algo-1", hosts=("algo-1",))
    job = Job(paths=Paths(str(folder)), cluster=cluster, channels=(channel,))
    feeds = Feeds(job, environ(url), print)
    feeds.start()
    try:
        yield f"{folder}/train_0"
    finally:
        feeds.close()


def download(folder: Path, uri: str, url: str) -> None:
    """Write the objects below ``uri`` to files."""
    with Origins(environ(url), "") as origins:
        origin = origins(uri)
        origin.fetch((blob, f"{folder}/{blob.key}") for blob in origin.list(uri))


def pipe(folder: Path, uri: str, url: str) -> None:
    """Read the objects below ``uri`` from a FIFO."""
    with fed(folder, uri, url) as path, open(os.devnull, "wb") as nothing:
        subprocess.run(("cat", path), stdout=nothing, check=True)


def first_byte(uri: str, url: str) -> float:
    """Return the seconds from opening a FIFO to its first byte."""
    with tempfile.TemporaryDirectory() as folder, fed(Path(folder), uri, url) as path:
        began = time.monotonic()
        with open(path, "rb", buffering=0) as stream:
            stream.read(1)
            return time.monotonic() - began


def seconds(run: Callable[[Path, str, str], None], uri: str, url: str) -> float:
    """Return how long ``run`` takes, in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run(Path(folder), uri, url)
        return time.monotonic() - began


def main() -> None:
    """Print the lines of the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    root = Path(tempfile.mkdtemp())
    try:
        for name, (count, size) in {**SHAPES, "many": (MANY, 1)}.items():
            folder = root / "b" / name.replace(" ", "").replace(",", "")
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:06d}").write_bytes(os.urandom(size))
        with serving(root) as url:
            print("| objects | download, MB/s | Pipe mode, MB/s | ratio |\n|---|---|---|---|")
            for name, (count, size) in SHAPES.items():
                uri = f"s3://b/{name.replace(' ', '').replace(',', '')}/"
                took = [
                    (seconds(download, uri, url), seconds(pipe, uri, url)) for _ in range(rounds)
                ]
                plain, piped = (
                    count * size / statistics.median(t) / 1e6 for t in zip(*took, strict=True)
                )
                print(f"| {name} | {plain:.0f} | {piped:.0f} | {piped / plain:.2f} |", flush=True)
            first = statistics.median(first_byte("s3://b/many/", url) for _ in range(rounds))
            print(f"\nfirst of {MANY:,} objects, from opening the FIFO: {first * 1000:.0f} ms")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
