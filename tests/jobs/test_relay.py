"""The script's output passes through byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_lines_that_repeat_are_counted_where_that_is_asked_for(base: Base) -> None:
    script = "for i in range(12345): print('Read -1, expected 131072')\nprint('end')"
    result = base.script(script).run(SM_RUNTIME_COLLAPSE_REPEATS="1")
    lines = result.out.decode().splitlines()
    assert lines[:10] == ["Read -1, expected 131072"] * 10
    assert lines[10:] == ["(the last line was repeated 12335 more times)", "end"]
    assert len(base.run().out.splitlines()) == 12346, "never by default"
