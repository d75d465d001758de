"""Downloads many small objects, and one large one, with each program that can, and lists many.

Each way is a command of its own, from its start to its end, with the most memory that it had. The
server is the tests' own on the same machine, which answers ranges with status 206 as S3 does (and
rclone, and moto, with fewer bytes, for it is slow): the figures tell what a program costs, not how
fast a network is. Each way first downloads a few objects, to see
whether it can; ways that cannot, or are not installed, are left out.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.benchmarks.report import (
    Bar,
    Failed,
    Report,
    Row,
    at_most,
    measured,
    parser,
    take_part,
    timed,
    times,
)
from tests.benchmarks.servers import BUCKET, environ, listing, moto, program, rclone, store
from tests.benchmarks.ways import LISTS, WAYS

FEW = 20
KEYS = 1_000_000
LOOP, S5CMD = "boto3, 10 threads", "s5cmd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is downloaded from a server."""

    server: str
    url: str
    prefix: str
    title: str
    size_bytes: int


def command(name: str, url: str, prefix: str, folder: str, kind: str) -> list[str]:
    """Return the command of a way; raise Failed if it is not installed."""
    if name != S5CMD:
        return [sys.executable, "-m", "tests.benchmarks.ways", kind, name, url, prefix, folder]
    words = [program(S5CMD), "--log", "error", "--endpoint-url", url]
    uri = f"s3://{BUCKET}/{prefix}*"
    if kind == "list":
        return [*words, "ls", uri]
    return [*words, "cp", uri, os.path.join(folder, prefix)]


