"""Arguments and variables as they reach a program that is started with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sm_runtime.code.entry import Found, program_words
from sm_runtime.contract import environment
from sm_runtime.job.model import Cluster, Hardware, Job, Paths

ARGUMENTS = ("--key", "a b", "", 'it\'s "x"', "$(touch /tmp/PWN)", "a\nb", "\udce9")
CPU = Hardware(cpus=1)


def job(hyperparameters: dict[str, Any] | None = None, **fields: Any) -> Job:
    cluster = Cluster(current_host="algo-1", hosts=("algo-1",))
    return Job(paths=Paths(), cluster=cluster, hyperparameters=hyperparameters or {}, **fields)


@pytest.mark.parametrize(
    ("function", "status"), [("main", 3), ("Job.run", 4), ("nothing", 0)], ids=str
)
def test_a_function_runs_as_a_program_and_its_value_is_the_status(
    tmp_path: Path, function: str, status: int
) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "mod.py").write_text(
        "import sys\n"
        "def main(): print(ascii(sys.argv)); return 3\n"
        "class Job:\n"
        "    @staticmethod\n"
        "    def run(): print(ascii(sys.argv)); return 4\n"
        "def nothing(): print(ascii(sys.argv))\n"
    )
    program = f"pkg.mod:{function}"
    words = program_words(program, Found(folder=str(tmp_path), module_here=True), sys.executable)
    result = subprocess.run([*words, *ARGUMENTS], cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == status
    assert result.stdout.decode() == ascii([program, *ARGUMENTS]) + "\n"


def test_a_shell_sees_the_twin() -> None:
    found, _ = environment.process_environment(job({"batch-size": 32}), CPU, {}, ())
    shell = subprocess.run(
        ("/bin/sh", "-c", 'echo "$SM_HP_BATCH_SIZE"'), env=found, capture_output=True, check=True
    )
    assert shell.stdout == b"32\n"


@pytest.mark.parametrize(
    ("excess", "dropped"),
    [(0, "SM_HPS, SM_TRAINING_ENV, SM_USER_ARGS"), (1, "SM_HPS, SM_TRAINING_ENV, SM_USER_ARGS, ")],
)
def test_what_the_kernel_does_not_take_is_left_out_and_the_rest_arrives(
    excess: int, dropped: str
) -> None:
    value = "x" * (environment.LONGEST - len("SM_HP_BIG=") + excess)
    found, warnings = environment.process_environment(job({"big": value}), CPU, {}, ())
    assert ("SM_HP_BIG" in found) is not bool(excess)
    assert len(warnings) == 1
    assert warnings[0].startswith(dropped)
    assert "xxx" not in warnings[0]
    script = subprocess.run(("/usr/bin/env", "-0"), env=found, capture_output=True, check=True)
    assert sorted(script.stdout.decode().split("\0")[:-1]) == sorted(
        f"{name}={value}" for name, value in found.items()
    )


def test_a_hyperparameter_that_no_argument_can_hold_is_named() -> None:
    fits = job({"big": "x" * environment.LONGEST})
    assert environment.oversized(fits) == ()
    subprocess.run(("/bin/true", *environment.arguments(fits)), check=True)
    (problem,) = environment.oversized(job({"big": "x" * (environment.LONGEST + 1), "ok": "1"}))
    assert problem.startswith("hyperparameters: big: is 131072 bytes long")


def test_undecodable_bytes_reach_the_process() -> None:
    text = os.fsdecode(b"\xff \x80")
    found, _ = environment.process_environment(job({"raw": text}), CPU, {}, ())
    script = subprocess.run(
        ("/usr/bin/printenv", "SM_HP_RAW"), env=found, capture_output=True, check=True
    )
    assert script.stdout == b"\xff \x80\n"


def test_a_limit_of_the_address_space_is_named() -> None:
    """In a process of its own: a limit stays."""
    code = (
        "import resource\n"
        "from sm_runtime.processes import shortage\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, resource.RLIM_INFINITY))\n"
        "print(shortage.reason(MemoryError()))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert b"1024 MiB of address space (RLIMIT_AS, `ulimit -v`)" in out
