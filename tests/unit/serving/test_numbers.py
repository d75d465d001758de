"""Numbers keep each bit through JSON, CSV and npy, as the SDK's deserializers read them."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.unit.serving.numpy_models import echo, post, predictor

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "float32", "float64")
SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, max_side=5)


def same(found: Any, expected: Any) -> None:
    """Compare all bits but those of NaN, which has one token."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    odd = np.isnan(expected) if expected.dtype.kind == "f" else np.zeros(expected.shape, bool)
    assert found[~odd].tobytes() == expected[~odd].tobytes()
    assert np.isnan(found[odd]).all()


def as_dtype(value: Any, dtype: str) -> Any:
    """Return nested lists as numpy reads them, integers beyond 2**53 too."""
    return np.array(value, dtype)


@pytest.mark.parametrize("dtype", (*INTEGERS, *FLOATS, "bool"))
def test_json_of_an_array_reads_back_equal(dtype: str) -> None:
    @given(arrays.arrays(dtype, SHAPES))
    def check(array: Any) -> None:
        body = json.dumps({"instances": array.tolist()})  # NaN is a token here, too.
        found = json.load(io.BytesIO(post(echo(dtype), body).body))
        same(as_dtype(found["predictions"], dtype), array)
        found = json.load(io.BytesIO(post(echo(dtype), body.replace("instances", "inputs")).body))
        same(as_dtype(found["outputs"], dtype), array)

    check()


@pytest.mark.parametrize("dtype", (*INTEGERS, *FLOATS))
def test_csv_of_an_array_reads_back_equal(dtype: str) -> None:
    @given(arrays.arrays(dtype, arrays.array_shapes(min_dims=2, max_dims=2, max_side=5)))
    def check(array: Any) -> None:
        body = "\n".join(",".join(map(repr, row)) for row in array.tolist())
        served = echo(dtype, (None, None))
        answer = post(served, body, "text/csv", "text/csv")
        read = int if dtype in INTEGERS else float
        rows = [[read(one) for one in row] for row in csv.reader(io.StringIO(answer.body.decode()))]
        same(as_dtype(rows, dtype), array)

    check()


@pytest.mark.parametrize("dtype", (*INTEGERS, *FLOATS, "bool", "complex64", "complex128"))
def test_npy_of_an_array_is_given_back_as_it_was(dtype: str) -> None:
    @given(arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0)))
    def check(array: Any) -> None:
        stream = io.BytesIO()
        np.save(stream, array)
        answer = post(echo(dtype), stream.getvalue(), "application/x-npy", "application/x-npy")
        assert answer.body == stream.getvalue()

    check()


@given(st.lists(st.binary(), min_size=1))
def test_bytes_read_back_equal(values: list[bytes]) -> None:
    given_values = np.empty(len(values), object)
    given_values[:] = values
    served = predictor(
        {"x": ("int8", (None,))},
        {"y": ("string", (None,)), "z_bytes": ("string", (None,))},
        lambda _: {"y": given_values, "z_bytes": given_values},
    )
    rows = json.loads(post(served, {"instances": [1]}).body)["predictions"]
    again = echo("string", (None,))
    for name in ("y", "z_bytes"):
        body = {"instances": [row[name] for row in rows]}
        assert json.loads(post(again, body).body)["predictions"] == [row["y"] for row in rows]
    assert all(set(row["z_bytes"]) == {"b64"} for row in rows)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_a_million_random_bit_patterns_read_back_equal(dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 256, 1_000_000 * np.dtype(dtype).itemsize, np.uint8)
    array = bits.view(dtype)
    if dtype == "float32":
        array = array[np.isfinite(array)]
    served = predictor({"x": (dtype, ())}, {"y": (dtype, (None,))}, lambda _: {"y": array})
    found = json.loads(post(served, {"inputs": 0}).body)["outputs"]
    same(as_dtype(found, dtype), array)
    body = {"inputs": array[:100_000].tolist()}
    found = json.loads(post(echo(dtype, (None,)), body).body)["outputs"]
    same(as_dtype(found, dtype), array[:100_000])


def test_floats_are_written_as_short_as_tensorflow_serving_writes_them() -> None:
    array = np.array([0.1, 1e-7, 6e-7, 0.96, 16777216, 3.4028235e38, 1e-45], np.float32)
    served = predictor({"x": ("int8", ())}, {"y": ("float32", (None,))}, lambda _: {"y": array})
    # orjson writes the plus since 3.11.7.
    assert post(served, {"inputs": 0}).body.replace(b"e+", b"e") == (
        b'{"outputs":[0.1,1e-7,6e-7,0.96,16777216.0,3.4028235e38,1e-45]}'
    )


def test_arrays_in_any_layout_are_written() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4).T[::2]
    served = predictor({"x": ("int8", ())}, {"y": ("int32", None)}, lambda _: {"y": array})
    assert json.loads(post(served, {"inputs": 0}).body)["outputs"] == array.tolist()
    empty = np.zeros((2, 0, 3), np.float32)
    served = predictor({"x": ("int8", ())}, {"y": ("float32", None)}, lambda _: {"y": empty})
    assert json.loads(post(served, {"inputs": 0}).body)["outputs"] == [[], []]
    assert post(served, {"inputs": 0}, accept="text/csv").body == b"\n"