def cost(words: Sequence[str], url: str) -> tuple[float, float]:
    """Run a command; return its seconds and its MiB, or raise Failed with its last words."""
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/out", "wb") as out:
        peak = Path(folder, "peak")
        began = time.perf_counter()
        done = subprocess.run(
            [*timed(peak), *words],
            env={**os.environ, **environ(url)},
            stdout=out,
            stderr=subprocess.PIPE,
            check=False,
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise Failed(f"status {done.returncode}: {lines[-1][:200] if lines else 'no message'}")
        return seconds, int(peak.read_text()) / 1024


def download(name: str, shape: Shape, folder: str) -> tuple[float, float]:
    """Download into a new folder; return the seconds and the MiB.

    Small files stay until the end: in the five seconds after many were removed, ext4 looks at each
    of them for each file that is made, which took longer than the download.
    """
    os.makedirs(folder, exist_ok=True)
    into = tempfile.mkdtemp(dir=folder)
    os.sync()  # nobody waits for what another one wrote
    found = cost(command(name, shape.url, shape.prefix, into, "get"), shape.url)
    files = [path for path in Path(into).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if len(files) == 1:
        shutil.rmtree(into)
    if size != shape.size_bytes:
        raise Failed(f"it brought {size:,} bytes instead of {shape.size_bytes:,}")
    return found


def medians(
    costs: dict[str, list[tuple[float, ...]]], names: Sequence[str]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Return the seconds and the MiB by way, None for those left out."""

    def values(place: int) -> dict[str, float | None]:
        known = {n: statistics.median(c[place] for c in some) for n, some in costs.items() if some}
        return {name: known.get(name) for name in names}

    return values(0), values(1)


def add(
    report: Report,
    title: str,
    names: Sequence[str],
    costs: dict[str, list[tuple[float, ...]]],
    bars: Callable[[dict[str, float | None]], tuple[Bar, ...]],
    memory: float,
) -> None:
    """Add the rows of one shape: seconds and memory."""
    seconds, mebibytes = medians(costs, names)
    ours, most = seconds.pop("ours"), mebibytes.pop("ours")
    report.add(
        Row(work=title, unit="s", ours=ours, peers=seconds, bars=bars({**seconds, "ours": ours})),
        Row(
            work=f"{title}: peak memory",
            unit="MiB",
            ours=most,
            peers=mebibytes,
            bars=(at_most(most, memory, "MiB"),),
        ),
    )


def small_bars(seconds: dict[str, float | None]) -> tuple[Bar, ...]:
    """Return what is wanted of many small objects."""
    ours = seconds["ours"]
    return (
        times(ours, seconds[LOOP], 5, LOOP, rate=False),
        times(ours, seconds[S5CMD], 1 / 0.9, S5CMD, rate=False),
    )


def large_bars(seconds: dict[str, float | None]) -> tuple[Bar, ...]:
    """Return what is wanted of a large object."""
    ours = seconds["ours"]
    return (times(ours, seconds[S5CMD], 1 / 0.9, S5CMD, rate=False),)


def fill(folder: Path, prefix: str, count: int, size_bytes: int) -> None:
    """Write the objects of a shape."""
    (folder / BUCKET / prefix).mkdir(parents=True)
    for number in range(count):
        with open(folder / BUCKET / prefix / f"{number:06d}", "wb") as file:
            for start in range(0, size_bytes, 1 << 20):
                file.write(os.urandom(min(1 << 20, size_bytes - start)))


def compare(
    report: Report,
    server: str,
    serve: Callable[[Path], AbstractContextManager[str]],
    count: int,
    large_bytes: int,
    rounds: int,
) -> None:
    """Add the rows of one server."""
    names = (*(name for name in WAYS if name != "ours"), S5CMD, "ours")
    with tempfile.TemporaryDirectory() as root:
        buckets, out = Path(root, "buckets"), str(Path(root, "out"))
        fill(buckets, "few/", FEW, 10240)
        fill(buckets, "small/", count, 10240)
        fill(buckets, "large/", 1, large_bytes)
        with serve(buckets) as url:

            def shape(prefix: str, title: str, size_bytes: int) -> Shape:
                return Shape(
                    server=server, url=url, prefix=prefix, title=title, size_bytes=size_bytes
                )

            few = shape("few/", f"{server}: {FEW} objects", FEW * 10240)
            able = take_part(names, 1, lambda name: download(name, few, out), report, few.title)
            large_title = f"1 x {large_bytes >> 30} GiB" if large_bytes >> 30 else "1 x 64 MiB"
            for one, bars in (
                (shape("small/", f"{count:,} x 10 KiB", count * 10240), small_bars),
                (shape("large/", large_title, large_bytes), large_bars),
            ):
                title = f"{one.title} from S3 ({server})"
                run = partial(download, shape=one, folder=out)
                # The server makes the checksums of the objects when they are asked for first.
                take_part(("ours",), 1, run, report, title)
                costs = take_part(tuple(able), rounds, run, report, title)
                add(report, title, names, costs, bars if server == "store" else _none, 160)


def _none(_: dict[str, float | None]) -> tuple[Bar, ...]:
    return ()


def compare_listing(report: Report, rounds: int) -> None:
    """Add the rows of a listing; a program that takes minutes lists once."""
    names = (*(name for name in LISTS if name != "ours"), S5CMD, "ours")
    title = f"{KEYS:,} keys listed"
    with listing(KEYS) as url, tempfile.TemporaryDirectory() as folder:

        def run(name: str) -> tuple[float, float]:
            return cost(command(name, url, "train/", folder, "list"), url)

        costs = take_part(names, 1, run, report, title)
        quick = [name for name, some in costs.items() if some[0][0] < 30 or name == "ours"]
        for name, some in take_part(quick, rounds - 1, run, report, title).items():
            costs[name] += some
    add(report, title, names, costs, _none, 200)


def main() -> int:
    """Print the rows."""
    made = parser(__doc__ or "", rounds=3)
    made.add_argument("--servers", default="store,rclone,listing,moto", help="default: %(default)s")
    args = made.parse_args()

    def run(report: Report) -> None:
        chosen = args.servers.split(",")
        if "store" in chosen:
            compare(report, "store", store, 5000, 1 << 30, args.rounds)
        if "rclone" in chosen:
            compare(report, "rclone", rclone, 5000, 1 << 30, args.rounds)
        if "listing" in chosen:
            compare_listing(report, args.rounds)
        if "moto" in chosen:
            try:
                compare(report, "moto", moto, 500, 64 << 20, args.rounds)
            except (Failed, ImportError, AssertionError) as error:
                report.remark(f"moto is left out: {error}")

    return measured("objects", args, run)


if __name__ == "__main__":
    sys.exit(main())
