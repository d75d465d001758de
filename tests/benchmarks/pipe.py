"""Measures how fast a Pipe channel gives what a server has, beside a plain download of the same.

Both go through the same server of this machine, in turns; the reader of the FIFO is ``cat``. The
first byte is that of a data set of ``MANY`` objects, from opening the FIFO on.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sm_runtime.channels.objects import Origins
from sm_runtime.channels.pipe import Feeds
from sm_runtime.job.model import Channel, Cluster, Job, Paths, Source
from tests.benchmarks.report import Report, Row, at_most, measured, parser, take_part, times
from tests.benchmarks.servers import BUCKET, REGION, environ, store

SHAPES = {"1 x 1 GiB": (1, 1 << 30), "64 x 8 MiB": (64, 8 << 20), "5,000 x 10 KiB": (5000, 10240)}
MANY = 20_000


def fill(folder: Path, count: int, size_bytes: int) -> None:
    """Write the objects of a shape."""
    folder.mkdir(parents=True)
    for number in range(count):
        with open(folder / f"{number:06d}", "wb") as file:
            for start in range(0, size_bytes, 1 << 20):
                file.write(os.urandom(min(1 << 20, size_bytes - start)))


@contextmanager
def fed(folder: Path, uri: str, url: str) -> Iterator[str]:
    """Feed ``uri`` and yield the path of the first epoch."""
    source = Source(uri=uri)
    channel = Channel(name="train", path=f"{folder}/train", mode="Pipe", source=source)
    cluster = Cluster(current_host="algo-1", hosts=("algo-1",))
    job = Job(paths=Paths(str(folder)), cluster=cluster, channels=(channel,), region=REGION)
    feeds = Feeds(job, environ(url), print)
    feeds.start()
    try:
        yield f"{folder}/train_0"
    finally:
        feeds.close()


def download(folder: Path, uri: str, url: str) -> None:
    """Write the objects below ``uri`` to files."""
    with Origins(environ(url), REGION) as origins:
        origin = origins(uri)
        origin.fetch((blob, f"{folder}/{blob.key}") for blob in origin.list(uri))


def pipe(folder: Path, uri: str, url: str) -> None:
    """Read the objects below ``uri`` from a FIFO."""
    with fed(folder, uri, url) as path, open(os.devnull, "wb") as nothing:
        subprocess.run(("cat", path), stdout=nothing, check=True)


def first_byte(folder: Path, uri: str, url: str) -> float:
    """Return the seconds from opening a FIFO to its first byte."""
    with fed(folder, uri, url) as path:
        began = time.monotonic()
        with open(path, "rb", buffering=0) as stream:
            stream.read(1)
            return time.monotonic() - began


WAYS: dict[str, Callable[[Path, str, str], None]] = {"download": download, "pipe": pipe}


def compare(root: Path, url: str, report: Report, rounds: int) -> None:
    """Add the rows."""
    for name, (count, size_bytes) in SHAPES.items():
        uri = f"s3://{BUCKET}/{_folder(name)}/"

        def seconds(way: str, uri: str = uri, size_bytes: int = size_bytes) -> tuple[float]:
            folder = Path(tempfile.mkdtemp(dir=root))
            os.sync()  # nobody waits for what another one wrote
            began = time.monotonic()
            WAYS[way](folder, uri, url)
            took = time.monotonic() - began
            if size_bytes >= 1 << 20:  # many small files stay until the end; see objects.download
                shutil.rmtree(folder)
            return (took,)

        title = f"{name} from S3 (store) in Pipe mode"
        costs = take_part(tuple(WAYS), rounds + 1, seconds, report, title)  # the first warms up
        rates = {
            way: count * size_bytes / 1e6 / statistics.median(cost[0] for cost in some[1:])
            for way, some in costs.items()
        }
        plain, piped = rates.get("download"), rates.get("pipe")
        bar = times(piped, plain, 0.9, "download", rate=True)
        bare = {"plain download": plain}
        report.add(
            Row(work=title, unit="MB/s", ours=piped, bare=bare, bars=(bar,), more_is_better=True)
        )

    def first(_: str) -> tuple[float]:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            return (first_byte(Path(folder), f"s3://{BUCKET}/many/", url),)

    title = f"first byte of {MANY:,} objects in Pipe mode"
    found = take_part(("pipe",), rounds, first, report, title).get("pipe")
    took = statistics.median(cost[0] for cost in found) if found else None
    report.add(Row(work=title, unit="s", ours=took, bars=(at_most(took, 0.3, "s"),)))


def _folder(name: str) -> str:
    return name.replace(" ", "").replace(",", "")


def main() -> int:
    """Print the lines of the table."""
    args = parser(__doc__ or "", rounds=5).parse_args()

    def run(report: Report) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name, (count, size_bytes) in {**SHAPES, "many": (MANY, 1)}.items():
                fill(root / "buckets" / BUCKET / _folder(name), count, size_bytes)
            with store(root / "buckets") as url:
                compare(root, url, report, args.rounds)

    return measured("pipe", args, run)


if __name__ == "__main__":
    sys.exit(main())
