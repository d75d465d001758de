"""The truth about how a script ended: statuses, reasons, leftovers, full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.harness import Base, control_group, processes_with


@pytest.mark.parametrize("status", [0, 3, 143, 255])
@pytest.mark.parametrize("entry", ["script", "shell", "module"])
def test_the_exit_status_is_the_scripts(base: Base, status: int, entry: str) -> None:
    if entry == "shell":
        base.script(f"exit {status}\n", "run.sh")
    else:
        base.script(f"raise SystemExit({status})")
    program = {"script": "train.py", "shell": "run.sh", "module": "-m train"}[entry]
    result = base.run(SAGEMAKER_PROGRAM=program)
    assert result.status == status, result.log
    assert base.path("output/success").exists() == (status == 0)
    assert base.path("output/failure").exists() == (status != 0)
    if status:
        assert f"exit {status}]" in base.failure().splitlines()[0]
        assert base.failure_json()["exit"] == status


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_signal_gives_128_plus_it_and_is_named(base: Base, name: str) -> None:
    number = signal.Signals[name]
    result = base.script(f"import os; os.kill(os.getpid(), {int(number)})").run()
    assert result.status == 128 + number
    assert name in base.failure().splitlines()[0]
    assert base.failure_json()["signal"] == name


def test_a_plain_kill_9_is_not_called_out_of_memory(base: Base) -> None:
    base.script("import os, signal; os.kill(os.getpid(), signal.SIGKILL)").run()
    assert "killed by SIGKILL (not OOM)" in base.failure()
    assert base.failure_json()["oom"] is False


@pytest.fixture
def memory_limited() -> Iterator[tuple[str, ...]]:
    """A prefix that runs a command with 256 MiB of memory."""
    limit = str(256 * 2**20)
    v1 = {"memory.limit_in_bytes": limit, "memory.swappiness": "0"}
    v2 = {"memory.max": limit, "memory.swap.max": "0"}
    with control_group("memory", v1, v2) as prefix:
        yield prefix


def test_out_of_memory_is_said_when_the_cgroup_says_so(
    base: Base, memory_limited: tuple[str, ...]
) -> None:
    result = base.script("x = b'x' * 2**30").run(prefix=memory_limited)
    assert result.status == 137
    assert "OOM-killed: limit 256 MiB" in base.failure().splitlines()[0]
    assert base.failure_json()["oom"] is True


CASES = {
    "own class": (
        "class NanLoss(Exception): pass\ndef step(n):\n"
        "    raise NanLoss(f'loss is nan at step {n}')\nstep(7)",
        "NanLoss: loss is nan at step 7 (train.py:3) [",
    ),
    "chained": (
        "try:\n    {}['k']\nexcept KeyError as e:\n    raise RuntimeError('no key') from e",
        "RuntimeError: no key (train.py:4) [",
    ),
    "a handled error before": (
        "import traceback\ntry: 1/0\nexcept Exception: traceback.print_exc()\nopen('/nonexistent')",
        "FileNotFoundError: [Errno 2] No such file or directory: '/nonexistent' (train.py:4) [",
    ),
    "deep in a library": (
        "import json\njson.loads('{')",
        "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2"
        " (char 1) (train.py:2) [",
    ),
    "does not compile": ("def f(:\n  pass", "SyntaxError: invalid syntax (train.py:1) ["),
    "an assertion without a message": ("assert 1 == 2", "AssertionError (train.py:1) ["),
    "a message of several lines": (
        "raise ValueError('first\\nsecond')",
        "ValueError: first (train.py:1) [",
    ),
    "no module": ("import nosuchmodule", "ModuleNotFoundError: No module named 'nosuchmodule' ("),
    "noise of a destructor after it": (
        "class Loud:\n    def __del__(self): raise AttributeError('late noise')\n"
        "loud = Loud()\nraise ValueError('the real reason')",
        "ValueError: the real reason (train.py:4) [",
    ),
    "a forgotten task after it": (
        "import asyncio\nasync def bad(): raise KeyError('noise')\n"
        "async def main():\n    global task\n    task = asyncio.create_task(bad())\n"
        "    await asyncio.sleep(0)\n    raise RuntimeError('the real reason')\n"
        "asyncio.run(main())",
        "RuntimeError: the real reason (train.py:7) [",
    ),
    "a handled error long before": (
        "import logging, sys\ntry: 1/0\nexcept Exception: logging.exception('handled')\n"
        "for i in range(300): print(i, file=sys.stderr)\nsys.exit('checksum mismatch')",
        "ExecuteUserScriptError: checksum mismatch [",
    ),
    "a name and a message without end": (
        "raise type('E' * 1500, (Exception,), {})('m' * 5000)",
        "EEEE",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_line_of_the_failure_is_the_exception(base: Base, case: str) -> None:
    script, headline = CASES[case]
    result = base.script(script).run()
    assert result.status == 1
    text = base.failure()
    assert text.startswith(headline), text
    assert len(text) <= 1024
    assert len(text.splitlines()[0]) <= 200
    assert text.splitlines()[1] == "phase: train"
    document = base.failure_json()
    assert document["phase"] == "train"
    assert text.startswith(document["class"][:50])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no exception groups")
def test_an_exception_group_is_named(base: Base) -> None:
    base.script("raise ExceptionGroup('two', [ValueError('a'), TypeError('b')])").run()
    members = "ValueError: a; TypeError: b"
    headline = f"ExceptionGroup: two (2 sub-exceptions): {members} (train.py:1) ["
    assert base.failure().startswith(headline), base.failure()


def test_a_signal_without_a_name_is_a_signal(base: Base) -> None:
    assert base.script("import os; os.kill(os.getpid(), 37)").run().status == 165
    assert "killed by SIG37 (signal 37)" in base.failure()


@pytest.mark.parametrize("name", ["output/success", "output/.failure-reserve"])
def test_a_fifo_in_the_output_folder_does_not_hold_up_the_end(base: Base, name: str) -> None:
    folder = "os.environ['SM_OUTPUT_DIR'] + '/../"
    result = base.script(
        f"import os\npath = {folder}{name}'\n"
        "if os.path.exists(path): os.unlink(path)\nos.mkfifo(path)\n"
        f"raise SystemExit({0 if name.endswith('success') else 3})"
    ).run(seconds=20)
    assert result.status in (1, 3)


def test_a_warning_that_names_an_error_does_not_become_the_reason(base: Base) -> None:
    base.script(
        "import sys\nprint('UserWarning: ValueError: ignore me', file=sys.stderr)\nsys.exit(3)"
    ).run()
    assert base.failure().startswith("ExecuteUserScriptError: the script ended with exit code 3 [")


def test_the_end_of_a_long_traceback_is_kept(base: Base) -> None:
    base.script(
        "def f(n):\n    return f(n + 1) if n < 500 else g()\n"
        "def g(): raise ValueError('deep')\nf(0)"
    ).run()
    text = base.failure()
    assert len(text) <= 1024
    assert "ValueError: deep\nExecuteUserScriptError:\n" in text


def test_a_crash_shows_the_last_lines_of_standard_error(base: Base) -> None:
    base.script(
        "import os, sys\nfor i in range(100): print('line', i, file=sys.stderr)\nos.abort()"
    ).run()
    assert "killed by SIGABRT" in base.failure()
    assert base.failure_json()["last_lines"][-1] == "line 99"
    assert len(base.failure_json()["last_lines"]) == 20


def test_a_shell_script_that_complains_on_stdout_is_quoted(base: Base) -> None:
    base.script("echo no such data set; exit 4\n", "run.sh").run()
    assert "no such data set" in base.failure()


def test_the_failure_file_of_the_script_is_kept(base: Base) -> None:
    base.script(
        "import os\nfile = os.environ['SM_OUTPUT_DIR'] + '/failure'\n"
        "with open(file, 'w') as f: f.write('mine')\nraise ValueError('x')"
    ).run()
    assert base.failure() == "mine"
    assert base.failure_json()["class"] == "ValueError"


def test_the_failure_file_of_an_earlier_job_is_not_taken_for_this_ones(base: Base) -> None:
    base.write("output/failure", "old")
    base.write("output/success", "")
    assert base.script("raise ValueError('new')").run().status == 1
    assert base.failure().startswith("ValueError: new")
    assert not base.path("output/success").exists()
    assert base.script("").run().status == 0
    assert not base.path("output/failure").exists()
    assert not base.path("output/data/failure.json").exists()


def test_no_temporary_file_is_left_in_the_output_folder(base: Base) -> None:
    base.script("").run()
    assert sorted(os.listdir(base.path("output"))) == ["data", "metrics", "success"]
    base.script("raise ValueError").run()
    assert sorted(os.listdir(base.path("output"))) == ["data", "failure", "metrics"]


@pytest.fixture
def mounted() -> Iterator[object]:
    with ExitStack() as stack:

        def mount(path: Path, options: str) -> None:
            path.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
            stack.callback(subprocess.run, ["umount", "-l", path], check=True)

        yield mount


@pytest.mark.parametrize("status", [0, 7])
def test_a_full_disk_never_turns_a_failure_green(base: Base, mounted, status: int) -> None:  # type: ignore[no-untyped-def]
    mounted(base.path("output"), "size=256k")
    result = base.script(
        "import os, sys\n"
        "try:\n"
        "    with open(os.environ['SM_OUTPUT_DIR'] + '/big', 'wb', buffering=0) as f:\n"
        "        while True: f.write(b'x' * 4096)\n"
        "except OSError: pass\n"
        f"sys.exit({status})"
    ).run()
    assert result.status == status, result.log
    if status:
        assert "exit code 7" in base.failure()


@pytest.mark.parametrize("status", [0, 7])
def test_without_free_inodes_a_job_still_says_how_it_ended(
    base: Base,
    mounted,  # type: ignore[no-untyped-def]
    status: int,
) -> None:
    mounted(base.path("output"), "size=4m,nr_inodes=100")
    result = base.script(
        "import os, sys\n"
        "try:\n"
        "    for number in range(1000):\n"
        "        open(f\"{os.environ['SM_OUTPUT_DIR']}/{number}\", 'w').close()\n"
        "except OSError as error: print(error.strerror)\n"
        f"sys.exit({status})"
    ).run()
    assert b"No space left on device" in result.out
    assert result.status == status, result.log
    if status:
        assert "exit code 7" in base.failure()
        assert json.loads(base.path("output/data/failure.json").read_text())["exit"] == 7
        assert not [name for name in os.listdir(base.path("output")) if name.startswith(".")]


@pytest.mark.parametrize("removed", ["SM_OUTPUT_DIR", "SM_OUTPUT_DATA_DIR", "SM_MODEL_DIR"])
@pytest.mark.parametrize("status", [0, 7])
def test_a_script_may_remove_the_folders_that_it_was_given(
    base: Base, removed: str, status: int
) -> None:
    result = base.script(
        f"import os, shutil, sys\nshutil.rmtree(os.environ['{removed}'])\nsys.exit({status})"
    ).run()
    assert result.status == status, result.log
    assert base.path("output/success").exists() == (status == 0)
    assert base.path("output/failure").exists() == (status != 0)


@pytest.mark.parametrize("status", [0, 7])
def test_output_data_may_be_a_mount_of_its_own(
    base: Base,
    mounted,  # type: ignore[no-untyped-def]
    status: int,
) -> None:
    mounted(base.path("output/data"), "size=4m")
    assert base.script(f"raise SystemExit({status})").run().status == status
    assert base.path("output/data/failure.json").exists() == bool(status)


@pytest.mark.parametrize("status", [0, 7])
def test_a_disk_that_is_full_from_the_start_never_turns_a_failure_green(
    base: Base,
    mounted,  # type: ignore[no-untyped-def]
    status: int,
) -> None:
    mounted(base.path("output"), "size=64k,nr_inodes=3")
    (base.path("output") / "data").mkdir()
    (base.path("output") / "big").write_bytes(b"x" * 65536)
    result = base.script(f"import sys; print('ran'); sys.exit({status})").run()
    assert result.status == (status or 1)
    assert b"ran" in result.out
    assert "cannot be written" in result.log or "cannot write" in result.log


def test_an_output_folder_that_is_read_only_is_said_before_the_script_starts(
    base: Base,
    mounted,  # type: ignore[no-untyped-def]
) -> None:
    mounted(base.path("output"), "ro")
    result = base.script("print('ran')").run()
    assert result.status == 1
    assert b"ran" not in result.out
    assert "ConfigError" in result.log and "Read-only file system" in result.log


LEAVES = """
import subprocess, sys
subprocess.Popen(["sleep", "1000"])
subprocess.Popen(["sleep", "1001"], start_new_session=True)
subprocess.Popen([sys.executable, "-c", "import os\\nif os.fork() == 0:\\n os.setsid()\\n"
                  " if os.fork() == 0: os.execlp('sleep', 'sleep', '1002')"])
