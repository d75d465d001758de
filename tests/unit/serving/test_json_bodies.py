"""JSON bodies of all forms, the mistakes in them, and the answers."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from sm_runtime.serving.json_body import asked, inputs
from sm_runtime.serving.signature import example_body, example_text
from tests.unit.serving.numpy_models import (
    echo,
    error,
    half_plus_three,
    post,
    predictor,
    said,
    signature,
)

ROW = [1.0, 2.0, 5.0]
HALF = [3.5, 4.0, 5.5]


@pytest.mark.parametrize(
    ("body", "content_type", "predictions"),
    [
        ({"instances": ROW}, "application/json", HALF),
        ({"instances": [ROW, ROW]}, "application/json", [HALF, HALF]),
        ("[1.0, 2.0, 5.0]\n[1.0, 2.0, 5.0]", "application/json", [HALF, HALF]),
        ("[1.0, 2.0, 5.0]\n[1.0, 2.0, 5.0]", "application/jsonlines", [HALF, HALF]),
        ("[1.0, 2.0, 5.0]\r\n\r\n[1.0, 2.0, 5.0]\r\n", "application/jsonlines", [HALF, HALF]),
        ("[1.0, 2.0, 5.0]\n[1.0, 2.0, 5.0]", "application/jsons", [HALF, HALF]),
        ('{"x": [1.0, 2.0, 5.0]}\n{"x": [1.0, 2.0, 5.0]}', "application/json", [HALF, HALF]),
        ('{"x": [1.0, 2.0, 5.0]}{"x": [1, 2, 5]}', "application/jsons", [HALF, HALF]),
        (ROW, "application/json", [HALF]),
        ([ROW, ROW], "application/json", [HALF, HALF]),
        ({"x": ROW}, "application/json", [HALF]),
        (1.0, "application/json", [3.5]),
        ("[1.0, 2.0, 5.0]", "application/jsonlines", [HALF]),
        ('{"instances": [1.0, 2.0, 5.0]}', "application/jsonlines", HALF),
        ("\ufeff[1.0, 2.0, 5.0]", "application/json", [HALF]),
    ],
)
def test_bodies_that_awss_image_takes_have_its_answers(
    body: Any, content_type: str, predictions: Any
) -> None:
    answer = post(half_plus_three(), body, content_type, attributes="tfs-model-version=123")
    assert said(answer) == {"predictions": predictions}


def test_column_form_is_answered_in_column_form() -> None:
    assert said(post(half_plus_three(), {"inputs": ROW})) == {"outputs": HALF}
    assert said(post(half_plus_three(), {"inputs": {"x": ROW}})) == {"outputs": HALF}
    assert said(post(half_plus_three(()), {"inputs": 1})) == {"outputs": 3.5}


def test_a_list_without_a_key_is_one_instance_or_several_as_the_rank_says() -> None:
    assert said(post(half_plus_three((None,)), ROW)) == {"predictions": HALF}
    assert said(post(half_plus_three((None, 3)), ROW)) == {"predictions": [HALF]}
    assert said(post(half_plus_three((None, 1, 3)), [ROW])) == {"predictions": [[HALF]]}
    assert said(post(half_plus_three((None, 3)), [ROW])) == {"predictions": [HALF]}


def two() -> Any:
    return predictor(
        {"a": ("int32", (None,)), "text": ("string", (None, 2))},
        {"sum": ("int32", (None,)), "raw_bytes": ("string", (None,))},
        lambda given: {"sum": given["a"] + 1, "raw_bytes": given["text"][:, 0]},
    )


def test_named_inputs_and_outputs_by_rows_and_by_columns() -> None:
    rows = [{"a": 1, "text": ["x", "y"]}, {"a": 2, "text": [{"b64": "/w=="}, "é"]}]
    x, odd = {"b64": "eA=="}, {"b64": "/w=="}
    expected = [{"sum": 2, "raw_bytes": x}, {"sum": 3, "raw_bytes": odd}]
    assert said(post(two(), {"instances": rows})) == {"predictions": expected}
    assert said(post(two(), rows)) == {"predictions": expected}
    assert said(post(two(), rows[0])) == {"predictions": expected[:1]}
    columns = {"a": [1, 2], "text": [["x", "y"], [{"b64": "_w"}, "é"]]}
    assert said(post(two(), {"inputs": columns})) == {
        "outputs": {"sum": [2, 3], "raw_bytes": [x, odd]}
    }


def test_strings_are_text_where_they_are_utf8_and_base64_elsewhere() -> None:
    body = {"instances": ["é", {"b64": "/w=="}, {"b64": "w6k="}]}
    assert said(post(echo("string"), body)) == {"predictions": ["é", {"b64": "/w=="}, "é"]}


@pytest.mark.parametrize("text", ["-_8=", "-_8", "+/8=", "+/8", " +/\n8= "])
def test_base64_of_both_alphabets_is_taken(text: str) -> None:
    spec = signature({"x": ("string", (None,))}, {})
    tensors, _ = inputs(spec, asked(json.dumps({"b64": text}).encode(), lines=False))
    assert tensors["x"].tolist() == [b"\xfb\xff"]


def test_an_image_by_each_way_is_the_same_tensor() -> None:
    image = bytes(range(256))
    served = echo("string", (None,))
    standard = base64.b64encode(image).decode()
    safe = base64.urlsafe_b64encode(image).decode()
    answers = [
        post(served, {"instances": [{"b64": standard}]}),
        post(served, {"instances": [{"x": {"b64": safe}}]}),
        post(served, [{"b64": safe}]),
        post(served, {"b64": standard}),
        post(served, image, "image/jpeg"),
        post(served, image, "application/x-image"),
        post(served, image, "application/octet-stream"),
    ]
    assert [said(one) for one in answers] == [{"predictions": [{"b64": standard}]}] * 7


WRONG = [
    ("int32", 1.5, "int32 [None], but 1.5 at [0] was given"),
    ("uint8", 300, "300 at [0] is not in 0 to 255"),
    ("int64", 2**63, "9223372036854775808 at [0] is not in"),
    ("uint64", -1, "-1 at [0] is not in 0 to"),
    ("uint64", 2**64, "1.8446744073709552e+19 at [0] was given"),
    ("float32", True, "true at [0] was given"),
    ("float32", None, "null at [0] was given"),
    ("float32", "1", "'1' at [0] was given"),
    ("float32", {"a": 1}, "instance 0 has 'a', which is no input"),
    ("float32", 1e39, "1e+39 at [0] is out of its range"),
    ("float16", 70000, "70000.0 at [0] is out of its range"),
    ("float32", [1.0], "shape [1, 1] was given"),
    ("bool", 1, "1 at [0] was given"),
    ("string", 1, "1 at [0] was given"),
    ("string", {"b64": "?"}, '"b64" without valid base64 was given at [0]'),
    ("string", {"b64": "A"}, '"b64" without valid base64 was given at [0]'),
    ("complex64", 1.0, "send application/x-npy"),
]


@pytest.mark.parametrize(("dtype", "value", "text"), WRONG)
def test_a_value_of_another_type_is_refused_by_name(dtype: str, value: Any, text: str) -> None:
    found = error(post(echo(dtype, (None,)), {"instances": [value]}))
    assert found.startswith("signature 'serving_default'")
    assert "'x'" in found and dtype in found and text in found


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"instances": [[1, 2], [3]]}, "lists of 1 and 2 values side by side"),
        ({"instances": [[1], [3, 4]]}, "lists of 1 and 2 values side by side"),
        ({"instances": [[1], "2"]}, "takes float32 [None, 2], but "),
        ({"instances": [[[1], "2"], [[1], {"2": 3}]]}, "takes float32 [None, 2], but "),
        ({"instances": [[1, 2], 3]}, "lists and single values side by side"),
        ({"instances": [1, 2]}, "takes float32 [None, 2], but shape [2] was given"),
        ({"instances": [[1, 2, 3]]}, "takes float32 [None, 2], but shape [1, 3] was given"),
        ({"instances": [[[1, 2]]]}, "but shape [1, 1, 2] was given"),
        ({"instances": []}, '"instances" is empty'),
        ({"instances": 1}, '"instances" is no list'),
        ({"inputs": {"y": [[1, 2]]}}, "\"inputs\" lacks 'x' and \"inputs\" has 'y'"),
        ({"instances": [{"y": [1, 2]}]}, "instance 0 lacks 'x' and instance 0 has 'y'"),
        ({"instances": [{"x": [1, 2]}, [1, 2]]}, "instance 1 is no object, as others are"),
        ({"instance": [[1, 2]]}, "instance 0 has 'instance', which is no input"),
        ({"instances": [[1, 2]], "inputs": 1}, 'both "instances" and "inputs"'),
        ({"instances": [[1, 2]], "signature_name": 1}, '"signature_name" is no string'),
        (
            {"instances": [[1, 2]], "signature_name": "f"},
            "no signature 'f', only 'serving_default'",
        ),
        ({"examples": [{"x": 1}]}, 'the body has "examples"'),
        ("whatever", "the body is not JSON: "),
        ("", "the body is not JSON: it is empty"),
        ("[1, 2]\n[3,", "the body is not JSON lines: "),
        (b"\xff", "the body is not JSON: "),
        ('{"instances": [[1, 1e999]]}', "the body is not JSON: "),
        ("[" * 100_000, "the body is not JSON: "),
        ("[" * 100_000 + "NaN" + "]" * 100_000, "the body is not JSON: it is too deep"),
        ("[" * 900 + "]" * 900, "takes float32 [None, 2], but "),
    ],
)
def test_a_malformed_body_is_refused_with_the_reason(body: Any, text: str) -> None:
    assert text in error(post(echo("float32", (None, 2)), body))


@pytest.mark.parametrize("row", ['"2"', '{"2": 3}', "true", "[true]", "3", "[]", "null", '["2"]'])
def test_what_stands_between_lists_of_one_number_is_refused(row: str) -> None:
    for served in (echo("float32", (None, 1)), echo("int32"), echo("bool", (None, 1))):
        for body in (f"[[1], {row}]", f"[[0], {row}, [1]]"):
            error(post(served, f'{{"instances": {body}}}'))


# The mistakes of srv#435 #719 #1442 #1532 and tfs#73: another name of the input, no names where
# there are several inputs, a missing one, a scalar for a batch, an image without its batch axis.
@pytest.mark.parametrize(
    ("served", "body"),
    [
        (echo("float32", (None, 2)), {"instances": [{"images": [1.0, 2.0]}]}),
        (echo("float32", (None, 2)), {"inputs": {"input_1": [[1.0, 2.0]]}}),
        (echo("float32", (None, 2)), {"instances": [1.0, 2.0]}),
        (two(), {"instances": [[1, "x"]]}),
        (two(), {"instances": [{"a": 1}]}),
        (two(), {"inputs": {"a": [1]}}),
        (echo("int64", ()), {"instances": [1]}),
    ],
)
def test_common_mistakes_are_answered_with_a_body_that_works(served: Any, body: Any) -> None:
    found = error(post(served, body))
    valid = found.partition("a valid body is ")[2]
    assert post(served, valid).status == 200


def test_a_valid_body_is_made_of_each_signature() -> None:
    for given in (
        {"x": ("float32", (None, 28, 28, 1))},
        {"x": ("float32", None)},
        {"x": ("int8", ())},
        {"x": ("bool", (3, 2))},
        {"x": ("string", (None,)), "y_bytes": ("string", (None, 2))},
        {"x": ("float32", (2,)), "y": ("float32", (3,))},
    ):
        one = signature(given, {})
        body = json.dumps(example_body(one)).encode()
        assert inputs(one, asked(body, lines=False))[0].keys() == given.keys()
    large = signature({"x": ("float32", (None, 28, 28, 1))}, {}, name="f")
    assert example_text(large) == '{"signature_name": "f", "instances": [<float32 [28, 28, 1]>]}'


def test_outputs_without_a_batch_axis_are_answered_by_columns_alone() -> None:
    served = predictor(
        {"x": ("float32", (None,))},
        {"mean": ("float32", ()), "x": ("float32", (None,))},
        lambda given: {"mean": given["x"].mean(), "x": given["x"]},
    )
    found = error(post(served, {"instances": [1, 2]}))
    assert "output 'mean' has no batch axis" in found and '{"inputs": ...}' in found
    assert said(post(served, {"inputs": [1, 2]})) == {"outputs": {"mean": 1.5, "x": [1, 2]}}


def test_nan_and_infinity_are_the_tokens_that_python_reads() -> None:
    body = '{"instances": [[NaN, Infinity], [-Infinity, 0.1]]}'
    assert post(echo("float32"), body).body == (b'{"predictions":[[NaN,Infinity],[-Infinity,0.1]]}')
    assert post(echo("float32", ()), '{"inputs": NaN}').body == b'{"outputs":NaN}'
    both = predictor(
        {"x": ("float32", (None,))},
        {"y": ("float32", (None,)), "z": ("float64", (None, 1))},
        lambda given: {"y": given["x"], "z": given["x"].astype(np.float64)[:, None]},
    )
    assert post(both, '{"instances": [NaN, 1]}').body == (
        b'{"predictions":[{"y":NaN,"z":[NaN]},{"y":1.0,"z":[1.0]}]}'
    )


def test_integers_beyond_64_bits_are_floats_near_nan_too() -> None:
    wide = "1" * 30
    for body in (f"[{wide}]", f"[{wide}, NaN]"):
        answer = post(echo("float64", (None,)), f'{{"instances": {body}}}')
        assert said(answer)["predictions"][0] == float(wide)
    digits = "9" * 100_000
    assert "float64" in error(post(echo("float64", (None,)), f'{{"instances": [{digits}, NaN]}}'))


def test_json_lines_hold_the_whole_answer_in_one_line() -> None:
    answer = post(half_plus_three(), {"instances": ROW}, accept="application/jsonlines")
    assert answer.headers["content-type"] == "application/jsonlines"
    assert answer.body == b'{"predictions":[3.5,4.0,5.5]}'
