"""What `output/failure` says of processes that end as real ones do."""

from __future__ import annotations

import os
import sys

import pytest

from tests.harness import Base


def headline(base: Base) -> str:
    """Return the first line of the failure, its end cut off."""
    text = base.failure()
    assert len(text) <= 1024
    first = text.splitlines()[0]
    assert len(first) <= 200
    return first.rpartition(" [")[0]


EXCEPTIONS = {
    "raise ValueError('\\nreal reason')": "ValueError: real reason (train.py:1)",
    "raise ValueError('Heading:\\nreal reason')": ("ValueError: Heading: real reason (train.py:1)"),
    "raise ValueError('bad\\nTraceback (most recent call last):\\nx')": (
        "ValueError: bad (train.py:1)"
    ),
    "def f():\n    class Nan(Exception): pass\n    raise Nan('step 7')\nf()": (
        "Nan: step 7 (train.py:3)"
    ),
    "raise ValueError('\\x1b[31mred\\x1b[0m \\x07 \\0 \\x9b')": (
        "ValueError: red \\x07 \\x00 \\x9b (train.py:1)"
    ),
    "from multiprocessing import Pool\n"
    "def f(x): raise ValueError('bad')\n"
    "if __name__ == '__main__':\n    with Pool(1) as pool: pool.map(f, [1])": (
        "ValueError: bad (train.py:2)"
    ),
    "from concurrent.futures import ProcessPoolExecutor\n"
    "def f(x): raise ValueError('bad')\n"
    "if __name__ == '__main__':\n    with ProcessPoolExecutor(1) as pool: list(pool.map(f, [1]))": (
        "ValueError: bad (train.py:2)"
    ),
    "import subprocess, sys\n"
    "subprocess.check_call([sys.executable, '-c', 'raise ValueError(5)'])": (
        "ValueError: 5 (<string>:1)"
    ),
    "import argparse\n"
    "parser = argparse.ArgumentParser()\nparser.add_argument('--lr', type=float, required=True)\n"
    "parser.parse_args()": (
        "ExecuteUserScriptError: train.py: error: the following arguments are required: --lr"
    ),
    "import sys\nsys.exit('checksum mismatch')": "ExecuteUserScriptError: checksum mismatch",
    "import sys\nprint('bad things', file=sys.stderr)\nsys.exit(3)": (
        "ExecuteUserScriptError: the script ended with exit code 3"
    ),
}


@pytest.mark.parametrize("script", EXCEPTIONS)
def test_a_python_script_says_why_it_failed(base: Base, script: str) -> None:
    assert base.script(script).run().status != 0
    assert headline(base) == EXCEPTIONS[script]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no task groups")
def test_the_members_of_an_exception_group_are_named(base: Base) -> None:
    base.script(
        "import asyncio\nasync def fails(): raise ValueError('bad')\n"
        "async def main():\n"
        "    async with asyncio.TaskGroup() as group: group.create_task(fails())\n"
        "asyncio.run(main())"
    ).run()
    said = "unhandled errors in a TaskGroup (1 sub-exception): ValueError: bad"
    assert headline(base) == f"ExceptionGroup: {said} (train.py:4)"


@pytest.mark.parametrize("count", [10**5, 10**6, 3 * 10**6])
def test_a_message_of_a_megabyte_keeps_its_class_and_place(base: Base, count: int) -> None:
    base.script(f"raise ValueError('begins ' + 'm' * {count} + ' ends')").run()
    assert headline(base).startswith("ValueError: begins mmm")
    assert headline(base).endswith("... (train.py:1)")
    assert "ends" in base.failure_json()["last_lines"][-1]
    assert base.path("output/data/failure.json").stat().st_size < 200_000


def test_the_cause_of_an_exception_is_reported(base: Base) -> None:
    base.script(
        "def load():\n    raise OSError('the disk is gone')\n"
        "try:\n    load()\nexcept OSError as error:\n    raise RuntimeError('failed') from error"
    ).run()
    assert headline(base) == "RuntimeError: failed (train.py:6)"
    assert "OSError: the disk is gone" in base.failure().splitlines()
    assert "OSError: the disk is gone" in base.failure_json()["last_lines"]


