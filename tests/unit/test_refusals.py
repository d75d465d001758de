"""What no job can mean ends it before anything is started, in a sentence."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests import dry
from tests.dry import Dry
from tests.harness import Base
from tests.unit.test_check import problems

FILES = ("hyperparameters.json", "inputdataconfig.json", "resourceconfig.json", "job.json")
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "blank": (b"  \n", ""),
    "invalid JSON": (b'{\n "a": 1,\n "b" 2}', "line 3 column 6"),
    "BOM": (codecs.BOM_UTF8 + b"{}", "byte order mark"),
    "UTF-16": ("{}".encode("utf-16"), ""),
    "not UTF-8": (b'{"a": "\xff"}', "UTF-8"),
    "a list": (b"[]", ""),
    "a number": (b"3", ""),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_ends_the_job_in_one_sentence(base: Base, file: str, case: str) -> None:
    data, hint = MALFORMED[case]
    path = base.write(f"input/config/{file}", data)
    result = dry.train(base.script(""))
    assert (result.status, result.commands) == (1, [])
    headline = base.failure().splitlines()[0]
    assert headline.startswith("ConfigError: ")
    assert str(path) in result.log and file in base.failure()
    assert hint in base.failure()
    assert "Traceback" not in result.log
    assert base.failure_json()["phase"] == "config"


WRONG = {
    "current_host": (
        "resourceconfig.json",
        {"current_host": "b", "hosts": ["a"]},
        ("current_host", "b"),
    ),
    "hosts": (
        "resourceconfig.json",
        {"current_host": "a", "hosts": "a"},
        ("hosts",),
    ),
    "mode": (
        "inputdataconfig.json",
        {"train": {"TrainingInputMode": "Fiel"}},
        ("TrainingInputMode", "Fiel"),
    ),
    "reserved": (
        "hyperparameters.json",
        {"sagemaker_mpi_enabled": "maybe"},
        ("sagemaker_mpi_enabled", "maybe"),
    ),
    "level": (
        "hyperparameters.json",
        {"sagemaker_container_log_level": "loud"},
        ("sagemaker_container_log_level", "loud"),
    ),
    "nul": ("hyperparameters.json", {"a": "x\0y"}, ("a", "NUL")),
    "unknown key": ("job.json", {"TrainingJobNam": "x"}, ("TrainingJobNam",)),
    "scheme": (
        "job.json",
        {"OutputDataConfig": {"S3OutputPath": "ftp://x"}},
        ("S3OutputPath", "ftp://x"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_named_with_its_file_and_key(base: Base, case: str) -> None:
    file, document, words = WRONG[case]
    path = base.write(f"input/config/{file}", document)
    result = dry.train(base.script(""))
    assert (result.status, result.commands) == (1, [])
    assert all(word in base.failure() for word in (path.name, *words)), base.failure()


def test_check_lists_every_problem_at_once(base: Base) -> None:
    for case in ("current_host", "mode", "reserved"):
        file, document, _ = WRONG[case]
        base.write(f"input/config/{file}", document)
    result = dry.look(base.script(""), "check")
    assert result.status == 1
    text = result.out
    assert len(text.splitlines()) == 3
    assert all(file in text for file in FILES[:3])


CHANNELS = {
    "managed": {"inputdataconfig": {"train": {}, "fast": {"TrainingInputMode": "FastFile"}}},
    "self-managed": {
        "job": {
            "InputDataConfig": [
                {"ChannelName": "train"},
                {"ChannelName": "fast", "InputMode": "FastFile"},
            ]
        }
    },
}


@pytest.mark.parametrize("mode", CHANNELS)
def test_a_channel_without_its_folder_is_a_warning(base: Base, mode: str) -> None:
    for name, document in CHANNELS[mode].items():
        base.write(f"input/config/{name}.json", document)
    result = dry.train(base.script(""))
    assert (result.status, len(result.commands)) == (0, 1), result.log
    for name in ("train", "fast"):
        where = f"channel {name}: {base.path('input/data', name)} does not exist"
        lines = [line for line in result.log.splitlines() if where in line]
        assert len(lines) == 1 and " WARNING " in lines[0], result.log
        assert where in problems(base)
        base.path("input/data", name).mkdir(parents=True)
        base.write(f"input/data/{name}/x", "1")
    assert " WARNING channel" not in dry.train(base).log


def test_a_fifo_that_the_platform_makes_later_is_no_warning(base: Base) -> None:
    base.write("input/config/inputdataconfig.json", {"train": {"TrainingInputMode": "Pipe"}})
    assert "channel train" not in dry.train(base.script("")).log


def test_model_parallel_parameters_alone_are_an_ordinary_hyperparameter(base: Base) -> None:
    base.hyperparameters(mp_parameters='{"partitions": 2}')
    result = dry.train(base.script(""))
    assert result.argv[-2:] == ("--mp_parameters", "partitions=2")
    base.hyperparameters(mp_parameters='{"partitions": 2}', sagemaker_mpi_enabled="true")
    (problem,) = problems(base)
    assert "mp_parameters: asks for SageMaker's model parallel library" in problem


def test_no_program_names_what_to_set_and_what_was_found(base: Base) -> None:
    base.write("code/other.py", "")
    result = dry.train(base)
    assert result.status == 1
    for word in ("SAGEMAKER_PROGRAM", "sagemaker_program", "other.py"):
        assert word in base.failure()


def look_or_train(base: Base, command: str) -> Dry:
    return dry.train(base) if command == "train" else dry.look(base, command)


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_key_that_cannot_be_encoded_is_a_problem(base: Base, command: str) -> None:
    base.write("input/config/hyperparameters.json", '{"\\ud800": "1"}')
    result = look_or_train(base.script(""), command)
    assert result.status == 1
    assert "Traceback" not in result.log
    if command == "train":
        assert base.failure().startswith("ConfigError: ")


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_distribution_that_is_proprietary_is_refused(base: Base, command: str) -> None:
    key = "sagemaker_distributed_dataparallel_enabled"
    base.hyperparameters(**{key: "true"})
    result = look_or_train(base.script(""), command)
    assert result.status == 1, result.log
    assert key in result.out + result.log
    assert result.commands == []


def refused(result: Dry, base: Base) -> str:
    """Return the sentence with which a job was refused."""
    assert (result.status, result.commands) == (1, []), result.log
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
        os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize("kind", ["FIFO", "device", "socket", "directory"])
@pytest.mark.parametrize("file", FILES)
def test_what_is_no_file_is_named(base: Base, file: str, kind: str) -> None:
    base.path("input/config").mkdir(parents=True)
    place(base.path("input/config", file), kind)
    sentence = refused(dry.train(base.script("")), base)
    assert f"{file}: is a {kind}, it must be a file" in sentence


@pytest.mark.parametrize("command", ["check", "env"])
def test_looking_at_a_job_waits_for_no_fifo(base: Base, command: str) -> None:
    base.path("input/config").mkdir(parents=True)
    os.mkfifo(base.path("input/config/job.json"))
    result = dry.look(base.script(""), command)
    assert result.status == 1
    assert "job.json: is a FIFO, it must be a file" in result.out


def test_a_request_that_never_ends_is_refused(base: Base) -> None:
    sentence = refused(dry.train(base.script(""), SM_RUNTIME_JOB="/dev/zero"), base)
    assert "/dev/zero: is a device, it must be a file" in sentence


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
    sentence = refused(dry.train(base.script("")), base)
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
def test_a_wait_beyond_the_longest_is_refused(base: Base, name: str) -> None:
    assert dry.train(base.script(""), **{name: "2147483647"}).status == 0
    assert name in refused(dry.train(base.script(""), **{name: "1e300"}), base)


@pytest.mark.parametrize("count", [10**5, 10**17])
@pytest.mark.parametrize(
    "key", ["sagemaker_mpi_num_of_processes_per_host", "sagemaker_mpi_num_processes"]
)
def test_more_processes_than_a_host_can_have_are_refused(base: Base, key: str, count: int) -> None:
    base.hyperparameters(sagemaker_mpi_enabled="true", **{key: str(count)})
    sentence = refused(dry.train(base.script("")), base)
    assert key in sentence and f"not {count}" in sentence


@pytest.mark.parametrize(
    "value", ["mine", "mine:", ":main", "a b:c", "mine:main()", "a/b:main", "a..b:main", "m:a:b"]
)
def test_a_malformed_hook_is_a_configuration_error(base: Base, value: str) -> None:
    result = dry.train(base.script(""), SAGEMAKER_TRAINING_MODULE=value)
    assert (result.status, result.commands) == (1, [])
    assert "SAGEMAKER_TRAINING_MODULE" in base.failure() and value in base.failure()
