"""Uploads 400 MB of float32 weights as `model.tar.gz`: packed first and then sent, and as we do it.

The first way is what one writes by hand: `tar czf`, then boto3's `upload_file` with its defaults.
Both send to the same server on this machine, in turns. "Extra disk" is the most that the archive
and whatever else is not the model took on the job's side, looked at 50 times a second.
"""

from __future__ import annotations

import os
import stat
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from sm_runtime import artifacts
from sm_runtime.model import Cluster, Job, Output
from sm_runtime.paths import Paths
from tests.benchmarks.contenders import options
from tests.benchmarks.pack import write_weights
from tests.s3 import CREDENTIALS, serving

LOOK_SECONDS = 0.02


class Disk:
    """Finds the most bytes that lie below ``folder`` or in deleted files of ours, in a thread."""

    def __init__(self, folder: Path) -> None:
        self.most_bytes = 0
        self._folder = folder
        self._before = self._used()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Disk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self.most_bytes = max(self.most_bytes, self._used() - self._before)

    def _used(self) -> int:
        used = 0
        for folder, _, files in os.walk(self._folder):
            used += sum(_blocks(os.path.join(folder, name), deleted=False) for name in files)
        numbers = os.listdir("/proc/self/fd")
        return used + sum(_blocks(f"/proc/self/fd/{number}", deleted=True) for number in numbers)


def _blocks(path: str, *, deleted: bool) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return 0
    counted = stat.S_ISREG(status.st_mode) and (status.st_nlink == 0) == deleted
    return status.st_blocks * 512 if counted else 0


def by_hand(base: Path, environ: Mapping[str, str]) -> None:
    """Pack with tar and gzip, then upload the archive."""
    archive = base / "model.tar.gz"
    subprocess.run(("tar", "-czf", archive, "-C", base / "model", "."), check=True)
    client = import_module("boto3").client(
        "s3",
        endpoint_url=environ["AWS_ENDPOINT_URL_S3"],
        region_name="us-east-1",
        aws_access_key_id=environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environ["AWS_SECRET_ACCESS_KEY"],
    )
    client.upload_file(str(archive), "bucket", "by-hand/output/model.tar.gz")
    archive.unlink()


def ours(base: Path, environ: Mapping[str, str], compression: str) -> None:
    """Save as a job does."""
    job = Job(
        paths=Paths(str(base)),
        cluster=Cluster(current_host="algo-1", hosts=("algo-1",)),
        managed=False,
        name=f"ours-{compression}",
        region="us-east-1",
        output=Output(uri="s3://bucket", compression=compression),
    )
    artifacts.save(job, environ=environ)


def compare(folder: Path, rounds: int) -> str:
    """Return the table: medians of the seconds, and the most extra disk."""
    base = folder / "ml"
    (base / "model").mkdir(parents=True)
    write_weights(str(base / "model" / "weights"))
    buckets = folder / "buckets"
    (buckets / "bucket").mkdir(parents=True)
    tempfile.tempdir = str(base)  # whatever is put into temporary files is seen, too
    seconds: dict[str, list[float]] = {}
    disk: dict[str, int] = {}
    with serving(buckets, is_fixed=True) as server:
        environ = {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": server.url, "AWS_REGION": "us-east-1"}
        ways: dict[str, Callable[[], None]] = {
            "`tar czf`, then boto3": lambda: by_hand(base, environ),
            "ours": lambda: ours(base, environ, "GZIP"),
            "ours, `CompressionType: NONE`": lambda: ours(base, environ, "NONE"),
        }
        for _ in range(rounds):
            for name, way in ways.items():
                os.sync()  # nobody waits for what another one wrote
                with Disk(base) as watched:
                    began = time.perf_counter()
                    way()
                    seconds.setdefault(name, []).append(time.perf_counter() - began)
                disk[name] = max(disk.get(name, 0), watched.most_bytes)
    archives = buckets.joinpath("bucket").glob("*/output/model.tar.gz")
    subprocess.run(("gzip", "-t", *archives), check=True)
    base_seconds = statistics.median(seconds["`tar czf`, then boto3"])
    lines = ["| 400 MB of weights to S3 | time | as fast | extra disk |", "| --- " * 4 + "|"]
    for name, times in seconds.items():
        median = statistics.median(times)
        lines.append(
            f"| {name} | {median:.2f} s | {base_seconds / median:.1f} x"
            f" | {disk[name] / 2**20:.0f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    args = options((__doc__ or "").splitlines()[0], rounds=3)
    with tempfile.TemporaryDirectory() as folder:
        print(f"\n{compare(Path(folder), args.rounds)}", flush=True)


if __name__ == "__main__":
    main()
