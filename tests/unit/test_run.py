"""A job from its configuration to its reports, whatever becomes of its script."""

from __future__ import annotations

import signal

import pytest

from sm_runtime.job.model import Ended
from tests import dry
from tests.harness import Base


@pytest.mark.parametrize("status", [0, 1, 2, 3, 42, 77, 125, 126, 127, 128, 143, 255])
def test_the_exit_status_is_the_scripts(base: Base, status: int) -> None:
    result = dry.train(base.script(""), lambda _: Ended(status=status))
    assert result.status == status, result.log
    assert base.path("output/success").exists() == (status == 0)
    assert base.path("output/failure").exists() == (status != 0)
    if status:
        assert f"exit {status}]" in base.failure().splitlines()[0]
        assert base.failure_json()["exit"] == status


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM", "SIGFPE"])
def test_a_signal_gives_128_plus_it_and_is_named(base: Base, name: str) -> None:
    number = signal.Signals[name]
    ended = Ended(status=128 + number, signal=number)
    assert dry.train(base.script(""), lambda _: ended).status == 128 + number
    assert name in base.failure().splitlines()[0]
    assert base.failure_json()["signal"] == name
    assert base.failure_json()["oom"] is False
