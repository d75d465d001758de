"""A limit of the container is not called a fault of the runtime."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from sm_runtime.processes import shortage

SHORT = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("can't start new thread"),
    ImportError("x.so: failed to map segment from shared object"),
]
OTHERS = [
    ValueError("start new thread"),
    RuntimeError("other"),
    OSError(errno.ENOSPC, "No space"),
    ImportError("no module"),
]


@pytest.mark.parametrize("error", SHORT, ids=repr)
def test_a_want_of_memory_or_threads_is_a_sentence(error: BaseException) -> None:
    reason = shortage.reason(error)
    assert reason is not None
    assert "no thread can be started" in reason or "not enough memory" in reason


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_any_other_error_is_what_it_is(error: BaseException) -> None:
    assert shortage.reason(error) is None


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