SHELLS = {
    "foo\n": (127, "foo: command not found (run.sh:1)"),
    "set -u\necho $NOT_THERE\n": (1, "NOT_THERE: unbound variable (run.sh:2)"),
    "if true\nfi\n": (2, "syntax error near unexpected token `fi' (run.sh:2)"),
    "cat /nonexistent\n": (1, "cat: /nonexistent: No such file or directory"),
    "#!/bin/dash\n\nfoo\n": (127, "foo: not found (run.sh:3)"),
}


@pytest.mark.parametrize("script", SHELLS)
def test_a_shell_script_says_why_it_failed(base: Base, script: str) -> None:
    status, said = SHELLS[script]
    assert base.script(script, "run.sh").run().status == status
    assert headline(base) == f"ExecuteUserScriptError: {said}"


CRASHES = {
    "import ctypes\nmemory = ctypes.create_string_buffer(4096)\n"
    "ctypes.CDLL(None).free(ctypes.c_void_p((ctypes.addressof(memory) & -16) + 1032))": (
        "killed by SIGABRT (signal 6): free(): invalid pointer"
    ),
    "import faulthandler, ctypes\nfaulthandler.enable()\ndef f(): ctypes.string_at(0)\nf()": (
        "killed by SIGSEGV (signal 11): Fatal Python error: Segmentation fault (train.py:3)"
    ),
}


@pytest.mark.parametrize("script", CRASHES)
def test_a_crash_says_what_was_wrong(base: Base, script: str) -> None:
    base.script(script).run()
    assert headline(base) == f"ExecuteUserScriptError: {CRASHES[script]}"


SHARED = """
import mmap, os
file = os.open("/dev/shm/sm-test", os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 4 << 20)
memory = mmap.mmap(file, 4 << 20)
if "UNLINK" in os.environ:
    os.unlink("/dev/shm/sm-test")
for at in range(0, 4 << 20, 4096):
    memory[at] = 1
"""
SMALL = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm; exec "$@"')


@pytest.mark.skipif(os.getuid() != 0, reason="a file system can be mounted by root only")
@pytest.mark.parametrize("unlink", [False, True])
@pytest.mark.parametrize("by_shell", [False, True])
def test_shared_memory_without_room_is_reported_with_the_remedy(
    base: Base, unlink: bool, by_shell: bool
) -> None:
    base.script(SHARED)
    if by_shell:
        base.script(f"{sys.executable} train.py\nexit $?\n", "run.sh")
    result = base.run(prefix=(*SMALL, "sh"), **({"UNLINK": "1"} if unlink else {}))
    assert result.status == 135
    said = headline(base)
    assert "SIGBUS" in said
    assert f"{'as when ' if unlink else ''}/dev/shm is full (limit 1 MiB)" in said
    assert "--shm-size" in said


KERAS = """
import numpy as np
import tensorflow as tf
model = tf.keras.Sequential([tf.keras.layers.Embedding(5, 2), tf.keras.layers.GlobalMaxPool1D()])
model.compile("sgd", "mse")
model.fit(np.full((8, 3), 9), np.zeros((8, 2)), verbose=0)
"""


def test_the_reason_in_a_long_text_of_tensorflow_is_found(base: Base) -> None:
    base.script(KERAS).run()
    said = "Graph execution error: indices[0,0] = 9 is not in [0, 5)"
    assert headline(base) == f"InvalidArgumentError: {said} (train.py:6)"


def test_a_long_name_of_a_host_is_not_cut_in_the_middle(base: Base) -> None:
    name = "train-worker-0123456789-abcdefghijklmnopqrstuvwxyz-0123456789"
    base.write("input/config/resourceconfig.json", {"current_host": name, "hosts": [name]})
    base.script("raise ValueError('m' * 300)").run()
    assert base.failure().splitlines()[0].endswith(f"... (train.py:1) [{name}, exit 1]")
