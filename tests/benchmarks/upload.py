"""Uploads 400 MB of float32 weights as `model.tar.gz`: packed and then sent, and as we do it.

The first way is what one writes by hand: `tar czf`, then boto3's `upload_file` with its defaults.
All send to the same server on this machine, in turns. "Extra disk" is the most that the archive
and whatever else is not the model took on the job's side, looked at 50 times a second.
"""

from __future__ import annotations

import os
import stat
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path

from sm_runtime.job.model import Cluster, Job, Output, Paths
from sm_runtime.output import artifacts
from tests.benchmarks.pack import write_weights
from tests.benchmarks.report import (
    Bar,
    Failed,
    Report,
    Row,
    at_most,
    measured,
    parser,
    take_part,
    times,
)
from tests.benchmarks.servers import BUCKET, REGION, program, rclone
from tests.benchmarks.servers import environ as leading_to

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
        region_name=REGION,
        aws_access_key_id=environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environ["AWS_SECRET_ACCESS_KEY"],
    )
    client.upload_file(str(archive), BUCKET, "by-hand/output/model.tar.gz")
    archive.unlink()


def by_s5cmd(base: Path, environ: Mapping[str, str]) -> None:
    """Pack with tar and pigz, then upload with s5cmd: the best of what one writes by hand."""
    archive = base / "model.tar.gz"
    subprocess.run(("tar", "-Ipigz", "-cf", archive, "-C", base / "model", "."), check=True)
    url, uri = environ["AWS_ENDPOINT_URL_S3"], f"s3://{BUCKET}/s5cmd/output/model.tar.gz"
    subprocess.run(
        (program("s5cmd"), "--log", "error", "--endpoint-url", url, "cp", archive, uri),
        env={**os.environ, **environ},
        check=True,
    )
    archive.unlink()


def ours(base: Path, environ: Mapping[str, str], compression: str, *, isal: bool = False) -> None:
    """Save as a job does, with the extra ``fast`` or without."""
    if isal:
        sys.modules.pop("isal", None)
        try:
            import_module("isal.isal_zlib")
        except ImportError:
            raise Failed("isal is not installed") from None
    else:
        vars(sys)["modules"]["isal"] = None  # what makes an import of it fail
    job = Job(
        paths=Paths(str(base)),
        cluster=Cluster(current_host="algo-1", hosts=("algo-1",)),
        managed=False,
        name=f"ours-{compression}",
        region=REGION,
        output=Output(uri=f"s3://{BUCKET}", compression=compression),
    )
    artifacts.save(job, environ=environ)


WAYS: dict[str, Callable[[Path, Mapping[str, str]], None]] = {
    "`tar czf`, then boto3": by_hand,
    "tar and pigz, then s5cmd": by_s5cmd,
    "ours": partial(ours, compression="GZIP"),
    "ours, `fast` (isal)": partial(ours, compression="GZIP", isal=True),
    "ours, `CompressionType: NONE`": partial(ours, compression="NONE"),
}


def compare(folder: Path, rounds: int, report: Report) -> None:
    """Add the rows: medians of the seconds, and the most extra disk."""
    base = folder / "ml"
    (base / "model").mkdir(parents=True)
    write_weights(str(base / "model" / "weights"))
    bucket = folder / "buckets" / BUCKET
    bucket.mkdir(parents=True)
    tempfile.tempdir = str(base)  # whatever is put into temporary files is seen, too
    with rclone(bucket.parent) as url:

        def run(name: str) -> tuple[float, float]:
            os.sync()  # nobody waits for what another one wrote
            with Disk(base) as watched:
                began = time.perf_counter()
                WAYS[name](base, leading_to(url))
                seconds = time.perf_counter() - began
            return seconds, watched.most_bytes / 2**20

        costs = take_part(tuple(WAYS), rounds, run, report, "upload")
        archives = tuple(bucket.glob("*/output/model.tar.gz"))
        subprocess.run(("gzip", "-t", *archives), check=True)
    tempfile.tempdir = None
    add(report, costs)


def add(report: Report, costs: Mapping[str, list[tuple[float, ...]]]) -> None:
    """Add the rows of each of our ways."""
    by_others = [name for name in WAYS if not name.startswith("ours")]
    for what, unit, place in (("time", "s", 0), ("extra disk", "MiB", 1)):
        found: dict[str, float | None] = dict.fromkeys(WAYS)
        for name, some in costs.items():
            values = [cost[place] for cost in some]
            found[name] = max(values) if place else statistics.median(values)
        for name in (name for name in WAYS if name.startswith("ours")):
            value, hand = found[name], by_others[0]
            bars: tuple[Bar, ...] = (times(value, found[hand], 1, hand, rate=False),)
            if place:
                bars = (at_most(value, 100, "MiB"),)
            title = f"400 MB of float32 to S3{name.removeprefix('ours')}: {what}"
            peers = {name: found[name] for name in by_others}
            report.add(Row(work=title, unit=unit, ours=value, peers=peers, bars=bars))


def main() -> int:
    """Print the rows."""
    args = parser(__doc__ or "", rounds=3).parse_args()

    def run(report: Report) -> None:
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder), args.rounds, report)

    return measured("upload", args, run)


if __name__ == "__main__":
    sys.exit(main())
