"""CSV in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.unit.serving.numpy_models import echo, error, half_plus_three, post, predictor, said

CSV = "text/csv"


# The first eight are the tests of AWS's image.
@pytest.mark.parametrize(
    ("body", "predictions"),
    [
        ("1.0", [3.5]),
        ("0.0", [3.0]),
        ("0.0,2.0,5.0", [[3.0, 4.0, 5.5]]),
        ("1.0,2.0,5.0", [[3.5, 4.0, 5.5]]),
        ("1.0,2.0,5.0\n1.0,2.0,5.0", [[3.5, 4.0, 5.5], [3.5, 4.0, 5.5]]),
        ("1.0\n2.0\n5.0", [3.5, 4.0, 5.5]),
        ("0.0,1.0,6.0,0.0\n" * 2, [[3.0, 3.5, 6.0, 3.0]] * 2),
        ("1.0\r\n2.0\r\n\r\n5.0\r\n", [3.5, 4.0, 5.5]),
        ('"1.0","2.0"\n"3","4e0"', [[3.5, 4.0], [4.5, 5.0]]),
        ("+1.0, 2.\n.5,01", [[3.5, 4.0], [3.25, 3.5]]),
        ("\ufeff1,2", [[3.5, 4.0]]),
    ],
)
def test_a_row_is_an_instance(body: str, predictions: Any) -> None:
    assert said(post(half_plus_three(), body, CSV)) == {"predictions": predictions}


def test_one_column_is_a_scalar_or_an_axis_as_the_shape_says() -> None:
    assert said(post(half_plus_three((None,)), "1\n2", CSV)) == {"predictions": [3.5, 4.0]}
    assert said(post(half_plus_three((None, 1)), "1\n2", CSV)) == {"predictions": [[3.5], [4.0]]}
    assert said(post(half_plus_three((None, None)), "1", CSV)) == {"predictions": [[3.5]]}


def test_the_values_of_a_row_fill_the_axes_in_order() -> None:
    answer = post(echo("int64", (None, 2, 2)), "1,2,3,4\n5,6,7,8", CSV)
    assert said(answer) == {"predictions": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]}
    answer = post(echo("int64", (None, None, 2)), "1,2,3,4", CSV)
    assert said(answer) == {"predictions": [[[1, 2], [3, 4]]]}


def test_strings_follow_rfc_4180() -> None:
    body = 'a,"b, ""c"""\r\n"two\nlines",é\r\n'
    answer = post(echo("string", (None, 2)), body, CSV, accept=CSV)
    assert answer.body.decode() == 'a,"b, ""c"""\n"two\nlines",é'
    assert said(post(echo("string"), "plain\ntext", CSV)) == {"predictions": ["plain", "text"]}


@pytest.mark.parametrize(
    ("dtype", "body", "text"),
    [
        ("float32", "a,b\n1,2", "'a' was given in row 1, value 1"),
        ("float32", "1,2\n3", "row 2 has 1 values, row 1 has 2"),
        ("float32", "1,2\n3,", "'' was given in row 2, value 2"),
        ("float32", "1,1_0", "'1_0' was given"),
        ("float32", "1,2],[3,4", "'2]' was given"),
        ("float32", "1,\u0661", "was given in row 1, value 2"),
        ("float32", "1,1e39", "1e+39 in row 1, value 2 is out of its range"),
        ("float32", "1,2,3", "1 rows of 3 values were given"),
        ("float32", "\n \n", "the body has no rows"),
        ("float32", '"1,2', "the body is not CSV: "),
        ("float32", b"1,\xff", "the body is not CSV: "),
        ("int32", "1,1.5", "1.5 in row 1, value 2 was given"),
        ("uint8", "1,2\n3,300", "300 in row 2, value 2 is not in 0 to 255"),
        ("bool", "true,yes", "'yes' was given in row 1, value 2"),
    ],
)
def test_what_is_no_row_of_the_signature_is_refused(dtype: str, body: Any, text: str) -> None:
    assert text in error(post(echo(dtype, (None, 2)), body, CSV))


def test_signatures_that_csv_cannot_fill_name_json() -> None:
    served = predictor({"a": ("int8", (None,)), "b": ("int8", (None,))}, {}, dict)
    assert "CSV has no names of inputs: send JSON" in error(post(served, "1,2", CSV))
    assert "no batch axis: send JSON" in error(post(echo("int8", ()), "1", CSV))


def test_rows_of_several_blocks_are_one_tensor() -> None:
    values = np.arange(900_000, dtype=np.float32).reshape(-1, 3)
    lines = [b",".join(b"%.1f" % one for one in row) for row in values.tolist()]
    for body in (b"\n".join(lines), b'"' + b"\n".join(lines).replace(b",", b'",', 1)):
        answer = post(echo("float32", (None, 3)), body, CSV, accept="application/x-npy")
        found = np.frombuffer(answer.body[-values.nbytes :], np.float32)
        assert found.tobytes() == values.tobytes()
    lines[-1] = b"1,2"
    assert "row 300000 has 2 values" in error(
        post(echo("float32", (None, 3)), b"\n".join(lines), CSV)
    )


def test_outputs_stand_side_by_side_in_a_row() -> None:
    served = predictor(
        {"x": ("float32", (None, 2))},
        {"y": ("float32", (None, 2)), "big": ("bool", (None,)), "n": ("int64", (None, 1, 1))},
        lambda given: {
            "y": given["x"],
            "big": given["x"][:, 0] > 1,
            "n": np.full((len(given["x"]), 1, 1), 2**62),
        },
    )
    answer = post(served, "0.1,nan\n2,-inf", CSV, accept=CSV)
    assert answer.headers["content-type"] == CSV
    assert answer.body == (
        b"0.1,NaN,false,4611686018427387904\n2.0,-Infinity,true,4611686018427387904"
    )


def test_true_and_one_are_true_in_csv() -> None:
    answer = post(echo("bool", (None, 4)), "true,1,False,0", CSV)
    assert said(answer) == {"predictions": [[True, True, False, False]]}
