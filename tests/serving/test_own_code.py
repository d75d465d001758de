"""Handlers with frameworks: scikit-learn's models, and TensorFlow's over gRPC."""

from __future__ import annotations

import json
import logging
import socket
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sm_runtime.serving import coding, handlers
from sm_runtime.serving.code import OwnCode
from sm_runtime.serving.coding import CSV, JSON, NPY
from sm_runtime.serving.context import Surroundings
from sm_runtime.serving.grpc_api import GrpcApi
from sm_runtime.serving.handlers import Handlers
from sm_runtime.serving.values import Model, Request, RequestError, Signature, TensorSpec

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(autouse=True)
def _imports_are_undone(tmp_path: Path) -> Iterator[None]:
    path, finders = list(sys.path), list(sys.meta_path)
    yield
    sys.path[:], sys.meta_path[:] = path, finders
    sys.modules.pop("inference", None)


def loaded(folder: Path, text: str, **more: Any) -> Handlers:
    program = folder / "code" / "inference.py"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(textwrap.dedent(text))
    code = OwnCode(directory=str(program.parent), program=str(program))
    return handlers.load(code, Surroundings(model_dir=str(folder), **more))


def asked(body: bytes | str, kind: str, accept: str = JSON) -> Request:
    data = body if isinstance(body, bytes) else body.encode()
    return Request(headers={"content-type": kind, "accept": accept}, body=data)


def test_a_model_of_scikit_learn_needs_model_fn_alone(tmp_path: Path) -> None:
    import joblib
    import numpy
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    rows, labels = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(rows, labels)
    joblib.dump(model, tmp_path / "model.joblib")
    handle = loaded(
        tmp_path,
        """
        import os, joblib

        def model_fn(model_dir):
            return joblib.load(os.path.join(model_dir, "model.joblib"))
        """,
    )
    expected = model.predict(rows)
    for kind in (JSON, CSV, NPY):
        for accept in (JSON, CSV, NPY):
            answer = handle(asked(coding.encode(rows, kind), kind, accept))
            found = coding.decode(answer.body, accept)
            assert (answer.status, answer.headers["content-type"]) == (200, accept)
            assert (numpy.ravel(found) == expected).all()
    answer = handle(asked("1,2,3\n", CSV))
    assert answer.status == 500 and "features" in json.loads(answer.body)["error"]


