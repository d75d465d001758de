"""Which values regular expressions find in lines, and what becomes of slow ones."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_runtime.metrics import scan
from sm_runtime.metrics.scan import STRIKES, Definition, required_text

REQUIRED = [
    (r" loss: ([0-9\\.]+)", " loss: "),
    (r"val_acc: ([0-9\.]+)", "val_acc: "),
    (r"\[epoch\] acc=(.*)", "[epoch] acc="),
    (r"loss\s*=\s*(.+)", "loss"),
    (r"a?bc(\d)", "bc"),
    (r"ab+c(\d+)", "ab"),
    (r"ab*(\d+)", "a"),
    (r"x{2}yz(.)", "yz"),
    (r"[^]]abc([0-9])", "abc"),
    (r"(abc)?([0-9])", ""),
    (r"(a|b)x", ""),
    (r"(?i)loss=(.*)", ""),
    (r"loss(?!x)=(.*)", ""),
    (r"\d\w(.)", ""),
]


@pytest.mark.parametrize("regex, text", REQUIRED)
def test_the_text_that_every_match_holds(regex: str, text: str) -> None:
    assert required_text(regex) == text


@settings(max_examples=60)
@given(
    st.from_regex(
        r"(?:[a-c]|\\\.|[a-c][*+?]|\[ab\]|\[\^a\]\+|\\d|\.){0,8}\((?:[a-c.]|\\d)\)", fullmatch=True
    ),
    st.data(),
)
def test_every_match_holds_the_required_text(regex: str, data: st.DataObject) -> None:
    line = data.draw(st.from_regex(regex, fullmatch=True))
    assert required_text(regex) in line


LINES = (
    "epoch 1 - loss: 0.5 - val_loss: 9\nother\nepoch 2 - loss: nan\n - loss: 1e-3 loss: 7\nloss: 2"
)
FOUND = [
    (r" loss: ([0-9\.]+)", [0.5, 1.0]),
    (r" loss: (\S+)", [0.5, "nan", 0.001]),
    (r"^loss: (.*)$", [2.0]),
    (r"(?m)^loss: (.*)$", [2.0]),
    (r"loss: (\w+)", [0.0, "nan", 2.0]),
    (r"epoch (\d)\Z", []),
    (r"other\s+epoch (\d)", []),
    (r"(x)?other", []),
    (r"epoch \d - loss: (o.*|nan)", ["nan"]),
]


@pytest.mark.parametrize("regex, values", FOUND)
def test_each_line_has_the_value_of_its_first_match(regex: str, values: list[object]) -> None:
    found = [value for value, _ in Definition("m", regex).find(LINES)]
    assert [value if value == value else "nan" for value in found] == values


def test_values_come_with_their_lines_and_are_summed_up() -> None:
    metric = Definition("m", "v=(.*)")
    assert metric.find("v=3\nx\nv=-1") == [(3.0, "v=3"), (-1.0, "v=-1")]
    assert metric.find("v=2\n") == [(2.0, "v=2")]
    assert metric.summary() == {
        "name": "m", "count": 3, "last": 2.0, "least": -1.0, "greatest": 3.0, "given_up": False,
    }  # fmt: skip


def test_a_slow_expression_loses_the_lines_that_it_is_slow_on_and_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan, "BLOCK_SECONDS", 0.02)
    scan.interrupt_what_is_slow()
    metric = Definition("m", "(?:a+)+=([0-9])")
    slow = "a" * 60 + "!=\n"
    assert re.search(metric.regex, "aa=1")
    assert metric.find(slow + "a=5\n") == [(5.0, "a=5")]
    assert (metric.strikes, metric.is_given_up) == (1, False)
    assert metric.find(slow * STRIKES + "a=6\n") == []
    assert metric.is_given_up
    assert metric.find("a=7\n") == []
