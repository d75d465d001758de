"""A limit of the container is not called a fault of the runtime."""

from __future__ import annotations

import errno

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
