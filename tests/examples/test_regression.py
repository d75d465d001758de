"""Trains the GradientTape example on scikit-learn's diabetes data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.examples.example import Example, metric, python
from tests.harness import Result

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]

SERVE = """
import sys
import numpy as np
import tensorflow as tf
model, data = sys.argv[1:]
serve = tf.saved_model.load(model).signatures["serving_default"]
table = np.loadtxt(data, delimiter=",", skiprows=1, dtype="float32")
answers = serve(features=tf.constant(table[:, :-1]))["predictions"].numpy()
print(float(np.sqrt(np.mean((answers - table[:, -1]) ** 2))))
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return Example("regression", tmp_path_factory.mktemp("regression"))


@pytest.fixture(scope="module")
def result(example: Example) -> Result:
    return example.train()


def test_beats_the_mean_by_a_fifth(result: Result) -> None:
    assert result.status == 0, result.log
    output = result.out.decode()
    assert metric("val_rmse", output) < 0.8 * metric("baseline_rmse", output)


def test_a_fresh_process_serves_the_saved_model(
    example: Example, result: Result, tmp_path: Path
) -> None:
    assert result.status == 0, result.log
    model = example.unpacked("model.tar.gz", tmp_path)
    assert (model / "1" / "saved_model.pb").is_file()
    rmse = python(SERVE, model / "1", example.base.path("input/data/validation/diabetes.csv"))
    assert float(rmse) == pytest.approx(metric("val_rmse", result.out.decode()), abs=0.01)


def test_the_metrics_are_saved_as_output(example: Example, result: Result, tmp_path: Path) -> None:
    assert result.status == 0, result.log
    folder = example.unpacked("output.tar.gz", tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["val_rmse"] == pytest.approx(metric("val_rmse", result.out.decode()), abs=0.001)
