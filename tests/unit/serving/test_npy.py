"""npy in and out: no pickles, no copies, nothing allocated for a header's word."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import numpy as np
import pytest

from sm_runtime.serving.formats import npy_inputs, read_npy
from sm_runtime.serving.values import RequestError
from tests.unit.serving.numpy_models import echo, error, post, predictor, said, signature

NPY = "application/x-npy"


def npy(array: Any, *, pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=pickle)
    return stream.getvalue()


def header(text: bytes, version: int = 1, size: int | None = None) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(text) if size is None else size)
    return b"\x93NUMPY" + bytes([version, 0]) + length + text


def test_an_array_is_read_and_written_without_a_copy() -> None:
    images = np.random.default_rng(0).random((1000, 28, 28), np.float32)
    body = npy(images)
    spec = signature({"x": ("float32", (None, 28, 28))}, {})
    found = npy_inputs(spec, body)["x"]
    assert np.shares_memory(found, np.frombuffer(body, np.uint8))
    assert found.tobytes() == images.tobytes()
    answer = post(echo("float32", (None, 28, 28)), body, NPY, accept=NPY)
    assert answer.headers["content-type"] == NPY
    assert answer.body == body


def test_npy_and_json_have_one_answer() -> None:
    images = np.random.default_rng(0).random((3, 2), np.float32)
    served = echo("float32", (None, 2))
    assert post(served, npy(images), NPY).body == post(served, images.tolist()).body


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        ("float32", np.array([[1, 2], [3, 4]], ">f4")),
        ("float32", np.array([[1, 2], [3, 4]], np.float32, order="F")),
        ("float32", np.array([[1, 2], [3, 4]], np.float64, order="F")),
        ("float32", np.array([[1, 2], [3, 4]], np.uint8)),
        ("float16", np.array([[1, 2], [3, 4]], np.int64)),
        ("uint8", np.array([[1, 2], [3, 4]], np.int64)),
        ("int64", np.array([[1, 2], [3, 4]], np.int8, order="F")),
    ],
)
def test_numbers_of_other_types_are_taken_where_each_can_be_held(dtype: str, array: Any) -> None:
    spec = signature({"x": (dtype, (None, 2))}, {})
    found = npy_inputs(spec, npy(array))["x"]
    assert found.dtype == np.dtype(dtype) and found.flags.c_contiguous and found.flags.aligned
    assert found.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("dtype", "array", "text"),
    [
        ("uint8", np.array([[1, 300]]), "int64 [1, 2] was given"),
        ("int32", np.array([[1.0, 2.0]]), "float64 [1, 2] was given"),
        ("float32", np.array([[1e39, 0]]), "1e+39 is out of its range"),
        ("float32", np.array([[True, False]]), "bool [1, 2] was given"),
        ("bool", np.array([[1, 0]]), "int64 [1, 2] was given"),
        ("float32", np.zeros((2, 3), np.float32), "shape [2, 3] was given"),
        ("float32", np.zeros(2, np.float32), "shape [2] was given"),
    ],
)
def test_an_array_that_the_input_cannot_hold_is_refused(dtype: str, array: Any, text: str) -> None:
    found = error(post(echo(dtype, (None, 2)), npy(array), NPY))
    assert "'x'" in found and f"{dtype} [None, 2]" in found and text in found


def test_arrays_of_text_fill_string_inputs() -> None:
    served = echo("string", (None,))
    assert said(post(served, npy(np.array(["é", "b"])), NPY)) == {"predictions": ["é", "b"]}
    assert said(post(served, npy(np.array([b"\xff"])), NPY)) == {"predictions": [{"b64": "/w=="}]}


SHAPE = b"'fortran_order': False, 'shape': "


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (npy(np.array([{}, 1], object), pickle=True), "a pickle"),
        (npy(np.zeros(2, [("a", "f4"), ("b", "i8")])), "records"),
        (header(b"{'descr': '<f4', " + SHAPE + b"(1000000000000,), }"), "0 bytes of data, where"),
        (header(b"{'descr': '<f4', " + SHAPE + b"(" + b"9" * 19 + b",), }"), "impossible shape"),
        (header(b"{'descr': '<f4', " + SHAPE + b"(" + b"0," * 40 + b"), }"), "impossible shape"),
        (header(b"{'descr': '<f4', " + SHAPE + b"(-1,), }"), "invalid header"),
        (header(b"{'descr': '<S0', " + SHAPE + b"(1,), }"), "impossible shape"),
        (header(b"{'descr': '<q9', " + SHAPE + b"(1,), }"), "unknown type"),
        (header(b"{'descr': '<f4', 'descr': '<f4', " + SHAPE + b"(1,), }"), "invalid header"),
        (header(b"{'descr': (1,), " + SHAPE + b"'<f4', }"), "impossible shape or type"),
        (header(b"__import__('os').abort()"), "invalid header"),
        (header(b"(" * 9000), "invalid header"),
        (header(b" " * 9000), "invalid header"),
        (header(b"{}", 2, 2**31), "a header of 2147483648 bytes, at most 10000"),
        (header(b"{}", 1, 9000), "invalid header"),
        (header(b"{}", 9), "not a npy file"),
        (b"\x93NUMPY", "not a npy file"),
        (b"", "not a npy file"),
        (npy(np.zeros(3))[:-1], "23 bytes of data, where its header says 24"),
        (npy(np.zeros(3)) + b"x", "25 bytes of data, where its header says 24"),
    ],
)
def test_a_hostile_file_is_refused_by_its_header(body: bytes, text: str) -> None:
    assert text in error(post(echo("float32", None), body, NPY))


def test_headers_of_all_versions_and_other_writers_are_read() -> None:
    body = struct.pack("<2f", 1, 2)
    for version in (1, 2, 3):
        for text in (
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }   \n",
            b'{"shape":(2,),"descr":"<f4","fortran_order":False}',
        ):
            assert read_npy(header(text, version) + body).tolist() == [1.0, 2.0]
    assert read_npy(memoryview(npy(np.float32(3)))).shape == ()


def test_archives_are_another_media_type() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.npy", npy(np.zeros(1)))
    served = echo("float32")
    assert "npz archive" in error(post(served, stream.getvalue(), NPY), 415)
    assert NPY in error(post(served, stream.getvalue(), "application/x-npz"), 415)


def test_several_inputs_and_outputs_have_no_place_in_npy() -> None:
    served = predictor(
        {"a": ("int8", (None,)), "b": ("int8", (None,))},
        {"a": ("int8", (None,)), "b": ("int8", (None,))},
        dict,
    )
    assert "npy has no names of inputs" in error(post(served, npy(np.zeros(1, np.int8)), NPY))
    found = error(post(served, {"inputs": {"a": [1], "b": [1]}}, accept=NPY), 406)
    assert "text/csv" in found and "x-npy" not in found.partition("answered as")[2]
    with pytest.raises(RequestError):
        read_npy(b"PK\x03\x04")
