"""The script's output passes through byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sm_runtime.processes.relay import Relay, Sink
from tests.harness import RUNTIME, Base, eventually


def test_no_line_is_dropped_joined_or_changed(base: Base) -> None:
    result = base.script(
        "import sys\n"
        "for i in range(100_000):\n"
        "    print(f'   {i} \\t indented', file=sys.stderr if i % 2 else sys.stdout)\n"
        "    if i % 10 == 0: print()"
    ).run()
    expected = b"".join(
        b"   %d \t indented\n" % i + (b"\n" if i % 10 == 0 else b"") for i in range(0, 100_000, 2)
    )
    assert result.out == expected
    own = [line for line in result.err.splitlines(True) if b" sm-runtime " not in line]
    assert own == [b"   %d \t indented\n" % i for i in range(1, 100_000, 2)]


RAW = {
    "every byte": bytes(range(256)) * 100,
    "a long line of many-byte characters": "é€𝄞".encode() * 20_000 + b"\n",
    "a progress bar": b"".join(b"\r%3d%%" % i for i in range(101)),
    "no end of line": b"the last line has no end",
    "blank lines": b"\n\n\n   \n\n",
    "three megabytes": os.urandom(3 * 2**20),
}


@pytest.mark.parametrize("case", RAW)
def test_bytes_pass_unchanged(base: Base, case: str) -> None:
    base.write("code/data", RAW[case])
    result = base.script(
        "import os, sys\ndata = open('data', 'rb').read()\n"
        "while data: data = data[os.write(1, data):]"
    ).run()
    assert result.out == RAW[case]


@pytest.mark.parametrize("text", ["a line\\n", "\\r 10% of it", "a prompt without an end"])
def test_output_is_seen_while_the_script_still_runs(base: Base, text: str) -> None:
    running = base.script(
        f"import os, time\nprint({text!r}.encode().decode('unicode_escape'), end='')\n"
        "while not os.path.exists('seen'): time.sleep(0.01)"
    ).start()
    running.ready(text.encode().decode("unicode_escape").encode())
    base.write("code/seen", "")
    assert running.wait().status == 0


def test_a_log_line_of_ours_never_joins_an_unfinished_line(base: Base) -> None:
    result = base.script("import sys; sys.stderr.write('unfinished')").run()
    assert "unfinished\n" in result.log


def test_the_end_of_a_burst_is_not_held_back(base: Base) -> None:
    """As much as the buffer takes, and the last line unfinished."""
    running = base.script(
        "import os, time\nopen('size', 'w')\n"
        "data = b'x' * 99 + b'\\n'\nburst = (data * 10486)[:2**20]\n"
        "os.write(1, burst)\nwhile not os.path.exists('seen'): time.sleep(0.01)"
    ).start()
    eventually(lambda: len(running.out) == 2**20, "all of the burst")
    base.write("code/seen", "")
    assert running.wait().status == 0


def test_output_that_cannot_be_written_is_said(base: Base) -> None:
    result = base.script("print('x' * 1000)").run(prefix=("sh", "-c", 'exec "$@" >/dev/full', "sh"))
    assert result.status == 0
    assert "1001 bytes of the output or the log could not be written" in result.log


def test_streams_that_go_to_one_place_keep_their_lines_whole(base: Base) -> None:
    base.script(
        "import os\n"
        "if os.fork():\n"
        "    for i in range(30_000): os.write(1, b'o' * (i % 300) + b'.\\n')\n"
        "    os.wait()\n"
        "else:\n"
        "    for i in range(30_000): os.write(2, b'e' * (i % 300) + b'.\\n')\n"
    )
    merged = subprocess.run(
        [*RUNTIME, "train"],
        env=base.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=True,
    ).stdout
    lines = [line for line in merged.splitlines() if b" sm-runtime " not in line]
    assert len(lines) == 60_000
    assert all(line == line[:1] * (len(line) - 1) + b"." for line in lines)


def test_a_reader_that_stalls_slows_the_script_and_memory_stays_flat(base: Base) -> None:
    base.script(
        "import os\n"
        "for i in range(2000):\n"
        "    os.write(1, b'%07d ' % i + b'x' * 65528)\n"
        "    open('count', 'w').write(str(i))\n"
    )
    read, write = os.pipe()
    process = subprocess.Popen([*RUNTIME, "train"], env=base.environ, stdout=write, stderr=-3)
    os.close(write)
    count = base.path("code/count")

    def standing_still() -> bool:
        before = count.read_text() if count.exists() else ""
        return bool(before) and before == _later(count, before)

    eventually(standing_still, "the script waits for its reader")
    assert int(count.read_text()) < 200
    assert _peak_kib(process.pid) < 48 * 1024
    with os.fdopen(read, "rb") as stream:
        data = stream.read()
    assert process.wait(30) == 0
    assert len(data) == 2000 * 65536
    assert [int(data[i : i + 7]) for i in range(0, len(data), 65536)] == list(range(2000))


def _later(path: Path, before: str) -> str:
    import select

    for _ in range(20):
        select.select([], [], [], 0.02)
        if path.read_text() != before:
            break
    return path.read_text()


def _peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.parametrize("first", ["", "ValueError: not an error"])
def test_memory_stays_flat_under_a_flood_of_lines(base: Base, first: str) -> None:
    running = base.script(
        f"import os, sys, time\nprint({first!r}, file=sys.stderr)\n"
        "block = (b'x' * 107 + b'\\n') * 1000\n"
        "for _ in range(300): os.write(2, block)\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists('seen'): time.sleep(0.01)"
    ).start()
    running.ready()
    assert _peak_kib(running.pid) < 48 * 1024
    base.write("code/seen", "")
    result = running.wait()
    assert result.err.count(b"x" * 107 + b"\n") == 300_000


def test_a_reader_that_goes_away_does_not_kill_the_script(base: Base) -> None:
    base.script("import os\nfor _ in range(100): print('x' * 100_000)\nopen('finished', 'w')\n")
    process = subprocess.Popen([*RUNTIME, "train"], env=base.environ, stdout=-1, stderr=-3)
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(30) == 0
    assert base.path("code/finished").exists()


@pytest.mark.parametrize("status", [0, 7])
def test_closed_streams_change_nothing(base: Base, status: int) -> None:
    base.script(f"print('x')\nopen('ran', 'w')\nraise SystemExit({status})")
    closing = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    assert base.run(prefix=closing).status == status
    assert base.path("code/ran").exists()


def test_python_output_is_unbuffered_unless_the_user_says_otherwise(base: Base) -> None:
    script = "import os; print(os.environ.get('PYTHONUNBUFFERED'))"
    assert base.script(script).run().out == b"1\n"
    assert base.script(script).run(PYTHONUNBUFFERED="").out == b"\n"
    assert base.script(script).run(SM_RUNTIME_UNBUFFERED="0").out == b"None\n"


def test_the_success_path_prints_few_lines_and_a_timeline(base: Base) -> None:
    result = base.script("print('hello')").hyperparameters(epochs="3").run()
    lines = [line for line in result.log.splitlines() if line.strip()]
    assert len(lines) <= 15
    assert any("timeline: config" in line and "total" in line for line in lines)
    assert sys.executable in result.log


# -- lines with a prefix: those of ranks -------------------------------------------------------


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


MARKED = {
    "lines": (b"a\n\nb\n", b"#a\n#\n#b\n"),
    "no end of line": (b"a\nb", b"#a\n#b\n"),
    "a progress bar": (b"\r 1%\r 2%\r 3%\n", b"#\r# 1%\r# 2%\r# 3%\n"),
    "another progress bar": (b" 1%\r 2%\r 3%\r", b"# 1%\r# 2%\r# 3%\r\n"),
    "lines of DOS": (b"a\r\n\r\nb\r\n", b"#a\r\n#\r\n#b\r\n"),
    "a long line": ("é€𝄞".encode() * 300_000 + b"\n", b"#" + "é€𝄞".encode() * 300_000 + b"\n"),
    "long bytes": (b"\x80" * 3_000_000 + b"\n", b"#" + b"\x80" * 3_000_000 + b"\n"),
}


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
