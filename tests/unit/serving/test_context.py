"""Headers as handlers see them, and bodies that nobody has to trust."""

from __future__ import annotations

import contextlib
import io

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sm_runtime.serving import coding
from sm_runtime.serving.coding import CSV, JSON, NPY
from sm_runtime.serving.context import Context, Surroundings
from sm_runtime.serving.media import plain_type, preferred
from sm_runtime.serving.values import ATTRIBUTES, Request, RequestError, attributes

AROUND = Surroundings(model_dir="/opt/ml/model", default_accept=CSV)


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("", CSV),
        ("*/*", CSV),
        ("application/*", CSV),
        ("application/json", JSON),
        ("application/json, text/csv", JSON),
        ("text/csv;q=0.2, application/json;q=0.9", JSON),
        ("image/png;q=0, text/csv", CSV),
        ("a/b;q=nonsense, c/d", "a/b"),
        ("Application/JSON; charset=utf-8", JSON),
        ("application/json;verbose=true", "application/json;verbose=true"),
        (",", CSV),
    ],
)
def test_one_type_is_chosen_of_those_that_are_preferred(header: str, chosen: str) -> None:
    assert preferred(header, CSV) == chosen
    context = Context(AROUND, Request(headers={"accept": header} if header else {}))
    assert context.accept_header == chosen


@pytest.mark.parametrize(
    ("header", "seen"),
    [
        ("text/csv; charset=utf-8", CSV),
        ('TEXT/CSV;charset="UTF-8"', CSV),
        ("text/csv;", CSV),
        ("text/csv; charset=latin-1", "text/csv; charset=latin-1"),
        ("text/csv; header=present", "text/csv; header=present"),
    ],
)
def test_a_charset_that_says_nothing_new_is_left_out(header: str, seen: str) -> None:
    assert plain_type(header) == seen


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("trace=1;x", {}),
        ("tfs-model-name=a, tfs-model-version=2",
         {"tfs-model-name": "a", "tfs-model-version": "2"}),
        ("trace=1;tfs-method=classify;y", {"tfs-method": "classify"}),
        ("tfs-model-name=", {}),
    ],
)  # fmt: skip
def test_of_custom_attributes_only_those_of_the_server_are_read(
    text: str, found: dict[str, str]
) -> None:
    assert attributes({ATTRIBUTES: text}) == found


def test_the_methods_of_multi_model_servers_context() -> None:
    headers = {"content-type": CSV, "x-amzn-sagemaker-inference-id": "7"}
    context = Context(AROUND, Request(headers=headers))
    assert context.get_request_id() == "7"
    assert context.get_request_header(0, "Content-Type") == CSV
    assert context.get_request_header("X-None") is None
    assert context.get_all_request_header() == headers
    assert context.system_properties["model_dir"] == "/opt/ml/model"
    processor = context.request_processor[0]
    assert processor.get_request_properties()["Content-Type"] == CSV
    assert processor.get_request_property("content-TYPE") == CSV
    processor.report_status(404)
    context.set_response_content_type(0, "a/b")
    assert context.reply.status == 404
    context.set_response_status(202, "Accepted")
    assert context.reply.status == 202
    assert context.get_response_headers() == processor.get_response_headers()
    assert context.get_response_headers() == {"content-type": "a/b"}


HEADER = b"\x93NUMPY\x01\x00"


@given(st.binary(max_size=200), st.sampled_from((JSON, CSV, NPY)), st.booleans())
def test_no_body_does_more_than_be_refused(body: bytes, kind: str, prefixed: bool) -> None:
    with contextlib.suppress(RequestError):
        coding.decode(HEADER + body if prefixed else body, kind)


@given(
    st.sampled_from(("<f4", ">f8", "<i8", "?", "<c16", "<U3", "S2", "<M8[s]")),
    st.lists(st.integers(0, 3), max_size=3),
    st.booleans(),
)
def test_every_array_without_objects_is_read_as_numpy_reads_it(
    dtype: str, shape: list[int], fortran: bool
) -> None:
    array = numpy.zeros(shape, dtype, order="F" if fortran else "C")
    stream = io.BytesIO()
    numpy.save(stream, array)
    found = coding.decode(stream.getvalue(), NPY)
    assert found.dtype == array.dtype and found.shape == array.shape
    assert found.tobytes() == array.tobytes() and found.flags.writeable
