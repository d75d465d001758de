"""Trains the examples of serving, serves what they leave, and asks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.example import ROOT, Example, metric
from tests.examples.test_fashion_mnist import fashion_mnist
from tests.harness import Base
from tests.serve import serving

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]

SERVING = ROOT / "examples/serving"


def script(path: Path, *words: object) -> str:
    done = subprocess.run(
        (sys.executable, path, *map(str, words)), stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Example:
    example = fashion_mnist(tmp_path_factory.mktemp("served"))
    example.set(epochs="1")
    result = example.train()
    assert result.status == 0, result.log
    return example


def test_the_model_is_as_good_as_when_it_was_trained(trained: Example, tmp_path: Path) -> None:
    base = Base(tmp_path / "ml")
    shutil.copytree(trained.base.path("model"), base.path("model"))
    data = trained.base.path("input/data/validation/data.npz")
    with serving(base) as server:
        url = f"http://127.0.0.1:{server.port}"
        said = script(SERVING / "fashion_mnist/client.py", "--url", url, "--count", 1000, data)
    json_line, npy_line = said.splitlines()
    assert metric("accuracy", json_line) > 0.8
    assert metric("accuracy", npy_line) == metric("accuracy", json_line)


def test_the_archive_is_served_as_the_job_left_it(trained: Example, tmp_path: Path) -> None:
    base = Base(tmp_path / "ml")
    base.path("model").mkdir()
    shutil.copy(trained.saved / "model.tar.gz", base.path("model"))
    with serving(base) as server:
        zeros = [[[0]] * 28] * 28
        (row,) = server.predict({"instances": [zeros]})["predictions"]
    assert sum(row) == pytest.approx(1, abs=1e-5)


def test_handlers_make_a_label_of_an_image(trained: Example, tmp_path: Path) -> None:
    base = Base(tmp_path / "ml")
    shutil.copytree(trained.base.path("model"), base.path("model"))
    shutil.copytree(SERVING / "handlers/code", base.path("model/code"))
    data = trained.base.path("input/data/validation/data.npz")
    script(SERVING / "handlers/images.py", "--count", 50, data, tmp_path / "images")
    right = 0
    with serving(base) as server:
        for path in (tmp_path / "images").iterdir():
            reply = server.ask(body=path.read_bytes(), content_type="image/png")
            assert reply.status == 200, reply
            assert reply.headers["content-type"] == "application/json"
            label = reply.json()["label"].replace(" ", "-")
            right += label == path.stem.partition("-")[2]
        for kind, status in (("image/png", 400), ("application/json", 415)):
            reply = server.ask(body=b"no image", content_type=kind)
            assert (reply.status, bool(reply.error)) == (status, True)
    assert right > 35


def test_a_model_of_scikit_learn_is_trained_and_served(tmp_path: Path) -> None:
    base = Base(tmp_path / "ml")
    shutil.copytree(SERVING / "scikit_learn/source", base.path("code"))
    base.environ["SAGEMAKER_PROGRAM"] = "train.py"
    result = base.run()
    assert result.status == 0, result.log
    del base.environ["SAGEMAKER_PROGRAM"]
    rows = base.path("output/data/rows.csv").read_text()
    labels = [int(line) for line in base.path("output/data/labels.csv").read_text().split()]
    with serving(base) as server:
        found = json.loads(server.ask(body=rows, content_type="text/csv").body)
    right = [one == label for one, label in zip(found["digits"], labels, strict=True)]
    accuracy = metric("accuracy", result.out.decode())
    assert sum(right) / len(right) == pytest.approx(accuracy, abs=1e-4)
    assert accuracy > 0.9
