"""Routes, the model and the signature that a request means, TensorFlow Serving's other answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from sm_runtime.serving.predictor import Predictor, Prepared
from sm_runtime.serving.values import Request
from tests.unit.serving.numpy_models import (
    Models,
    NumpyModel,
    error,
    half_plus_three,
    post,
    said,
    signature,
)

BODY = {"instances": [1.0]}


def get(served: Predictor, path: str) -> Any:
    return served.answer(Request(method="GET", path=path))


def features(given: Mapping[str, Any]) -> bytes:
    """Return the features as text: what a tf.Example is takes TensorFlow to see."""
    return repr(sorted(given.items())).encode()


def several() -> Predictor:
    """Return a predictor of a model with signatures for each method, two of them for predict."""

    def compute(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if "x" in inputs:
            return {"y": inputs["x"] * 2}
        sizes = np.array([len(one) for one in inputs["inputs"]], np.float32)
        return {"outputs": sizes[:, None], "texts": inputs["inputs"]}

    examples = {"inputs": ("string", (None,))}
    classes = {"classes": ("string", (None, None)), "scores": ("float32", (None, None))}
    signatures = [
        signature({"x": ("float32", (None,))}, {"y": ("float32", (None,))}),
        signature({"x": ("int64", (None,))}, {"y": ("int64", (None,))}, name="whole"),
        signature(examples, {"outputs": ("float32", (None, 1))}, name="value", method="regress"),
        signature(examples, classes, name="class", method="classify"),
    ]

    class Classifying(NumpyModel):
        def run(self, signature: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            if signature != "class":
                return super().run(signature, inputs)
            texts = inputs["inputs"]
            labels = np.array([[b"a", b"\xc3\xa9"]] * len(texts), object)
            return {"classes": labels, "scores": np.array([[0.1, np.nan]] * len(texts), "f4")}

    model = Classifying({one.name: one for one in signatures}, compute)
    return Predictor(Models([model]), make_example=features)


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/v1/models/half_plus_three:predict", 124),
        ("/v1/models/half_plus_three/versions/123:predict", 123),
        ("/v1/models/half_plus_three/versions/00000124:predict", 124),
    ],
)
def test_tensorflow_servings_paths_take_json_whatever_the_headers_say(
    path: str, version: int
) -> None:
    answer = post(half_plus_three(), BODY, "application/x-www-form-urlencoded", "text/csv", path)
    named = {"x-sm-runtime-model": f"half_plus_three/{version}"}
    assert answer.headers == {"content-type": "application/json", **named}
    assert said(answer) == {"predictions": [3.5]}


@pytest.mark.parametrize("body", ["[1.0]", "1", '{"x": 1.0}', "{}", "[1]\n[2]", "nonsense"])
def test_tensorflow_servings_paths_take_its_forms_alone(body: str) -> None:
    error(post(half_plus_three(), body, path="/v1/models/half_plus_three:predict"))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/invocations", 405),
        ("PUT", "/invocations", 405),
        ("POST", "/v1/models/half_plus_three", 405),
        ("POST", "/v1/models/half_plus_three/metadata", 405),
        ("GET", "/v1/models/half_plus_three:predict", 405),
        ("POST", "/v1/models/half_plus_three:explain", 404),
        ("POST", "/v1/models/other:predict", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/models/half_plus_three/versions/9", 404),
        ("GET", "/v1/models/half_plus_three/versions/9/metadata", 404),
        ("POST", "/v1/models/half_plus_three/versions/9:predict", 404),
        ("POST", "/v1/models/half_plus_three/versions/one:predict", 400),
        ("POST", "/v1/models/half_plus_three/versions/" + "9" * 5000 + ":predict", 400),
        ("POST", "/v1/models/", 404),
        ("POST", "/", 404),
        ("POST", "/invocations/", 404),
    ],
)
def test_other_paths_and_methods_are_refused(method: str, path: str, status: int) -> None:
    answer = half_plus_three().answer(Request(method=method, path=path, body=b'{"instances":[1]}'))
    assert error(answer, status)
    assert ("allow" in answer.headers) == (status == 405)


def test_the_state_of_versions_is_told_as_tensorflow_serving_tells_it() -> None:
    ok = {"error_code": "OK", "error_message": ""}
    states = [
        {"version": version, "state": "AVAILABLE", "status": ok} for version in ("124", "123")
    ]
    served = half_plus_three()
    assert said(get(served, "/v1/models/half_plus_three")) == {"model_version_status": states}
    assert said(get(served, "/v1/models/half_plus_three/versions/0123")) == {
        "model_version_status": states[1:]
    }


def test_metadata_have_tensorflow_servings_form() -> None:
    found = said(get(several(), "/v1/models/model/metadata"))
    assert found["model_spec"] == {"name": "model", "signature_name": "", "version": "1"}
    one = found["metadata"]["signature_def"]["signature_def"]["value"]
    shape = {"dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}], "unknown_rank": False}
    assert one["method_name"] == "tensorflow/serving/regress"
    assert one["inputs"]["inputs"]["dtype"] == "DT_STRING"
    assert one["outputs"]["outputs"]["dtype"] == "DT_FLOAT"
    assert one["outputs"]["outputs"]["tensor_shape"] == shape
    found = said(get(half_plus_three(), "/v1/models/half_plus_three/metadata"))
    x = found["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["x"]
    assert x["tensor_shape"] == {"dim": [], "unknown_rank": True}


def test_attributes_name_model_version_and_signature() -> None:
    served = half_plus_three()
    for text in ("tfs-model-version=00000123", "a=b, tfs-model-name=half_plus_three", "trace=1;x"):
        assert said(post(served, BODY, attributes=text)) == {"predictions": [3.5]}
    for text, status in (("tfs-model-name=other", 404), ("tfs-model-version=125", 404)):
        error(post(served, BODY, attributes=text), status)
    for text in ("tfs-model-version=new", "tfs-method=explain"):
        error(post(served, BODY, attributes=text), 400)
    whole = post(several(), BODY, attributes="tfs-signature-name=whole,tfs-method=predict")
    assert whole.body == b'{"predictions":[2]}'


def test_text_that_is_none_of_ours_is_left_alone() -> None:
    for text in ("trace=1;x", "tfs-", "tfs-method", "=,=", "tfs-other=1", "\xff" * 1024):
        assert post(half_plus_three(), BODY, attributes=text).status == 200


def test_the_body_names_the_signature() -> None:
    body = {"signature_name": "whole", "instances": [2**62 - 1]}
    assert post(several(), body).body == b'{"predictions":[9223372036854775806]}'
    found = error(post(several(), {**body, "signature_name": "none"}))
    assert "no signature 'none', only 'serving_default' (predict), 'whole' (predict)" in found


def test_regress_and_classify_take_examples_and_give_results() -> None:
    body = {"examples": [{"a": 1}, {"a": [1.5, 2], "b": ["x", {"b64": "/w=="}], "c": True}]}
    expected = [
        features({"a": [1]}),
        features({"a": [1.5, 2.0], "b": [b"x", b"\xff"], "c": [1]}),
    ]
    answer = post(several(), body, path="/v1/models/model:regress")
    assert said(answer) == {"results": [len(one) for one in expected]}
    assert answer.body == post(several(), body, attributes="tfs-method=regress").body
    answer = post(several(), {**body, "signature_name": "class"})
    assert answer.body == b'{"results":[' + b",".join([b'[["a",0.1],["\xc3\xa9",NaN]]'] * 2) + b"]}"
    assert post(several(), body, attributes="tfs-method=classify").body == answer.body


def test_context_is_part_of_each_example() -> None:
    body = {"context": {"c": 1}, "examples": [{"a": 1}], "signature_name": "value"}
    prepared = several().prepare(
        Request(
            headers={"content-type": "application/json"},
            body=str(body).replace("'", '"').encode(),
        )
    )
    assert isinstance(prepared, Prepared)
    assert prepared.inputs["inputs"].tolist() == [features({"c": [1], "a": [1]})]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"instances": [1]}, 'no list "examples"'),
        ({"examples": []}, 'no list "examples"'),
        ({"examples": [1]}, "example 0 is no object of features"),
        ({"examples": [{"a": None}]}, "feature 'a' of example 0 is no list of numbers"),
        ({"examples": [{"a": [[1]]}]}, "feature 'a' of example 0 is no list of numbers"),
        ({"examples": [{"a": ["x", 1]}]}, "feature 'a' of example 0 is no list of numbers"),
        ({"examples": [{"a": 2**63}]}, "feature 'a' of example 0 is no list of numbers"),
        ({"examples": [{"a": 1e39}]}, "feature 'a' of example 0 is no list of numbers"),
        ({"examples": [{"a": {"b64": "?"}}]}, "feature 'a' of example 0: "),
        ({"examples": [{"a": 1}], "context": {"a": 1}}, "'a' is in example 0 and in the context"),
        ({"examples": [{"a": 1}], "context": 1}, "the context is no object of features"),
        ({"examples": [{"a": 1}], "signature_name": "whole"}, "is for predict, not regress"),
    ],
)
def test_malformed_examples_are_refused(body: Any, text: str) -> None:
    assert text in error(post(several(), body, path="/v1/models/model:regress"))


def test_a_signature_for_examples_can_be_asked_by_predict() -> None:
    body = {"instances": ["abc"], "signature_name": "value"}
    assert said(post(several(), body)) == {"predictions": [{"outputs": [3.0], "texts": "abc"}]}


def test_a_request_is_decoded_before_the_model_runs_and_encoded_after() -> None:
    request = Request(headers={"content-type": "application/json"}, body=b"[[1, 2]]")
    prepared = half_plus_three().prepare(request)
    assert isinstance(prepared, Prepared)
    assert (prepared.model.version, prepared.signature) == (124, "serving_default")
    assert prepared.inputs["x"].dtype == np.float32
    assert prepared.finish({"y": np.zeros((1, 2), np.float32)}).body == (
        b'{"predictions":[[0.0,0.0]]}'
    )
