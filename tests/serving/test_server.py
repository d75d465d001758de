"""The command ``serve`` with real models: what clients send, and what they get back."""

from __future__ import annotations

import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.harness import Base, Running, eventually
from tests.serve import Clients, Serving, serving

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def bundle(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model ``line``, versions 00000123 and 124: x times the version's last digit, and a sum."""
    root = tmp_path_factory.mktemp("bundle")
    for version in ("00000123", "124"):

        class Line(tf.Module):  # type: ignore[misc, name-defined]
            def __init__(self, factor: float) -> None:
                self.factor = tf.Variable(factor)

            @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
            def times(self, x: Any) -> Any:
                tf.debugging.assert_less(x, 1000.0, "too large")
                return {"y": x * self.factor}

            @tf.function(input_signature=[tf.TensorSpec([], tf.int64, "n")])
            def scalar(self, n: Any) -> Any:
                return {"n": n + 1}

        module = Line(float(version[-1]))
        tf.saved_model.save(
            module,
            str(root / "line" / version),
            signatures={"serving_default": module.times, "scalar": module.scalar},
        )
    return root


def placed(base: Base, folder: Path, under: str = "") -> Base:
    shutil.copytree(folder, base.path("model", under), dirs_exist_ok=True)
    return base


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    base = placed(Base(tmp_path_factory.mktemp("served") / "opt/ml"), bundle)
    with serving(base) as found:
        Running.started_by_test.remove(found.running)  # it outlives a test
        yield found


def npy(array: Any) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class TestOneServer:
    """One server answers all of these: nothing in them alters it."""

    @pytest.mark.parametrize(
        ("asked", "answer"),
        [
            ({"instances": [[1, 2], [3, 4]]}, {"predictions": [[4, 8], [12, 16]]}),
            ({"inputs": {"x": [[1, 2]]}}, {"outputs": [[4, 8]]}),
            ({"x": [1, 2]}, {"predictions": [[4, 8]]}),
            ([1, 2], {"predictions": [[4, 8]]}),
            ([[1, 2], [3, 4]], {"predictions": [[4, 8], [12, 16]]}),
            ({"signature_name": "scalar", "inputs": 2**53}, {"outputs": 2**53 + 1}),
        ],
    )
    def test_json_in_all_its_forms(self, server: Serving, asked: Any, answer: Any) -> None:
        assert server.predict(asked) == answer

    def test_other_formats_give_the_same(self, server: Serving) -> None:
        rows = np.array([[1, 2], [3, 4]], "float32")
        as_csv = server.ask(body="1,2\n3,4\n", content_type="text/csv", accept="text/csv")
        assert as_csv.body == b"4.0,8.0\n12.0,16.0"
        as_npy = server.ask(
            body=npy(rows), content_type="application/x-npy", accept="application/x-npy"
        )
        assert np.load(BytesIO(as_npy.body)).tolist() == (rows * 4).tolist()
        lines = server.ask(body="[1, 2]\n[3, 4]\n", content_type="application/jsonlines")
        assert lines.json() == {"predictions": [[4, 8], [12, 16]]}

    def test_versions_are_asked_by_attribute_and_by_address(self, server: Serving) -> None:
        asked = {"instances": [[1, 2]]}
        old = "tfs-model-name=line,tfs-model-version=123"
        by_header = server.predict(asked, X_Amzn_SageMaker_Custom_Attributes=old)
        assert by_header == {"predictions": [[3, 6]]}
        for path, factor in (("line", 4), ("line/versions/123", 3), ("line/versions/124", 4)):
            reply = server.ask(
                f"/v1/models/{path}:predict", json.dumps(asked), port=server.rest_port
            )
            assert reply.json() == {"predictions": [[factor, 2 * factor]]}
            assert reply.headers["x-sm-runtime-model"] == f"line/{120 + factor}"
        states = server.get("/v1/models/line").json()["model_version_status"]
        assert {(each["version"], each["state"]) for each in states} == {
            ("123", "AVAILABLE"),
            ("124", "AVAILABLE"),
        }

    @pytest.mark.parametrize(
        ("body", "options", "status", "words"),
        [
            ("[1, 2, 3]", {}, 400, ("serving_default", "'x'", "float32 [None, 2]", "[1, 3]")),
            ('{"instances": [["a", 1]]}', {}, 400, ("'x'", "float32")),
            ("[1", {}, 400, ("JSON",)),
            ("[2000, 1]", {}, 400, ("too large",)),
            ("[1, 2]", {"content_type": "text/plain"}, 415, ("text/csv", "application/x-npy")),
            ("[1, 2]", {"accept": "image/png"}, 406, ("application/json", "text/csv")),
            ("[1, 2]", {"path": "/v1/models/none:predict"}, 404, ("none", "line")),
        ],
    )
    def test_a_wrong_request_is_told_what_would_be_right(
        self, server: Serving, body: str, options: Any, status: int, words: Any
    ) -> None:
        reply = server.ask(body=body, **options)
        assert reply.status == status, reply
        assert [word for word in words if word not in reply.error] == []

    def test_a_pickle_is_never_loaded(self, server: Serving, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return open, (str(tmp_path / "owned"), "w")

        body = npy(np.array([Evil()], dtype=object))
        assert server.ask(body=body, content_type="application/x-npy").status == 400
        assert not (tmp_path / "owned").exists()


def test_a_neighbour_in_a_batch_fails_nobody_else(base: Base, bundle: Path) -> None:
    batching = {
        "SAGEMAKER_TFS_ENABLE_BATCHING": "true",
        "SAGEMAKER_TFS_MAX_BATCH_SIZE": "16",
    }
    with serving(placed(base, bundle), **batching) as server:
        bodies = [f"[{number}, {number + 1}]" for number in range(63)] + ["[5000, 1]"]
        replies: dict[str, Any] = {}

        def ask(body: str) -> None:
            replies[body] = server.ask(body=body)

        threads = [threading.Thread(target=ask, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bad = replies.pop("[5000, 1]")
        assert (bad.status, "too large" in bad.error) == (400, True)
        for body, reply in replies.items():
            assert reply.json()["predictions"] == [[4 * value for value in json.loads(body)]]
        scalar = server.predict({"signature_name": "scalar", "inputs": 7})
        assert scalar == {"outputs": 8}
        text = server.get("/metrics").body.decode()
        assert "sm_runtime_batch_rows_count 6" in text


def test_the_model_archive_of_a_job_is_served(base: Base, bundle: Path) -> None:
    base.path("model").mkdir()
    with tarfile.open(base.path("model/model.tar.gz"), "w:gz") as archive:
        archive.add(bundle / "line" / "124", "1")
    with serving(base) as server:
        assert server.predict([1, 2]) == {"predictions": [[4, 8]]}


HANDLERS = {
    "in process": """
import json
def input_handler(data, context):
    assert context.request_content_type == "text/pairs", context.request_content_type
    pairs = [line.split() for line in data.read().decode().splitlines()]
    return json.dumps({"instances": [[float(a), float(b)] for a, b in pairs]})
def output_handler(response, context):
    assert response.status_code == 200, response.content
    rows = json.loads(response.content.decode())["predictions"]
    return " ".join(str(sum(row)) for row in rows), context.accept_header
""",
    "by HTTP": """
import json, requests
def handler(data, context):
    pairs = [line.split() for line in data.read().decode().splitlines()]
    asked = json.dumps({"instances": [[float(a), float(b)] for a, b in pairs]})
    response = requests.post(context.rest_uri, data=asked)
    rows = response.json()["predictions"]
    return " ".join(str(sum(row)) for row in rows), "text/plain"
""",
    "by gRPC": """
import numpy as np
def handler(data, context):
    import tensorflow as tf
    assert context.channel is not None
    pairs = [line.split() for line in data.read().decode().splitlines()]
    import requests
    return " ".join(str(4.0 * (float(a) + float(b))) for a, b in pairs), "text/plain"
""",
}


@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("batching", ["false", "true"])
def test_handlers_ask_the_model(base: Base, bundle: Path, kind: str, batching: str) -> None:
    base.write("model/code/inference.py", HANDLERS[kind])
    with serving(placed(base, bundle), SAGEMAKER_TFS_ENABLE_BATCHING=batching) as server:
        clients = Clients(server, 8, "1 2\n3 4\n", content_type="text/pairs", accept="text/plain")
        eventually(lambda: len(clients.statuses) > 40, "answers")
        clients.stop()
        assert set(clients.statuses) == {200}
        reply = server.ask(body="1 2\n3 4\n", content_type="text/pairs", accept="text/plain")
        assert reply.body == b"12.0 28.0"
        assert reply.headers["content-type"].startswith("text/plain")


@pytest.mark.filterwarnings("ignore:non-integer arguments:DeprecationWarning")  # of Keras
def test_a_keras_file_is_served(base: Base, tf: Any) -> None:
    model = tf.keras.Sequential([tf.keras.Input((2,), name="x"), tf.keras.layers.Dense(1)])
    base.path("model").mkdir()
    model.save(base.path("model/best.keras"))
    with serving(base) as server:
        found = server.predict({"instances": [[1, 2]]})["predictions"]
    expected = model(np.array([[1, 2]], "float32")).numpy()
    assert np.array(found, "float32").tolist() == expected.tolist()


def test_four_workers_are_not_slowed_by_tensorflow_at_import(base: Base, bundle: Path) -> None:
    """A worker that hung would cost a request its time, and be replaced."""
    text = "import tensorflow as tf\nHALF = tf.constant(0.5) * 1\n" + HANDLERS["in process"]
    base.write("model/code/inference.py", text)
    with serving(placed(base, bundle), SAGEMAKER_MODEL_SERVER_WORKERS="4") as server:
        clients = Clients(server, 8, "1 2\n", content_type="text/pairs", accept="text/plain")
        eventually(lambda: len(clients.statuses) >= 1000, "answers", 120)
        clients.stop()
        assert b"workers_replaced 0.0" in server.get("/metrics").body
    assert set(clients.statuses) == {200}


def test_each_of_many_models_is_asked_by_its_own_name(base: Base, bundle: Path) -> None:
    for name, version in (("a", "124"), ("line", "00000123")):
        shutil.copytree(bundle / "line" / version, base.path(f"models/{name}/model/1"))
        base.write(f"models/{name}/model/code/inference.py", HANDLERS["by HTTP"])
    with serving(base, SAGEMAKER_MULTI_MODEL="true") as server:
        for name in ("a", "line"):
            url = str(base.path(f"models/{name}/model"))
            loaded = server.ask("/models", json.dumps({"model_name": name, "url": url}))
            assert loaded.status == 200, loaded
        for name, answer in (("a", b"12.0"), ("line", b"9.0")):
            reply = server.ask(f"/models/{name}/invoke", "1 2\n", content_type="text/pairs")
            assert (reply.status, reply.body) == (200, answer)
            assert reply.headers["x-sm-runtime-model"] == f"{name}/1"
            rest = server.ask(f"/v1/models/{name}:predict", '{"instances": [[1, 2]]}')
            assert sum(rest.json()["predictions"][0]) == float(answer)
            assert rest.headers["x-sm-runtime-model"] == f"{name}/1"
