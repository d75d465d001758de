"""Whatever is sent is answered: by the model, or with an error of the request."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.serving.numpy_models import Predictor, echo, post, predictor

TYPES = ("application/json", "application/jsonlines", "application/jsons", "text/csv")
TYPES += ("application/x-npy", "application/octet-stream")
SERVED = [
    echo("float32", (None, 2)),
    echo("string", (None,)),
    echo("int64"),
    echo("bool", ()),
    predictor(
        {"a": ("uint8", (None,)), "b": ("string", (None, None))},
        {"a": ("uint8", (None,)), "b": ("string", (None, None))},
        dict,
    ),
]
PIECES = [b"[", b"]", b"{", b"}", b",", b":", b'"', b"'", b"\\", b"\\u", b"\\ud800", b"\n", b"\r"]
PIECES += [b"NaN", b"-Infinity", b"null", b"true", b"1e999", b"-0", b"0.1", b"9" * 30, b"\x00"]
PIECES += [b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"b64"', b'"x"', b'"instances"', b'"inputs"']
PIECES += [b'"examples"', b'"signature_name"', b"PK\x03\x04", b"\x93NUMPY\x01\x00", b" ", b"\t"]


def seeds() -> list[bytes]:
    """Return valid bodies, to be spoiled."""
    stream = io.BytesIO()
    np.save(stream, np.ones((2, 2), np.float32))
    rows: list[Any] = [
        {"instances": [[1, 2.5], [3, 4]]},
        {"inputs": {"a": [1, 2], "b": [["x", "y"], ["z", {"b64": "eA=="}]]}},
        {"instances": [{"a": 1, "b": ["x"]}], "signature_name": "serving_default"},
        [[1, 2], [3, 4]],
        {"b64": "eA=="},
        {"examples": [{"a": 1}], "context": {"b": "x"}},
    ]
    bodies = [json.dumps(one).encode() for one in rows]
    return [*bodies, b'1,2\n"3",4\n', b"[1,2]\n[3,4]\n", stream.getvalue()]


def check(served: Predictor, body: bytes, content_type: str, accept: str | None) -> None:
    answer = post(served, body, content_type, accept)
    assert answer.status in (200, 400, 406, 415)
    if answer.status != 200:
        assert json.loads(answer.body)["error"]
        assert len(answer.body) < 5000


@pytest.mark.parametrize("seed", range(4))
def test_bodies_that_are_spoiled_at_random_are_answered(seed: int) -> None:
    chance = random.Random(seed)
    valid = seeds()
    for _ in range(3000):
        body = bytearray(chance.choice(valid))
        for _ in range(chance.randint(1, 4)):
            at, piece = chance.randint(0, len(body)), chance.choice([*PIECES, chance.choice(valid)])
            body[at : at + chance.choice((0, 0, 1, 2, 8))] = piece * chance.choice((1, 1, 1, 40))
        accept = chance.choice((None, None, "text/csv", "application/x-npy", "application/jsons"))
        check(chance.choice(SERVED), bytes(body), chance.choice(TYPES), accept)


@given(st.sampled_from(SERVED), st.binary() | st.text().map(str.encode), st.sampled_from(TYPES))
def test_any_bytes_are_answered(served: Predictor, body: bytes, content_type: str) -> None:
    check(served, body, content_type, None)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["x", "a", "b", "b64", "instances", "y"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(
    st.sampled_from(SERVED),
    st.dictionaries(
        st.sampled_from(["instances", "inputs", "examples", "context", "signature_name"]),
        JSON_VALUES,
        max_size=3,
    )
    | JSON_VALUES,
)
def test_any_json_is_answered(served: Predictor, value: Any) -> None:
    for content_type in TYPES[:3]:
        check(served, json.dumps(value).encode(), content_type, None)


def test_wide_and_deep_bodies_are_answered() -> None:
    wide = b'{"instances":[' + b",".join([b"[" * 40 + b"]" * 40] * 5000) + b"]}"
    for body in (wide, b'{"a":' * 5000, b"[" * 10**6, b"1" * 10**6, b'"' * 10**6, b"\n" * 10**6):
        for content_type in TYPES:
            check(SERVED[0], body, content_type, None)
            check(SERVED[2], body, content_type, None)
