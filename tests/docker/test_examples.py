"""The worked examples, built and run as their comments say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.container import ROOT, Container, Ml, docker, run

EXAMPLES = ROOT / "examples"
DATA = "usr/share/datasets/fashion-mnist"


@pytest.fixture
def built() -> Iterator[list[str]]:
    """Images that a test makes; removed with it."""
    tags: list[str] = []
    yield tags
    for tag in tags:
        docker("rmi", "-f", tag)


def test_an_image_upon_the_runtimes_image_needs_its_code_and_no_more(
    cpu_image: str, ml: Ml, built: list[str]
) -> None:
    tag = "sm-runtime-test-custom-image"
    upon = ("--build-arg", f"BASE_IMAGE={cpu_image}")
    docker("build", "-q", "-t", tag, *upon, str(EXAMPLES / "custom_image"))
    built.append(tag)
    (ml.root / "model").mkdir()
    mount = ("-v", f"{ml.root / 'model'}:/opt/ml/model")
    result = run(tag, "train", options=(*mount, "--network", "none"))
    assert result.status == 0, result.err
    assert "loss: 0.0" in result.out
    assert ml.exists("model/1/saved_model.pb")


def test_the_runtime_goes_into_any_python_image(
    base: str, ml: Ml, tmp_path: Path, built: list[str]
) -> None:
    context = tmp_path / "own_base"
    shutil.copytree(EXAMPLES / "own_base", context)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "sm_runtime", source / "sm_runtime", ignore=ignored)
    subprocess.run(
        (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", context, source),
        check=True,
    )
    wheel = next(context.glob("*.whl"))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 5e6
    tag = "sm-runtime-test-own-base"
    docker("build", "-q", "-t", tag, "--build-arg", f"BASE_IMAGE={base}", str(context))
    built.append(tag)

    assert run(tag, "python", "-m", "pip", "check").status == 0
    assert run(tag, "sh", "-c", "command -v gcc tini mpirun").status != 0
    ml.write("input/data/text/a.txt", "to be or not to be")
    ml.write("input/config/inputdataconfig.json", {"text": {"TrainingInputMode": "File"}})
    result = run(tag, options=(*ml.mount, "-v", f"{context / 'train.py'}:/opt/ml/code/train.py:ro"))
    assert result.status == 0, result.err
    assert result.out == "words: 6\n"
    assert json.loads(ml.read("model/counts.json"))["be"] == 2


def test_fashion_mnist_trains_and_a_stop_saves_the_model(cpu_image: str, ml: Ml) -> None:
    example = EXAMPLES / "fashion_mnist"
    data = next(
        path / DATA for path in (ROOT / "build/system", Path("/")) if (path / DATA).is_dir()
    )
    prepare = ("python", "/example/prepare_data.py", "--source", "/source", "/opt/ml/input/data")
    mounts = ("-v", f"{example}:/example:ro", "-v", f"{data}:/source:ro", *ml.mount)
    prepared = run(cpu_image, *prepare, options=mounts)
    assert prepared.status == 0, prepared.err
    shutil.copytree(example / "source", ml.root / "code")
    other = shutil.ignore_patterns("*.py", "source")
    shutil.copytree(example, ml.root / "input/config", ignore=other)
    hyperparameters = json.loads(ml.read("input/config/hyperparameters.json"))
    ml.write("input/config/hyperparameters.json", {**hyperparameters, "epochs": "1"})
    result = run(cpu_image, options=(*ml.mount, "--network", "none"), seconds=300)
    assert result.status == 0, result.err
    assert "val_accuracy" in result.out
    assert ml.exists("artifacts/fashion-mnist/output/model.tar.gz")

    ml.write("input/config/hyperparameters.json", {**hyperparameters, "epochs": "500"})
    shutil.rmtree(ml.root / "model")
    with Container(cpu_image, options=ml.mount) as container:
        container.ready("loss: ")
        assert container.stop(60) == 0, container.log()
    assert ml.exists("model/1/saved_model.pb")
