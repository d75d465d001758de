"""What a container's seccomp profile forbids is done without, and said."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from tests import seccomp
from tests.harness import Base, eventually, processes_with

SAID = {"fallocate": "without fallocate (", "prctl": "prctl is not permitted here"}
FORBIDDEN = [("fallocate",), ("prctl",), ("fallocate", "prctl")]
ERRORS = [errno.EPERM, errno.ENOSYS]


def forbids(calls: tuple[str, ...], error: int) -> tuple[str, ...]:
    """Return the prefix of a command that has these system calls fail."""
    return (sys.executable, str(Path(seccomp.__file__)), str(error), *calls, "--")


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("calls", FORBIDDEN, ids="-".join)
def test_a_job_succeeds(base: Base, calls: tuple[str, ...], error: int) -> None:
    base.script("print('fine')")
    result = base.run(prefix=forbids(calls, error))
    assert (result.status, result.out) == (0, b"fine\n"), result.log
    assert base.path("output/success").exists()
    for call, text in SAID.items():
        assert result.log.count(text) == (call in calls), result.log


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("calls", FORBIDDEN, ids="-".join)
def test_a_job_fails_with_its_reason(base: Base, calls: tuple[str, ...], error: int) -> None:
    base.script("raise ValueError('no more apples')")
    result = base.run(prefix=forbids(calls, error))
    assert result.status == 1
    assert base.failure().startswith("ValueError: no more apples")


def test_space_is_reserved_without_fallocate(base: Base) -> None:
    script = """
import os
from pathlib import Path
found = (Path(os.environ["SM_OUTPUT_DATA_DIR"]).parent / ".failure-reserve").stat()
print(found.st_blocks * 512 >= 64 << 10)
"""
    result = base.script(script).run(prefix=forbids(("fallocate",), errno.EPERM))
    assert (result.status, result.out) == (0, b"True\n"), result.log


def test_what_the_script_leaves_in_its_group_is_ended_without_prctl(
    base: Base, tmp_path: Path
) -> None:
    marker = f"leftover-{tmp_path.name}"
    base.script(f"import subprocess; subprocess.Popen(['sh', '-c', 'sleep 1000 # {marker}'])")
    assert base.run(prefix=forbids(("prctl",), errno.EPERM)).status == 0
    eventually(lambda: not processes_with(marker), "the leftover has been ended")