class Halves:
    """A model with a signature of numbers and one of strings."""

    name = "half"
    version = 3
    default_signature = "serving_default"

    def __init__(self) -> None:
        x = TensorSpec(name="x", dtype="float32", shape=(None,))
        y = TensorSpec(name="y", dtype="float32", shape=(None,))
        s = TensorSpec(name="s", dtype="string", shape=(None,))
        self.signatures: Mapping[str, Signature] = {
            "serving_default": Signature(name="serving_default", inputs={"x": x}, outputs={"y": y}),
            "upper": Signature(name="upper", inputs={"s": s}, outputs={"s": s}),
        }

    def run(self, signature: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        import tensorflow as tf

        if signature == "upper":
            return {"s": tf.strings.upper(tf.constant(inputs["s"])).numpy()}
        return {"y": (tf.constant(inputs["x"]) / 2).numpy()}


class OneModel:
    """A registry with one version of a model."""

    default_name = "half"

    def get(self, name: str | None = None, version: int | None = None) -> Model:
        if (name or "half", version or 3) != ("half", 3):
            raise RequestError(f"there is no {name} {version}", 404)
        return Halves()

    def versions(self, name: str | None = None) -> Mapping[int, str]:
        return {3: "AVAILABLE"}


@pytest.fixture
def api() -> Iterator[GrpcApi]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = GrpcApi(OneModel(), port)
    yield api
    api.close()


PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
# PredictRequest of tensorflow-serving-api 2.15.1: half, serving_default, x = [1, 2] in float_val.
REQUEST = bytes.fromhex(
    "0a170a0468616c661a0f73657276696e675f64656661756c7412170a01781212080112041202"
    "08022a080000803f00000040"
)
RESPONSE = bytes.fromhex(
    "0a170a01791212080112041202080222080000003f0000803f121b0a0468616c66120208031a"
    "0f73657276696e675f64656661756c74"
)
"""The answer: half, version 3, serving_default, y = [0.5, 1]."""


def test_bytes_of_tensorflow_servings_own_client_are_understood(api: GrpcApi) -> None:
    assert api.channel.unary_unary(PREDICT)(REQUEST) == RESPONSE


def test_a_handler_predicts_over_the_channel_of_its_context(tmp_path: Path, api: GrpcApi) -> None:
    text = f"""
        REQUEST = {REQUEST!r}

        def handler(data, context):
            call = context.channel.unary_unary({PREDICT!r})
            assert int(context.grpc_port) and context.grpc_uri == "localhost:" + context.grpc_port
            return call(REQUEST), "application/octet-stream"
    """
    answer = loaded(tmp_path, text, grpc=api)(asked("", JSON))
    assert (answer.status, answer.body) == (200, RESPONSE)


def test_a_port_that_is_taken_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        api = GrpcApi(OneModel(), taken.getsockname()[1])
        assert api.port != taken.getsockname()[1]
        with caplog.at_level(logging.INFO):
            assert api.channel.unary_unary(PREDICT)(REQUEST) == RESPONSE
        api.close()


def message(api: GrpcApi, name: str) -> Any:
    from sm_runtime.serving import grpc_api

    return grpc_api._messages()[name]()


def predict(api: GrpcApi, request: Any) -> Any:
    from sm_runtime.serving import grpc_api

    answer = api.channel.unary_unary(PREDICT)(request.SerializeToString())
    return grpc_api._messages()["PredictResponse"].FromString(answer)


def tensor(value: Any) -> bytes:
    import tensorflow as tf

    return bytes(tf.make_tensor_proto(value).SerializeToString())


def test_strings_another_signature_and_an_output_that_is_asked_for(api: GrpcApi) -> None:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    request = message(api, "PredictRequest")
    request.model_spec.signature_name = "upper"
    request.inputs["s"] = tensor([b"a", b"\xff"])
    request.output_filter.append("s")
    answer = predict(api, request)
    found = tf.make_ndarray(tensor_pb2.TensorProto.FromString(answer.outputs["s"]))
    assert found.tolist() == [b"A", b"\xff"]
    assert answer.model_spec.signature_name == "upper" and answer.model_spec.version.value == 3


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"name": "other"}, "NOT_FOUND", "there is no other"),
        ({"signature_name": "none"}, "INVALID_ARGUMENT", "it has serving_default, upper"),
        ({"input": "z"}, "INVALID_ARGUMENT", "'x' is missing; 'z' is none of its inputs"),
        ({"data": b"\xff"}, "INVALID_ARGUMENT", "input 'x' is no tensor"),
        ({"filter": "q"}, "INVALID_ARGUMENT", "output_filter: 'q' is none of y"),
    ],
)
def test_what_is_wrong_is_one_of_grpcs_codes(
    api: GrpcApi, fields: dict[str, Any], code: str, said: str
) -> None:
    import grpc

    request = message(api, "PredictRequest")
    request.model_spec.name = fields.get("name", "")
    request.model_spec.signature_name = fields.get("signature_name", "")
    request.inputs[fields.get("input", "x")] = fields.get("data") or tensor([1.0])
    request.output_filter.extend([fields["filter"]] if "filter" in fields else [])
    with pytest.raises(grpc.RpcError) as caught:
        predict(api, request)
    error: Any = caught.value
    assert error.code().name == code and said in error.details()


def test_metadata_names_the_signatures(api: GrpcApi) -> None:
    from google.protobuf import any_pb2
    from tensorflow.core.protobuf import meta_graph_pb2

    from sm_runtime.serving import grpc_api

    request = message(api, "GetModelMetadataRequest")
    request.metadata_field.append("signature_def")
    messages = grpc_api._messages()
    answer = messages["GetModelMetadataResponse"].FromString(
        api.channel.unary_unary(METADATA)(request.SerializeToString())
    )
    wrapped = any_pb2.Any.FromString(answer.metadata["signature_def"])
    found = messages["SignatureDefMap"].FromString(wrapped.value).signature_def
    assert set(found) == {"serving_default", "upper"}
    upper = meta_graph_pb2.SignatureDef.FromString(found["upper"])
    assert upper.inputs["s"].dtype == 7 and upper.inputs["s"].tensor_shape.dim[0].size == -1
