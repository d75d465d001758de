"""Lines with a prefix, those of ranks: each has its own, and all its bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from sm_runtime.processes.relay import Relay, Sink
from tests.harness import eventually

MARKED = {
    "lines": (b"a\n\nb\n", b"#a\n#\n#b\n"),
    "no end of line": (b"a\nb", b"#a\n#b\n"),
    "a progress bar": (b"\r 1%\r 2%\r 3%\n", b"#\r# 1%\r# 2%\r# 3%\n"),
    "another progress bar": (b" 1%\r 2%\r 3%\r", b"# 1%\r# 2%\r# 3%\r\n"),
    "lines of DOS": (b"a\r\n\r\nb\r\n", b"#a\r\n#\r\n#b\r\n"),
    "a long line": ("é€𝄞".encode() * 300_000 + b"\n", b"#" + "é€𝄞".encode() * 300_000 + b"\n"),
    "long bytes": (b"\x80" * 3_000_000 + b"\n", b"#" + b"\x80" * 3_000_000 + b"\n"),
}


class Place:
    """Where relays with prefixes carry to, and what has come there; ``write`` is a rank's."""

    def __init__(self) -> None:
        self._source, self.sink_fd = os.pipe()
        self.sink = Sink(self.sink_fd)
        self.seen = bytearray()
        self._pipes: list[int] = []
        self._relays: list[Relay] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self._source, 65536):
            self.seen += data

    def relay(self, prefix: bytes | None) -> int:
        """Start a relay; return the descriptor that its process writes to."""
        relay = Relay(self.sink, "test", prefix)
        fd = os.dup(relay.writer)
        relay.start()
        relay.close_writer()
        self._relays.append(relay)
        self._pipes.append(fd)
        return fd

    def shows(self, expected: bytes) -> None:
        eventually(lambda: bytes(self.seen) == expected, f"{expected[:99]!r}, not {self.seen!r}")

    def end(self) -> bytes:
        """End all processes' output; return all that has come."""
        while self._pipes:
            os.close(self._pipes.pop())
        assert all(relay.finish(60.0) for relay in self._relays)
        if self.sink_fd >= 0:
            self.sink.close()
            os.close(self.sink_fd)
            self.sink_fd = -1
            self._thread.join(60)
            os.close(self._source)
        return bytes(self.seen)

    def close(self) -> None:
        self.end()


@pytest.fixture
def place() -> Iterator[Place]:
    with closing(Place()) as found:
        yield found


def test_what_a_rank_leaves_unfinished_is_seen_and_its_rest_follows(place: Place) -> None:
    rank = place.relay(b"[0]")
    os.write(rank, b"loading ... ")
    place.shows(b"[0]loading ... ")
    os.write(rank, b"still ... ")
    place.shows(b"[0]loading ... still ... ")
    os.write(rank, b"done\nnext\n")
    place.shows(b"[0]loading ... still ... done\n[0]next\n")


@pytest.mark.parametrize("prefix", [b"[1]", b"", None])
def test_another_ranks_line_never_joins_an_unfinished_one(
    place: Place, prefix: bytes | None
) -> None:
    first, second = place.relay(b"[0]"), place.relay(prefix)
    os.write(first, b"loading ... ")
    place.shows(b"[0]loading ... ")
    os.write(second, b"hello\n")
    hello = (prefix or b"") + b"hello\n"
    place.shows(b"[0]loading ... \n" + hello)
    os.write(first, b"done\n")
    place.shows(b"[0]loading ... \n" + hello + b"[0]done\n")


def test_a_rank_never_joins_what_a_process_without_a_prefix_left_unfinished(place: Place) -> None:
    plain, rank = place.relay(None), place.relay(b"[0]")
    os.write(plain, b"mpirun says")
    place.shows(b"mpirun says")
    os.write(rank, b"hello\n")
    place.shows(b"mpirun says\n[0]hello\n")


def test_a_log_line_between_the_parts_of_a_ranks_line_stands_alone(place: Place) -> None:
    rank = place.relay(b"[0]")
    os.write(rank, b"loading ... ")
    place.shows(b"[0]loading ... ")
    place.sink.write_line(b"ours")
    os.write(rank, b"done\n")
    place.shows(b"[0]loading ... \nours\n[0]done\n")


@pytest.mark.parametrize("case", MARKED)
@pytest.mark.parametrize("size", [1, 7, 2**20], ids=["bytes", "pieces", "blocks"])
def test_each_line_has_its_prefix_and_all_its_bytes(place: Place, case: str, size: int) -> None:
    data, expected = MARKED[case]
    size = max(size, len(data) // 1000)
    rank = place.relay(b"#")
    for start in range(0, len(data), size):
        view = memoryview(data)[start : start + size]
        while view:
            view = view[os.write(rank, view) :]
    assert place.end() == expected


@pytest.mark.parametrize("text", [b"\r 1%", b" 1%\r"], ids=["before", "after"])
def test_a_progress_bar_is_seen_while_it_moves(place: Place, text: bytes) -> None:
    rank = place.relay(b"[0]")
    os.write(rank, text)
    eventually(lambda: b"[0] 1%" in place.seen, "the first step")
    os.write(rank, text.replace(b"1", b"2") + text.replace(b"1", b"3"))
    eventually(lambda: b"[0] 2%\r" in place.seen, "the second step")
    other = place.relay(b"[1]")
    os.write(other, b"hello\n")
    eventually(lambda: b"\n[1]hello\n" in place.seen, "the other")
    shown = place.end().replace(b"[0]", b"").replace(b"[1]hello\n", b"").replace(b"\n", b"")
    assert shown == text + text.replace(b"1", b"2") + text.replace(b"1", b"3")


def test_a_character_of_a_long_line_is_not_torn_when_another_rank_comes_between(
    place: Place,
) -> None:
    first, second = place.relay(b"[0]"), place.relay(b"[1]")
    sent = ("x" + "€" * 1_000_000).encode()
    for start in range(0, len(sent), 2**18):
        view = memoryview(sent)[start : start + 2**18]
        while view:
            view = view[os.write(first, view) :]
        os.write(second, b"hello\n")
    shown = place.end().decode()
    lines = shown.splitlines()
    assert {line[:3] for line in lines} == {"[0]", "[1]"}
    assert "".join(line[3:] for line in lines if line[:3] == "[0]") == sent.decode()


def test_the_lines_of_eight_ranks_stay_whole_and_in_their_order(place: Place) -> None:
    """One write for a text and one for its end, as Python does unbuffered."""
    writes = (
        "import os, sys\n"
        "for i in range(10_000):\n"
        "    os.write(1, b'%d ' % i + b'x' * (i % 200)); os.write(1, b'\\n')\n"
    )
    processes = []
    for rank in range(8):
        fd = place.relay(b"[%d]" % rank)
        processes.append(subprocess.Popen((sys.executable, "-c", writes), stdout=fd))
    assert [process.wait(60) for process in processes] == [0] * 8
    lines = place.end().splitlines()
    assert len(lines) == 80_000
    for rank in range(8):
        own = [line[3:] for line in lines if line.startswith(b"[%d]" % rank)]
        assert own == [b"%d " % i + b"x" * (i % 200) for i in range(10_000)]
