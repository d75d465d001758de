"""Reads TFRecords from a FIFO that is fed at full speed with PipeModeDataset, and otherwise.

Beside it: TensorFlow's own TFRecordDataset on a file, a plain generator over the FIFO and the C++
op, with ``--op`` (the folder of an installed ``sagemaker_tensorflow`` that fits this TensorFlow).
All run in turns, so that a busy moment hits each of them; batches of about 1 MiB are made. The
speed is that from the first batch on; what comes before it is told in milliseconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

SIZES = {"1 KiB": 2**10, "100 KiB": 100 * 2**10}
OURS, FILE, GENERATOR, OP = (
    "PipeModeDataset", "TFRecordDataset on a file", "a generator", "C++ op",
)  # fmt: skip
SLOW = {GENERATOR: 10}
"""What gets so many times less to read."""


def write_records(path: str, size_bytes: int, total_bytes: int) -> None:
    """Write TFRecords of random bytes."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(path) as writer:
        for _ in range(total_bytes // size_bytes):
            writer.write(os.urandom(size_bytes))


class Channel:
    """A Pipe channel in ``folder`` whose next epoch ``cat`` feeds."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        with open(os.path.join(folder, "inputdataconfig.json"), "w") as file:
            json.dump({"train": {"TrainingInputMode": "Pipe"}}, file)

    def feed(self, source: str) -> subprocess.Popen[bytes]:
        """Make the FIFO of epoch 0 anew, and feed it."""
        shutil.rmtree(os.path.join(self.folder, "state"), ignore_errors=True)
        fifo = os.path.join(self.folder, "train_0")
        if os.path.exists(fifo):
            os.unlink(fifo)
        os.mkfifo(fifo)
        return subprocess.Popen(("sh", "-c", 'exec cat "$1" >"$2"', "sh", source, fifo))

    def dataset(self, kind: Any) -> Any:
        """Return the channel as a dataset of ``kind``."""
        state, folder = os.path.join(self.folder, "state"), self.folder
        return kind("train", "TFRecord", state_dir=state, pipe_dir=folder, config_dir=folder)

    def generated(self) -> Any:
        """Return the channel as a dataset from a plain generator, which checks no CRC."""
        import tensorflow as tf

        def records() -> Iterator[bytes]:
            with open(os.path.join(self.folder, "train_0"), "rb") as fifo:
                while head := fifo.read(12):
                    yield fifo.read(struct.unpack_from("<Q", head)[0] + 4)[:-4]

        return tf.data.Dataset.from_generator(
            records, output_signature=tf.TensorSpec([], tf.string)
        )


def cpp_op(folder: str) -> Any:
    """Return the PipeModeDataset of the package in ``folder``, which has our package's name."""
    path = os.path.join(folder, "pipemode.py")
    spec = importlib.util.spec_from_file_location("sagemaker_tensorflow_op", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PipeModeDataset


def measure(dataset: Any, size_bytes: int) -> tuple[float, float]:
    """Read all; return the millions of bytes of records per second, and seconds to the first."""
    began = time.perf_counter()
    batches = iter(dataset.batch(max(1, 2**20 // size_bytes)))
    next(batches)
    first, read = time.perf_counter(), 0
    for batch in batches:
        read += int(batch.shape[0]) * size_bytes
    return read / (time.perf_counter() - first) / 1e6, first - began


def contenders(channel: Channel, source: str, op: str | None) -> dict[str, Callable[[], Any]]:
    """Return by name what makes a dataset."""
    import tensorflow as tf

    from sagemaker_tensorflow import PipeModeDataset

    ways: dict[str, Callable[[], Any]] = {
        FILE: lambda: tf.data.TFRecordDataset(source),
        GENERATOR: channel.generated,
    }
    if op:
        kind = cpp_op(op)
        ways[OP] = lambda: channel.dataset(kind)
    ways[OURS] = lambda: channel.dataset(PipeModeDataset)
    return ways


def compare(folder: str, args: argparse.Namespace) -> str:
    """Return the table: medians, and how they compare with ours."""
    import tensorflow as tf

    channel, source = Channel(folder), os.path.join(folder, "source")
    ways = contenders(channel, source, args.op)
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for label, size_bytes in SIZES.items():
        records = args.megabytes * 10**6 // size_bytes
        write_records(source, size_bytes, records * size_bytes)
        for _ in range(args.rounds):
            for name, make in ways.items():
                with channel.feed(source) as feeder:
                    dataset = make().take(records // SLOW.get(name, 1))
                    if name == FILE:
                        feeder.terminate()
                    found.setdefault((name, label), []).append(measure(dataset, size_bytes))
    speeds = {key: statistics.median(one[0] for one in values) for key, values in found.items()}
    waits = {
        name: statistics.median(one[1] for s in SIZES for one in found[name, s]) for name in ways
    }
    lines = [
        f"TensorFlow {tf.__version__}, Python {sys.version.split()[0]}, {args.rounds} rounds,"
        f" load {os.getloadavg()[0]:.1f}",
        "",
        "| " + " | ".join(["TFRecords", *(f"{s}: MB/s | ours is" for s in SIZES)]) + " |",
        "| --- " * (1 + 2 * len(SIZES)) + "|",
    ]
    for name in ways:
        cells = [
            f"{speeds[name, s]:.0f} | {speeds[OURS, s] / speeds[name, s]:.2f} x" for s in SIZES
        ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    firsts = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in waits.items())
    return "\n".join([*lines, "", f"To the first batch: {firsts}."])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ours", help="not used: for scripts/bench")
    parser.add_argument("--peer", help="not used: for scripts/bench")
    parser.add_argument("--op", help="folder of an installed sagemaker_tensorflow")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--megabytes", type=int, default=1000, help="default: %(default)s")
    args = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        print(f"\n{compare(folder, args)}", flush=True)


if __name__ == "__main__":
    main()
