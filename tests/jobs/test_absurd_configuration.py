"""What no job can mean ends it at once, in a sentence: no hang, no traceback, no fork bomb."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.harness import RUNTIME, Base, Result

FILES = ("hyperparameters.json", "job.json", "resourceconfig.json", "inputdataconfig.json")


def refused(result: Result, base: Base) -> str:
    """Return the sentence with which a job was refused."""
    assert (result.status, result.out) == (1, b""), result.log
    assert "Traceback" not in result.log
    assert base.failure().startswith("ConfigError: "), base.failure()
    message: str = base.failure_json()["message"]
    return message


def place(path: Path, kind: str) -> None:
    """Put something that is no file at ``path``."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as made:
            here = os.getcwd()
            os.chdir(path.parent)  # the path of a socket is short
            try:
                made.bind(path.name)
            finally:
                os.chdir(here)


@pytest.mark.parametrize("kind", ["FIFO", "device", "socket", "directory"])
@pytest.mark.parametrize("file", FILES)
def test_what_is_no_file_is_named(base: Base, file: str, kind: str) -> None:
    base.path("input/config").mkdir(parents=True)
    place(base.path("input/config", file), kind)
    sentence = refused(base.script("print('ran')").run(seconds=30), base)
    assert f"{file}: is a {kind}, it must be a file" in sentence


@pytest.mark.parametrize("command", ["check", "env"])
def test_looking_at_a_job_waits_for_no_fifo(base: Base, command: str) -> None:
    base.path("input/config").mkdir(parents=True)
    os.mkfifo(base.path("input/config/job.json"))
    result = base.script("").run(command, command=RUNTIME, seconds=30)
    assert result.status == 1
    assert b"job.json: is a FIFO, it must be a file" in result.out


def test_a_request_that_never_ends_is_refused(base: Base) -> None:
    sentence = refused(base.script("").run(SM_RUNTIME_JOB="/dev/zero", seconds=30), base)
    assert "/dev/zero: is a device, it must be a file" in sentence


@pytest.mark.parametrize("where", ["the file", "the variable"])
def test_the_file_of_the_clusters_secret_is_a_file(base: Base, where: str) -> None:
    os.mkfifo(base.root / "secret")
    base.hyperparameters(sagemaker_multi_worker_mirrored_strategy_enabled="true")
    result = base.script("").run(SM_RUNTIME_CLUSTER_SECRET_FILE=f"{base.root}/secret", seconds=30)
    assert "SM_RUNTIME_CLUSTER_SECRET_FILE" in refused(result, base)


NUMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "time": ({"StoppingCondition": {"MaxRuntimeInSeconds": 10**400}}, "MaxRuntimeInSeconds"),
    "hosts": ({"ResourceConfig": {"InstanceCount": 10**400}}, "InstanceCount"),
    "seed": (
        {"InputDataConfig": [{"ChannelName": "c", "ShuffleConfig": {"Seed": -(10**400)}}]},
        "Seed",
    ),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_a_number_that_is_out_of_all_bounds_is_a_sentence(base: Base, case: str) -> None:
    job, key = NUMBERS[case]
    base.write("input/config/job.json", job)
    sentence = refused(base.script("").run(), base)
    assert key in sentence and "must be a whole number of at" in sentence


@pytest.mark.parametrize(
    "name",
    [
        "SM_RUNTIME_STALL_SECONDS",
        "SM_RUNTIME_STOP_GRACE_SECONDS",
        "SM_RUNTIME_STOP_TIMEOUT_SECONDS",
        "SM_RUNTIME_LEFTOVER_GRACE_SECONDS",
        "SM_RUNTIME_SILENCE_SECONDS",
    ],
)
def test_the_longest_wait_that_is_taken_works(base: Base, name: str) -> None:
    result = base.script("print('ran')").run(**{name: "2147483647"})
    assert (result.status, result.out) == (0, b"ran\n"), result.log
    assert name in refused(base.script("print('ran')").run(**{name: "1e300"}), base)


def test_a_limit_of_the_time_that_a_float_can_hold_works(base: Base) -> None:
    base.write("input/config/job.json", {"StoppingCondition": {"MaxRuntimeInSeconds": 2**31 - 1}})
    assert base.script("print('ran')").run().out == b"ran\n"


def test_no_silence_is_too_long_where_the_option_says_so(base: Base) -> None:
    result = base.script("import time; time.sleep(0.5)").run(SM_RUNTIME_SILENCE_SECONDS="0")
    assert result.status == 0
    assert "no output" not in result.log


@pytest.mark.parametrize("count", [10**5, 10**17])
@pytest.mark.parametrize(
    "key", ["sagemaker_mpi_num_of_processes_per_host", "sagemaker_mpi_num_processes"]
)
def test_more_processes_than_a_host_can_have_are_refused(base: Base, key: str, count: int) -> None:
    base.hyperparameters(sagemaker_mpi_enabled="true", **{key: str(count)})
    sentence = refused(base.script("print('ran')").run(seconds=30), base)
    assert key in sentence and f"not {count}" in sentence


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