subprocess.Popen([sys.executable, "-c", "import signal, time\\nsignal.signal(15, signal.SIG_IGN)\\n"
                  "print('deaf', flush=True)\\nwhile True: signal.pause()"])
sys.stdin.close()
print("done", flush=True)
"""


def test_the_job_ends_with_the_script_and_leftovers_are_ended(base: Base) -> None:
    marker = f"SM_TEST_MARK={os.getpid()}-{id(base)}"
    name, _, value = marker.partition("=")
    running = base.script(LEAVES).start(**{name: value})
    result = running.wait(20)
    assert result.status == 0
    assert "leftover processes: sleep 1000" in result.log
    assert processes_with(marker) == []


def test_a_leftover_that_forks_all_the_time_is_ended(base: Base) -> None:
    """It is never where a look at /proc found it; the kernel knows its group."""
    base.script(
        "import os, signal\nprint(os.getpid(), flush=True)\n"
        "if os.fork() == 0:\n    signal.signal(15, signal.SIG_IGN)\n"
        "    for _ in range(200_000):\n        if os.fork(): os._exit(0)\n"
    )
    result = base.run()
    group = int(result.out)
    try:
        assert result.status == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def test_what_was_started_before_the_runtime_is_left_alone(base: Base) -> None:
    base.script("print('ran')")
    # Its output is another's, or the test would wait for the end of ours.
    sidecar = ("sh", "-c", 'sleep 1000 >/dev/null 2>&1 & echo "sidecar $!"; exec "$@"', "sh")
    result = base.run(prefix=sidecar)
    assert result.status == 0
    pid = int(result.out.split()[1])
    os.kill(pid, signal.SIGKILL)  # raises if the runtime ended it
    assert "leftover" not in result.log


def test_a_leftover_that_holds_the_output_open_loses_none_of_it(base: Base) -> None:
    result = base.script(
        "import subprocess\nprint('x' * 300000)\nsubprocess.Popen(['sleep', '1000'])"
    ).run()
    assert (result.status, len(result.out)) == (0, 300001)


@pytest.fixture
def few_pids() -> Iterator[tuple[str, ...]]:
    with control_group("pids", {"pids.max": "64"}, {"pids.max": "64"}) as prefix:
        yield prefix


ORPHANS = """
import os, time
deadline = time.monotonic() + 30
def fork():  # on a busy machine the reaper may be a little behind
    while True:
        try:
            return os.fork()
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
def zombies():
    found = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
        except OSError:
            continue
        found += fields[0] == "Z" and fields[1] == str(os.getppid())
    return found
