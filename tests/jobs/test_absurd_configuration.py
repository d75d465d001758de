"""What no job can mean ends it at once, in a sentence: no hang, no traceback, no fork bomb."""

from __future__ import annotations

import os

import pytest

from tests.harness import Base


def test_what_is_no_file_ends_the_job_at_once(base: Base) -> None:
    base.path("input/config").mkdir(parents=True)
    os.mkfifo(base.path("input/config/job.json"))
    result = base.script("print('ran')").run(seconds=30)
    assert (result.status, result.out) == (1, b""), result.log
    assert base.failure().startswith("ConfigError: ")
    assert "job.json: is a FIFO, it must be a file" in base.failure_json()["message"]
    assert "Traceback" not in result.log


def test_the_file_of_the_clusters_secret_is_a_file(base: Base) -> None:
    os.mkfifo(base.root / "secret")
    base.hyperparameters(sagemaker_multi_worker_mirrored_strategy_enabled="true")
    result = base.script("").run(SM_RUNTIME_CLUSTER_SECRET_FILE=f"{base.root}/secret", seconds=30)
    assert (result.status, result.out) == (1, b""), result.log
    assert "Traceback" not in result.log
    assert base.failure().startswith("ConfigError: ")
    assert "SM_RUNTIME_CLUSTER_SECRET_FILE" in base.failure_json()["message"]


def test_the_longest_waits_that_are_taken_work(base: Base) -> None:
    """A float, a C int or a poll may hold less."""
    base.write("input/config/job.json", {"StoppingCondition": {"MaxRuntimeInSeconds": 2**31 - 1}})
    names = ("STALL", "STOP_GRACE", "STOP_TIMEOUT", "LEFTOVER_GRACE", "SILENCE")
    waits = {f"SM_RUNTIME_{name}_SECONDS": "2147483647" for name in names}
    result = base.script("print('ran')").run(**waits)
    assert (result.status, result.out) == (0, b"ran\n"), result.log


def test_no_silence_is_too_long_where_the_option_says_so(base: Base) -> None:
    result = base.script("import time; time.sleep(0.5)").run(SM_RUNTIME_SILENCE_SECONDS="0")
    assert result.status == 0
    assert "no output" not in result.log


@pytest.mark.parametrize("mebibytes", [20, 24, 30, 33])
def test_too_little_address_space_is_said_to_be_that(base: Base, mebibytes: int) -> None:
    prefix = ("sh", "-c", f'ulimit -v {mebibytes * 1024} && exec "$@"', "sh")
    result = base.script("print('ran')").run(prefix=prefix)
    if result.status == 0 and result.out == b"ran\n":
        return  # there is enough, with this Python
    assert result.status == 1, result.log
    assert "the runtime itself failed" not in result.log
    assert f"{mebibytes} MiB of address space (RLIMIT_AS" in result.log
    assert f"{mebibytes} MiB of address space" in base.failure().splitlines()[0]
