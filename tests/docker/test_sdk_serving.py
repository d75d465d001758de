"""Endpoints and batch transform of the SageMaker Python SDK's local mode."""

from __future__ import annotations

import json
import shutil
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.docker.container import host_address, run
from tests.docker.served import best, images, labels
from tests.docker.test_sdk_local_mode import remove_projects, sdk
from tests.jobs.test_install import wheel
from tests.s3 import Server, serving_by_rclone

IN_JSON = {"serializer": "JSONSerializer", "deserializer": "JSONDeserializer"}
HANDLERS = """
import json, extra_package, library.lib
def input_handler(data, context):
    asked = json.loads(data.read())
    return json.dumps({"instances": asked["pixels"]})
def output_handler(response, context):
    found = json.loads(response.content)["predictions"]
    answer = {"classes": [row.index(max(row)) for row in found], "library": library.lib.VALUE,
              "package": extra_package.VALUE, "attributes": context.custom_attributes}
    return json.dumps(answer), "application/json"
"""


@pytest.fixture
def folder(tmp_path: Path, fashion_mnist_model: Any) -> Iterator[Path]:
    for name in ("root", "code", "artifacts", "input", "output"):
        (tmp_path / name).mkdir()
    shutil.copy(
        fashion_mnist_model.root / "artifacts/fashion-mnist/output/model.tar.gz",
        tmp_path / "artifacts",
    )
    yield tmp_path
    remove_projects(tmp_path)


@pytest.fixture
def server(tmp_path: Path, cpu_image: str) -> Iterator[Server]:
    """An S3 server that this machine and containers reach."""
    with serving_by_rclone(tmp_path / "s3", host_address()) as found:
        (found.folder / "a-bucket").mkdir()
        yield found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def serve(folder: Path, kind: str, *, server: Server | None = None, **specification: Any) -> Any:
    """Do what sdk_serve.py says; return its answers. ``model`` are the class's arguments."""
    arguments, inputs = specification.pop("model"), specification.pop("inputs", None)
    specification |= {
        "root": str(folder / "root"),
        "port": free_port(),
        "model": [kind, arguments, inputs],
    }
    more = {}
    if server is not None:
        specification["bucket"] = "a-bucket"
        more = {"AWS_ENDPOINT_URL_S3": server.url}
    done = sdk("sdk_serve.py", specification, folder, **more)
    assert done.returncode == 0, done.stdout
    (folder / "log").write_text(done.stdout, encoding="utf-8")
    return json.loads((folder / "answers.json").read_text(encoding="utf-8"))


def tensorflow_model(image: str, folder: Path, **arguments: Any) -> dict[str, Any]:
    return {
        "image_uri": image,
        "model_data": f"file://{folder / 'artifacts/model.tar.gz'}",
        "framework_version": "2.14",
        "name": "sdk-model",
        # Without it the SDK asks AWS who it is, for a bucket that nothing is put into.
        "code_location": "s3://a-bucket",
        **arguments,
    }