for _ in range(500):
    if (middle := fork()) == 0:
        fork()
        os._exit(0)
    os.waitpid(middle, 0)
while zombies() and time.monotonic() < deadline:
    time.sleep(0.01)
print("zombies", zombies())
"""


@pytest.mark.parametrize("prefix", [(), ("unshare", "--pid", "--fork", "--mount-proc")])
def test_orphans_are_reaped_while_the_script_runs(
    base: Base, few_pids: tuple[str, ...], prefix: tuple[str, ...]
) -> None:
    """500 orphans in a cgroup of 64 processes: without reaping, fork fails for ever."""
    result = base.script(ORPHANS).run(prefix=(*few_pids, *prefix))
    assert (result.status, result.out) == (0, b"zombies 0\n"), result.log


def test_a_command_that_cannot_be_started_is_one_sentence(base: Base) -> None:
    base.script("#!/nonexistent/interpreter\n", "tool")
    base.path("code/tool").chmod(0o755)
    result = base.run()
    assert result.status == 1
    assert "/nonexistent/interpreter" in base.failure().splitlines()[0]
    assert "Traceback" not in result.log


def test_failure_json_is_complete(base: Base) -> None:
    base.script("raise ValueError('x')").run()
    assert set(json.loads(base.path("output/data/failure.json").read_text())) == {
        *("class", "message", "phase", "exit", "signal", "file", "line", "rank", "host", "oom"),
        *("last_lines", "command"),
    }
