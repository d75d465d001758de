"""What is kept of a stream: its end in whole lines, and the beginning of a very long line."""

from __future__ import annotations

import random

import pytest

from sm_runtime.job.text import GAP, HEAD_BYTES, Tail

SIZE = 2**14


def kept(*chunks: bytes) -> bytes:
    tail = Tail(SIZE)
    for chunk in chunks:
        tail.add(memoryview(chunk))
    return tail.read()


def pieces(data: bytes, longest: int) -> list[bytes]:
    source = random.Random(longest)
    found = []
    while data:
        size = source.randint(1, longest)
        found.append(data[:size])
        data = data[size:]
    return found


@pytest.mark.parametrize("longest", [1, 7, 1000, SIZE, 10 * SIZE, 10**7])
def test_the_end_is_kept_in_whole_lines(longest: int) -> None:
    lines = [b"%d %s\n" % (i, b"x" * (i % 200)) for i in range(3000)]
    data = b"".join(lines)
    assert data.startswith(kept(*pieces(data[:SIZE], longest)))
    found = kept(*pieces(data, max(longest, 20)))
    assert SIZE <= len(found) <= SIZE + 200
    assert found.splitlines(True) == lines[-len(found.splitlines()) :]


@pytest.mark.parametrize("longest", [1000, SIZE, 10 * SIZE, 10**7])
@pytest.mark.parametrize("length", [SIZE + HEAD_BYTES + 1, 5 * SIZE, 70 * SIZE])
@pytest.mark.parametrize("ended", [True, False])
def test_of_a_long_line_the_beginning_and_what_was_before_it_are_kept(
    longest: int, length: int, ended: bool
) -> None:
    before = b"Traceback:\n" + b'  File "x", line 7\n' * 3
    line = b"ValueError: " + b"word " * (length // 5) + b"ends"
    data = b"old\n" * SIZE + before + line + b"\nafter" * ended
    found = kept(*pieces(data, longest))
    assert len(found) <= SIZE + 2 * HEAD_BYTES + len(GAP)
    head, gap, rest = found.partition(GAP)
    assert gap
    assert before + b"ValueError: word word" in head
    assert head.startswith(b"old\n")
    assert head.endswith(b"word") and rest.split()[0] == b"word"
    assert rest.endswith(b"ends\nafter" if ended else b"ends")


def test_a_cut_leaves_no_part_of_a_word() -> None:
    secrets = b" ".join(b"secret-%06d-abcdefghijklmnop" % i for i in range(SIZE))
    found = kept(b"ValueError: " + secrets)
    words = found.replace(GAP, b" ").split()[1:]
    assert words and all(len(word) == 30 for word in words)


def test_a_line_without_any_break_is_kept_all_the_same() -> None:
    found = kept(b"begins" + b"x" * 10 * SIZE + b"ends")
    assert found.startswith(b"beginsxxx")
    assert found.endswith(b"xxxends")
    assert len(found) == SIZE + HEAD_BYTES + len(GAP)