def deployment(*requests: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    return {"arguments": arguments, "requests": requests}


TRAINS = """
import os, tensorflow as tf
class Line(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
    def times(self, x):
        return {"y": FACTOR * x}
tf.saved_model.save(Line(), os.path.join(os.environ["SM_MODEL_DIR"], "1"))
"""


@pytest.fixture(scope="module")
def lines(cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of archives of models: ``two`` and ``three`` are times as much."""
    made = tmp_path_factory.mktemp("lines")
    for name, factor in (("two", "2"), ("three", "3")):
        script = TRAINS.replace("FACTOR", factor)
        options = ("-v", f"{made}:/made", "-e", f"SM_MODEL_DIR=/made/{name}")
        result = run(cpu_image, "python", "-c", script, options=options)
        assert result.status == 0, result.err
        with tarfile.open(made / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(made / name, ".")
        shutil.rmtree(made / name)
    return made


@pytest.mark.parametrize("kind", ["Estimator", "TensorFlow"])
def test_an_estimator_is_fitted_and_deployed_with_one_image(
    cpu_image: str, folder: Path, server: Server, kind: str
) -> None:
    (folder / "code/train.py").write_text(TRAINS.replace("FACTOR", "2"), encoding="utf-8")
    more = {"framework_version": "2.14", "py_version": "py310"} if kind == "TensorFlow" else {}
    answers = serve(
        folder,
        kind,
        server=server,
        model={
            "image_uri": cpu_image,
            "entry_point": "train.py",
            "source_dir": str(folder / "code"),
            "instance_count": 1,
            "instance_type": "local",
            **more,
        },
        inputs={"train": f"file://{folder / 'input'}"},
        deployments=[deployment({**IN_JSON, "data": {"instances": [[1, 2], [3, 4]]}})],
    )
    assert answers == [[{"predictions": [[2.0, 4.0], [6.0, 8.0]]}]]


def test_every_serializer_of_the_sdk_and_a_second_deployment(cpu_image: str, folder: Path) -> None:
    pixels = images(20)
    array = {"array": pixels, "dtype": "float32"}
    flat = [[value for row in image for (value,) in row] for image in pixels]
    in_lines = {"serializer": "JSONLinesSerializer", "deserializer": "JSONLinesDeserializer"}
    requests = (
        {**IN_JSON, "data": {"instances": pixels}},
        {**in_lines, "data": pixels},
        {"serializer": "NumpySerializer", "deserializer": "NumpyDeserializer", "data": array},
        {"serializer": "NumpySerializer", "deserializer": "CSVDeserializer", "data": array},
        {"serializer": "JSONSerializer", "deserializer": "NumpyDeserializer", "data": pixels},
        {**IN_JSON, "data": {"instances": flat}},
    )
    first, second = serve(
        folder,
        "TensorFlowModel",
        model=tensorflow_model(cpu_image, folder),
        deployments=[deployment(*requests), deployment(requests[0])],
    )
    expected = first[0]["predictions"]
    assert sum(map(int.__eq__, best(expected), labels(20))) > 12
    assert first[1] == [first[0]]
    assert (first[2]["dtype"], first[2]["shape"]) == ("float32", [20, 10])
    for values in (first[2]["values"], first[3], first[4]["values"]):
        assert np.array_equal(np.array(values, "float32"), np.array(expected, "float32"))
    assert "images" in str(first[5])
    assert second == [first[0]]


def test_csv_through_the_sdk(cpu_image: str, folder: Path, lines: Path) -> None:
    shutil.copy(lines / "two.tar.gz", folder / "artifacts/model.tar.gz")
    both = {"serializer": "CSVSerializer", "deserializer": "CSVDeserializer"}
    requests = (
        {**both, "data": [[1, 2], [3, 4]]},
        {**both, "data": [1, 2]},
        {**both, "deserializer": "JSONDeserializer", "data": "1,2\n3,4\n"},
    )
    (answers,) = serve(
        folder,
        "TensorFlowModel",
        model=tensorflow_model(cpu_image, folder),
        deployments=[deployment(*requests)],
    )
    assert answers == [
        [["2.0", "4.0"], ["6.0", "8.0"]],
        [["2.0", "4.0"]],
        {"predictions": [[2.0, 4.0], [6.0, 8.0]]},
    ]


@pytest.mark.parametrize("requirements", ["beside", "dependency"])
def test_handlers_with_requirements_and_dependencies(
    cpu_image: str, folder: Path, server: Server, requirements: str
) -> None:
    (folder / "code/inference.py").write_text(HANDLERS, encoding="utf-8")
    (folder / "library").mkdir()
    (folder / "library/lib.py").write_text("VALUE = 'of the library'\n", encoding="utf-8")
    place = folder / "code" if requirements == "beside" else folder
    package = wheel(place, "extra-package", "1.0", files={"extra_package.py": "VALUE = 1.5\n"})
    (place / "requirements.txt").write_text(f"./{package.name}\n", encoding="utf-8")
    more = [] if requirements == "beside" else [str(place / "requirements.txt"), str(package)]
    (answers,) = serve(
        folder,
        "TensorFlowModel",
        server=server,
        model=tensorflow_model(
            cpu_image,
            folder,
            entry_point="inference.py",
            source_dir=str(folder / "code"),
            dependencies=[str(folder / "library"), *more],
        ),
        deployments=[
            deployment(
                {
                    **IN_JSON,
                    "data": {"pixels": images(20)},
                    "arguments": {"initial_args": {"CustomAttributes": "trace=1;x"}},
                }
            )
        ],
    )
    (answer,) = answers
    assert sum(map(int.__eq__, answer.pop("classes"), labels(20))) > 12
    expected = {"library": "of the library", "package": 1.5, "attributes": "trace=1;x"}
    assert answer == expected


def test_a_header_of_the_sdk_chooses_among_many_models(
    cpu_image: str, folder: Path, server: Server, lines: Path
) -> None:
    shutil.copytree(lines, server.folder / "a-bucket/models")
    request = {**IN_JSON, "data": {"instances": [[1, 2]]}}
    targets = ({"target_model": f"{name}.tar.gz"} for name in ("two", "three", "two", "four"))
    (answers,) = serve(
        folder,
        "MultiDataModel",
        server=server,
        model={
            "name": "many",
            "model_data_prefix": "s3://a-bucket/models/",
            "image_uri": cpu_image,
            "env": {"SAGEMAKER_MULTI_MODEL": "true"},
        },
        deployments=[deployment(*({**request, "arguments": target} for target in targets))],
    )
    assert answers[:3] == [{"predictions": [[2, 4]]}, {"predictions": [[3, 6]]}, answers[0]]
    assert "four.tar.gz" in answers[3]["error"]


COUNT = 300
CSV_ROWS = "".join(f"{number},{number / 4}\n" for number in range(COUNT))
JSON_ROWS = "".join(f"[{number},{number / 4}]\n" for number in range(COUNT))
TRANSFORMS = {
    "csv": ("text/csv", CSV_ROWS),
    "jsonlines": ("application/jsonlines", JSON_ROWS),
}


@pytest.mark.parametrize(
    ("form", "strategy", "split"),
    [
        ("csv", "MultiRecord", "Line"),
        ("csv", "SingleRecord", "Line"),
        ("csv", None, None),
        ("jsonlines", "MultiRecord", "Line"),
        ("jsonlines", None, None),
    ],
)
def test_a_batch_transform_answers_each_row(
    cpu_image: str, folder: Path, lines: Path, form: str, strategy: str | None, split: str | None
) -> None:
    shutil.copy(lines / "two.tar.gz", folder / "artifacts/model.tar.gz")
    content_type, rows = TRANSFORMS[form]
    (folder / "input/rows").write_text(rows, encoding="utf-8")
    maker = {
        "strategy": strategy,
        "assemble_with": split,
        "accept": content_type,
        "output_path": f"file://{folder / 'output'}",
    }
    arguments = {
        "data": f"file://{folder / 'input'}",
        "content_type": content_type,
        "split_type": split,
    }
    serve(
        folder,
        "TensorFlowModel",
        model=tensorflow_model(cpu_image, folder),
        transforms=[(maker, arguments)],
    )
    text = next((folder / "output").rglob("rows.out")).read_text(encoding="utf-8")
    answers = text.splitlines()
    if form == "csv":
        found = [[float(value) for value in line.split(",")] for line in answers]
    else:
        found = [row for line in answers for row in json.loads(line)["predictions"]]
    assert found == [[2 * number, number / 2] for number in range(COUNT)]
