"""Lines that repeat are counted, where that is asked for."""

from __future__ import annotations

import pytest

from sm_runtime.processes.relay import Repeats

TEN = b"x\n" * 10
MORE = b"(the last line was repeated %d more times)\n"


@pytest.mark.parametrize(
    "data, shown",
    [
        (b"a\nb\na\n", b"a\nb\na\n"),
        (TEN, TEN),
        (TEN + b"x\n", TEN + MORE % 1),
        (b"x\n" * 1000 + b"y\n" + b"x\n", TEN + MORE % 990 + b"y\nx\n"),
        (b"\n" * 20, b"\n" * 10 + MORE % 10),
        (TEN + b"x", TEN + b"x"),
        (b"a\r" * 30, b"a\r" * 30),
    ],
)
@pytest.mark.parametrize("size", [2, 10, 10_000])
def test_the_first_ten_are_shown_and_the_others_counted(
    data: bytes, shown: bytes, size: int
) -> None:
    repeats = Repeats()
    found = b"".join(
        repeats.collapsed(data[start : start + size]) for start in range(0, len(data), size)
    )
    assert found + repeats.rest() == shown
