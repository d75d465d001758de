"""Runs the Pipe mode example as its readme says: the data set in S3, the model back into S3."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.examples.example import FASHION_MNIST, ROOT, metric, python
from tests.s3 import free_port

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(400)]

PREDICT = """
import sys
import tensorflow as tf
sys.path.insert(0, sys.argv[3])
from train import parse
model = tf.saved_model.load(sys.argv[1])
records = tf.data.TFRecordDataset(sys.argv[2]).batch(1000).map(parse)
right = [
    tf.equal(tf.argmax(model.serve(tf.cast(images, tf.float32)), 1), labels)
    for images, labels in records
]
print("accuracy:", float(tf.reduce_mean(tf.cast(tf.concat(right, 0), tf.float32))))
"""


def run(folder: Path, source: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("sh", ROOT / "examples/pipe_mode/run.sh", folder, source),
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PORT": str(free_port()),
            "AWS_EC2_METADATA_DISABLED": "true",
        },
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_example_learns_from_s3_and_its_model_is_in_s3(tmp_path: Path) -> None:
    source = next(path for path in FASHION_MNIST if path.is_dir())
    # As on a folder that an example has been run in ten times.
    for channel, number in (("training", 30), ("validation", 33)):
        state = tmp_path / f"ml/pipe_state/.{channel}-pipe_mode-state"
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text(str(number))
    done = run(tmp_path, source)
    assert done.returncode == 0, done.stderr
    assert "s3://fashion-mnist/training/ -> " in done.stderr
    assert done.stdout.count("\nEpoch ") == 3
    assert metric("val_accuracy", done.stdout) >= 0.85
    bucket = tmp_path / "s3/fashion-mnist"
    sizes = [path.stat().st_size for path in bucket.glob("*/part-*.tfrecord")]
    assert len(sizes) == 7  # streamed: a copy of them is nowhere
    here = [path for path in (tmp_path / "ml").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in here) < min(sizes)
    with tarfile.open(bucket / "artifacts/fashion-mnist-pipe/output/model.tar.gz") as archive:
        archive.extractall(tmp_path / "model", filter="data")
    validation = bucket / "validation/part-0.tfrecord"
    said = python(PREDICT, tmp_path / "model/1", validation, ROOT / "examples/pipe_mode/source")
    assert metric("accuracy", said) == pytest.approx(metric("val_accuracy", done.stdout), abs=2e-3)
