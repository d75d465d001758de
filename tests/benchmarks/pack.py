"""Packs 400 MB of float32 weights with `tar czf`, with pigz, and as the runtime does it.

sagemaker-training packs nothing, so it is not among them; pigz and isal are left out where they
are not installed. All run in turns, so that a busy moment hits each of them.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from sm_runtime.output import tar
from sm_runtime.output import tar as pack
from sm_runtime.storage import open_store
from tests.benchmarks.report import Report, Row, measured, parser, take_part

VALUES = 100_000_000


def write_weights(path: str) -> None:
    """Write what a trained network's weights look like: normal(0, 0.05)."""
    import numpy

    generator = numpy.random.default_rng(1)
    with open(path, "wb") as file:
        for _ in range(10):
            file.write(generator.normal(0, 0.05, VALUES // 10).astype("<f4").tobytes())


def ours(model: str, folder: str, *, with_isal: bool) -> None:
    """Pack as the runtime does it, synced and renamed at the end."""
    threads = len(os.sched_getaffinity(0))
    with (
        open_store(f"file://{folder}").stream("out.tar.gz") as sink,
        tar.GzipWriter(sink, threads=threads, with_isal=with_isal) as writer,
    ):
        pack.write_tar(model, writer, print)
        writer.close()


def ways_of(folder: str, model: str, out: str) -> dict[str, Callable[[], object]]:
    """Return the ways that there are on this machine."""
    tar = ("-cf", out, "-C", model, ".")
    ways: dict[str, Callable[[], object]] = {
        "`tar czf`": lambda: subprocess.run(["tar", "-z", *tar], check=True),
    }
    if shutil.which("pigz"):
        ways["tar and pigz"] = lambda: subprocess.run(["tar", "-Ipigz", *tar], check=True)
    ways["ours"] = lambda: ours(model, folder, with_isal=False)
    if tar.has_isal():
        ways["ours with isal"] = lambda: ours(model, folder, with_isal=True)
    return ways


def compare(folder: str, rounds: int, report: Report) -> None:
    """Add the rows: seconds (median) and size of each way."""
    model, out = os.path.join(folder, "model"), os.path.join(folder, "out.tar.gz")
    os.makedirs(model)
    write_weights(os.path.join(model, "weights"))
    ways = ways_of(folder, model, out)

    def run(name: str) -> tuple[float, float]:
        if os.path.exists(out):
            os.unlink(out)
        os.sync()  # nobody waits for what another one wrote
        began = time.perf_counter()
        ways[name]()
        return time.perf_counter() - began, os.path.getsize(out)

    costs = take_part(tuple(ways), rounds, run, report, "packing")
    for place, (measure, unit, each) in enumerate((("time", "s", 1.0), ("size", "MB", 1e-6))):
        medians: dict[str, float | None] = dict.fromkeys(("`tar czf`", "tar and pigz", *ways))
        for name, some in costs.items():
            medians[name] = statistics.median(cost[place] for cost in some) * each
        peers = {name: value for name, value in medians.items() if not name.startswith("ours")}
        for name in (name for name in ways if name.startswith("ours")):
            extra = name.removeprefix("ours").replace("isal", "`fast` (isal)")
            work = f"`model.tar.gz` of 400 MB of float32{extra and ',' + extra}: {measure}"
            report.add(Row(work=work, unit=unit, ours=medians[name], peers=peers))
    for name, program in (("tar and pigz", "pigz"), ("ours with isal", "isal")):
        if name not in ways:
            report.remark(f"packing: {program} is not installed")


def main() -> int:
    """Print the rows."""
    args = parser(__doc__ or "", rounds=3).parse_args()

    def run(report: Report) -> None:
        with tempfile.TemporaryDirectory() as folder:
            compare(folder, args.rounds, report)

    return measured("pack", args, run)


if __name__ == "__main__":
    sys.exit(main())
