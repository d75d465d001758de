"""Trains the Keras example on the real Fashion-MNIST."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.examples.example import FASHION_MNIST, Example, metric, python
from tests.harness import Result, eventually

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]

SERVE = """
import sys
import numpy as np
import tensorflow as tf
model, data = sys.argv[1:]
serve = tf.saved_model.load(model).signatures["serving_default"]
with np.load(data) as arrays:
    images, labels = arrays["images"][..., np.newaxis], arrays["labels"]
answers = serve(images=tf.constant(images, tf.float32))["output_0"].numpy()
print((answers.argmax(axis=1) == labels).mean())
"""


def fashion_mnist(folder: Path) -> Example:
    source = next(path for path in FASHION_MNIST if path.is_dir())
    return Example("fashion_mnist", folder, "--source", str(source))


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return fashion_mnist(tmp_path_factory.mktemp("fashion mnist"))


@pytest.fixture(scope="module")
def result(example: Example) -> Result:
    return example.train()


def test_learns_to_tell_clothes_apart(result: Result) -> None:
    assert result.status == 0, result.log
    assert metric("val_accuracy", result.out.decode()) >= 0.85


def test_a_fresh_process_serves_the_saved_model(
    example: Example, result: Result, tmp_path: Path
) -> None:
    assert result.status == 0, result.log
    model = example.unpacked("model.tar.gz", tmp_path)
    assert (model / "1" / "saved_model.pb").is_file()
    accuracy = python(SERVE, model / "1", example.base.path("input/data/validation/data.npz"))
    assert float(accuracy) == pytest.approx(metric("val_accuracy", result.out.decode()), abs=0.001)


def test_the_history_is_saved_as_output(example: Example, result: Result, tmp_path: Path) -> None:
    assert result.status == 0, result.log
    folder = example.unpacked("output.tar.gz", tmp_path)
    history = json.loads((folder / "history.json").read_text())
    assert len(history["val_accuracy"]) == int(example.read("hyperparameters.json")["epochs"])


def test_a_stopped_job_succeeds_with_the_model_as_it_was(tmp_path: Path) -> None:
    example = fashion_mnist(tmp_path)
    example.set(epochs="1000")
    running = example.base.start()
    eventually(
        lambda: b"Epoch 2/" in running.out or running.process.poll() is not None, "epoch 2", 120
    )
    running.send(signal.SIGTERM)
    result = running.wait(90)
    assert result.status == 0, result.log
    assert (example.unpacked("model.tar.gz", tmp_path / "model") / "1/saved_model.pb").is_file()
