"""Bodies and answers with TensorFlow's own types, models and tf.Example."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from sm_runtime.serving.json_body import asked, inputs, tensorflow_example
from sm_runtime.serving.predictor import Predictor
from tests.unit.serving.numpy_models import (
    Models,
    NumpyModel,
    error,
    post,
    predictor,
    said,
    signature,
)

pytestmark = pytest.mark.tensorflow


def through(dtype: str, shape: Any = (None, None)) -> Predictor:
    """Return a predictor whose model is TensorFlow's identity."""
    return predictor(
        {"x": (dtype, shape)},
        {"y": (dtype, shape)},
        lambda given: {"y": tf.identity(tf.constant(given["x"], dtype)).numpy()},
    )


@pytest.mark.parametrize(
    "dtype",
    [
        *("bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
    ],
)
def test_tensorflow_takes_and_gives_each_number_bit_by_bit(dtype: str) -> None:
    kind = tf.dtypes.as_dtype(dtype)
    size = kind.size
    bits = np.random.default_rng(0).integers(0, 256, 1000 * size, np.uint8)
    array = bits.view(kind.as_numpy_dtype).reshape(-1, 2)
    if kind.is_floating:
        with np.errstate(invalid="ignore"):
            array = array[np.isfinite(array).all(axis=1)]
    wide = array.astype(np.float64) if kind.is_floating else array
    for form in ("instances", "inputs"):
        answer = said(post(through(dtype), {form: wide.tolist()}))
        (found,) = answer.values()
        assert np.array(found, kind.as_numpy_dtype).tobytes() == array.tobytes()


def test_nan_of_bfloat16_is_a_token() -> None:
    answer = post(through("bfloat16"), '{"instances": [[NaN, Infinity]]}')
    assert answer.body == b'{"predictions":[[NaN,Infinity]]}'


def test_bfloat16_travels_in_npy_too() -> None:
    array = np.array([[1.5, -2.25]], tf.bfloat16.as_numpy_dtype)
    for given in (array, array.astype(np.float32)):
        stream = io.BytesIO()
        np.save(stream, given)
        answer = post(
            through("bfloat16"), stream.getvalue(), "application/x-npy", "application/x-npy"
        )
        assert np.load(io.BytesIO(answer.body)).tolist() == [[1.5, -2.25]]
    assert "is out of its range" in error(
        post(through("bfloat16"), {"instances": [[3.4e38, 1e39]]})
    )


def test_tensorflow_takes_a_view_of_an_npy_body() -> None:
    array = np.random.default_rng(0).random((10, 28), np.float32)
    stream = io.BytesIO()
    np.save(stream, array)
    shifted = memoryview(b"x" + stream.getvalue())[1:]
    answer = post(through("float32"), shifted, "application/x-npy", "application/x-npy")
    assert answer.body == stream.getvalue()


def test_a_jpeg_by_each_way_is_the_same_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = tf.io.encode_jpeg(pixels).numpy()

    def compute(given: Mapping[str, Any]) -> Mapping[str, Any]:
        decoded = [tf.io.decode_jpeg(one).numpy() for one in given["image"]]
        return {"pixels": np.stack(decoded)}

    served = predictor(
        {"image": ("string", (None,))}, {"pixels": ("uint8", (None, None, None, 3))}, compute
    )
    expected = {"predictions": [tf.io.decode_jpeg(image).numpy().tolist()]}
    standard = base64.b64encode(image).decode()
    safe = base64.urlsafe_b64encode(image).decode()
    assert said(post(served, {"instances": [{"b64": standard}]})) == expected
    assert said(post(served, {"instances": [{"b64": safe}]})) == expected
    assert said(post(served, image, "image/jpeg")) == expected


def test_examples_are_tensorflows() -> None:
    found = tf.train.Example.FromString(
        tensorflow_example({"n": [1, -(2**63)], "f": [0.5, 2.0], "s": [b"\xff", b""], "none": []})
    ).features.feature
    assert list(found["n"].int64_list.value) == [1, -(2**63)]
    assert list(found["f"].float_list.value) == [0.5, 2.0]
    assert list(found["s"].bytes_list.value) == [b"\xff", b""]
    assert found["none"].WhichOneof("kind") is None


def test_half_plus_three_regresses_examples() -> None:
    one = signature(
        {"inputs": ("string", (None,))},
        {"outputs": ("float32", (None, 1))},
        name="tensorflow/serving/regress",
        method="regress",
    )

    def compute(given: Mapping[str, Any]) -> Mapping[str, Any]:
        spec = {"x": tf.io.FixedLenFeature([1], tf.float32), "add": tf.io.VarLenFeature(tf.int64)}
        parsed = tf.io.parse_example(tf.constant(given["inputs"]), spec)
        added = tf.cast(tf.sparse.to_dense(parsed["add"]), tf.float32)
        return {"outputs": (parsed["x"] * 0.5 + 3 + added).numpy()}

    served = Predictor(
        Models([NumpyModel({one.name: one}, compute, default_signature="serving_default")])
    )
    body = {"signature_name": one.name, "examples": [{"x": 1.0}, {"x": 2.0}], "context": {"add": 0}}
    answer = post(served, body, attributes="tfs-model-name=model,tfs-method=regress")
    assert said(answer) == {"results": [3.5, 4.0]}


def test_tensors_are_what_tensorflow_makes_of_the_same_lists() -> None:
    value = [[["a", "é"]], [["", "b"]]]
    spec = signature({"x": ("string", (None, 1, 2))}, {})
    body = json.dumps({"instances": value}).encode()
    found = inputs(spec, asked(body, lines=False))[0]["x"]
    assert tf.reduce_all(tf.constant(found) == tf.constant(value))
