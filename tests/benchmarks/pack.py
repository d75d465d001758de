"""Packs 400 MB of float32 weights with `tar czf`, with pigz, and as the runtime does it.

sagemaker-training packs nothing, so it is not among them; pigz and isal are left out where they
are not installed. All run in turns, so that a busy moment hits each of them.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

from sm_runtime import deflate, pack
from sm_runtime.storage import open_store
from tests.benchmarks.contenders import options

VALUES = 100_000_000


def write_weights(path: str) -> None:
    """Write what a trained network's weights look like: normal(0, 0.05)."""
    import numpy

    generator = numpy.random.default_rng(1)
    with open(path, "wb") as file:
        for _ in range(10):
            file.write(generator.normal(0, 0.05, VALUES // 10).astype("<f4").tobytes())


def ours(model: str, folder: str, literals: Callable[[memoryview], list[bytes]] | None) -> None:
    """Pack as the runtime does it, synced and renamed at the end."""
    threads = len(os.sched_getaffinity(0))
    with (
        open_store(f"file://{folder}").stream("out.tar.gz") as sink,
        deflate.GzipWriter(sink, threads=threads, literals=literals) as writer,
    ):
        pack.write_tar(model, writer, print)
        writer.close()


def compare(folder: str, rounds: int) -> str:
    """Return the table: seconds (median) and size of each way."""
    model, out = os.path.join(folder, "model"), os.path.join(folder, "out.tar.gz")
    os.makedirs(model)
    write_weights(os.path.join(model, "weights"))
    tar = ("-cf", out, "-C", model, ".")
    ways: dict[str, Callable[[], object]] = {
        "`tar czf`": lambda: subprocess.run(["tar", "-z", *tar], check=True),
    }
    if shutil.which("pigz"):
        ways["tar and pigz"] = lambda: subprocess.run(["tar", "-Ipigz", *tar], check=True)
    ways["ours"] = lambda: ours(model, folder, deflate.zlib_literals)
    if deflate.fastest_literals() is not deflate.zlib_literals:
        ways["ours with isal"] = lambda: ours(model, folder, None)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    sizes: dict[str, int] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            if os.path.exists(out):
                os.unlink(out)
            os.sync()  # nobody waits for what another one wrote
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
            sizes[name] = os.path.getsize(out)
    base = statistics.median(seconds["`tar czf`"])
    lines = ["| 400 MB of weights | time | as fast as tar | size | of tar's |", "| --- " * 5 + "|"]
    for name, times in seconds.items():
        median = statistics.median(times)
        lines.append(
            f"| {name} | {median:.2f} s | {base / median:.1f} x | {sizes[name] / 1e6:.1f} MB"
            f" | {sizes[name] / sizes['`tar czf`']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    args = options((__doc__ or "").splitlines()[0], rounds=3)
    with tempfile.TemporaryDirectory() as folder:
        print(f"\n{compare(folder, args.rounds)}", flush=True)


if __name__ == "__main__":
    main()
