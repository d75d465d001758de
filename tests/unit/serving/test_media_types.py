"""Content-Type and Accept, with parameters and quality values."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from sm_runtime.serving.formats import accepted
from sm_runtime.serving.media import media_types
from sm_runtime.serving.values import RequestError
from tests.unit.serving.numpy_models import Predictor, echo, error, half_plus_three, post, said

JSON, LINES, CSV, NPY = "application/json", "application/jsonlines", "text/csv", "application/x-npy"
POSSIBLE = (JSON, LINES, CSV, NPY)


def as_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([[1, 2]], np.float32))
    return stream.getvalue()


BODIES: dict[str, Any] = {JSON: "[[1, 2]]", CSV: "1,2", NPY: as_npy()}
WRITTEN = [
    "{}",
    "{}; charset=utf-8",
    '{};charset="UTF-8"; boundary=x',
    " {} ; Charset=Us-Ascii",
]


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("name", BODIES)
def test_parameters_and_letter_case_of_a_content_type_change_nothing(
    name: str, written: str
) -> None:
    for one in (name, name.upper()):
        answer = post(half_plus_three((None, 2)), BODIES[name], written.format(one))
        assert said(answer) == {"predictions": [[3.5, 4.0]]}


@pytest.mark.parametrize("header", [None, "", "text/html", "image/png", "application/x-pickle"])
def test_other_content_types_are_refused_with_the_list(header: str | None) -> None:
    found = error(post(half_plus_three(), "[1]", header), 415)
    assert all(one in found for one in (JSON, LINES, "application/jsons", CSV, NPY, "image/*"))


def test_bodies_in_other_encodings_are_refused() -> None:
    found = error(post(half_plus_three(), "1", "text/csv; charset=latin-1"), 415)
    assert "'latin-1' is not taken, only utf-8" in found


def test_raw_bytes_go_to_one_string_input_alone() -> None:
    assert said(post(echo("string"), b"\xff", "image/png"))["predictions"] == [{"b64": "/w=="}]
    assert said(post(echo("string", (None,)), b"a", "image/png")) == {"predictions": ["a"]}
    error(post(echo("string", (None, 2)), b"a", "image/png"), 415)


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/*", CSV),
        ("Text/CSV", CSV),
        ("text/csv; charset=utf-8; header=absent", CSV),
        ("text/csv;q=0.5, application/x-npy", NPY),
        ("text/csv, application/x-npy", CSV),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("text/html, text/csv;q=0.1", CSV),
        ("application/json;q=0, */*", LINES),
        ("application/json;q=0.2, application/x-npy;q=high", NPY),
        ("application/jsonlines, application/json", LINES),
    ],
)
def test_the_type_that_is_asked_most_is_given(header: str | None, chosen: str) -> None:
    assert accepted(header, JSON, POSSIBLE) == chosen


def test_the_default_is_for_requests_that_ask_for_none() -> None:
    assert accepted("*/*", CSV, POSSIBLE) == CSV
    assert accepted(None, "text/html", POSSIBLE) == JSON
    assert accepted("application/*", CSV, POSSIBLE) == JSON
    served: Predictor = echo("float32", default_accept="text/csv; charset=utf-8")
    assert post(served, [[1, 2]]).body == b"1.0,2.0"
    assert post(served, [[1, 2]], accept="application/json").body == b'{"predictions":[[1.0,2.0]]}'


@pytest.mark.parametrize("header", ["text/html", "*/*;q=0", "application/json;q=0", "image/*"])
def test_what_cannot_be_given_is_refused_with_the_list(header: str) -> None:
    with pytest.raises(RequestError, match="application/json, application/jsonlines") as caught:
        accepted(header, JSON, POSSIBLE)
    assert caught.value.status == 406


# Accept headers as the serializers of the SDK, requests, curl and browsers send them.
ASKED = [JSON, "application/json; verbose", LINES, CSV, "text/csv;charset=utf-8", NPY, "*/*"]
ASKED += [f"{CSV}, {JSON}", f"{NPY}, {JSON}", "text/*", "application/json, */*;q=0.1", "a/b, */*"]


@pytest.mark.parametrize("header", ASKED)
@pytest.mark.parametrize("name", BODIES)
def test_each_body_is_answered_in_each_type(name: str, header: str) -> None:
    served = half_plus_three((None, 2))
    answer = post(served, BODIES[name], name, header)
    given = answer.headers["content-type"]
    assert given == accepted(header, JSON, POSSIBLE)
    if given == NPY:
        found = np.load(io.BytesIO(answer.body)).tolist()
    elif given == CSV:
        found = [[float(cell) for cell in line.split(b",")] for line in answer.body.splitlines()]
    else:
        found = said(answer)["predictions"]
    assert found == [[3.5, 4.0]]


def test_malformed_headers_are_media_types_without_a_meaning() -> None:
    for header in (";", ",,;q", "a/b;;=;q=", "\u20ac", "x" * 10_000):
        media_types(header)
        error(post(half_plus_three(), "[1]", header), 415)
    assert post(half_plus_three(), "[1]", accept=";,").status == 406
