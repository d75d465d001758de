"""`sm-runtime check` lists every problem, and blames nothing that it cannot know."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests import dry
from tests.harness import Base


def test_check_looks_at_code_and_channels(base: Base) -> None:
    base.write("input/config/inputdataconfig.json", {"train": {"TrainingInputMode": "File"}})
    base.environ["SAGEMAKER_PROGRAM"] = "nosuch.py"
    base.write("code/train.py", "")
    before = sorted(base.root.rglob("*"))
    result = dry.look(base, "check")
    assert result.status == 1
    assert "nosuch.py" in result.out and "channel train" in result.out
    assert sorted(base.root.rglob("*")) == before
    base.environ["SAGEMAKER_PROGRAM"] = "train.py"
    base.write("input/data/train/x", "1")
    result = dry.look(base, "check")
    assert (result.status, result.out) == (0, "no problem found\n")


def problems(base: Base, **environ: str) -> list[str]:
    result = dry.look(base, "check", **environ)
    assert result.status == 1, result.log
    assert "Traceback" not in result.log
    return result.out.splitlines()


def test_check_lists_problems_of_every_kind_at_once(base: Base, tmp_path: Path) -> None:
    """Each of another part of the runtime: none of them hides the others."""
    source = {"S3DataSource": {"S3Uri": f"file://{tmp_path}/nosuch"}}
    base.write(
        "input/config/job.json",
        {
            "TrainingJobName": "a/b",
            "InputDataConfig": [
                {"ChannelName": "gone", "DataSource": source},
                {"ChannelName": "nowhere"},
                {"ChannelName": "unfed", "InputMode": "Pipe"},
                {"ChannelName": "mode", "InputMode": "Fiel"},
            ],
            "OutputDataConfig": {"S3OutputPath": f"file://{base.path('model')}/out"},
            "CheckpointConfig": {"S3Uri": f"file://{base.path('checkpoints')}/c"},
            "HyperParameters": {"long": "x" * 200_000, "sagemaker_mpi_enabled": "perhaps"},
            "ResourceConfig": {"InstanceCount": 2},
        },
    )
    os.mkfifo(base.path("input/config/resourceconfig.json"))
    base.environ["SAGEMAKER_PROGRAM"] = "nosuch.py"
    base.write("code/other.py", "")
    found = problems(base, SM_RUNTIME_STALL_SECONDS="soon")
    words = {
        "a file": "resourceconfig.json: is a FIFO",
        "the request": "TrainingJobName: must be",
        "a mode": "InputDataConfig[3].InputMode: must be",
        "a hyperparameter": "sagemaker_mpi_enabled: must be true or false",
        "an option": "SM_RUNTIME_STALL_SECONDS: must be a number",
        "the output": "S3OutputPath",
        "checkpoints": "CheckpointConfig.S3Uri",
        "a size": "hyperparameters: long: is 200000 bytes long",
        "the program": "program 'nosuch.py' is not in",
        "a source": "channel gone: ",
        "a channel's folder": f"channel nowhere: {base.path('input/data/nowhere')} does not exist",
        "a channel's FIFO": "channel unfed: ",
    }
    missing = [what for what, word in words.items() if not any(word in line for line in found)]
    assert not missing, found
    assert len(found) == len(words), found


def test_check_does_not_blame_what_it_cannot_know(base: Base) -> None:
    """The program, and where it is, may stand in the file that cannot be read."""
    base.write("input/config/hyperparameters.json", "{")
    assert len(problems(base)) == 1
    assert len(problems(base, SAGEMAKER_PROGRAM="train.py")) == 1
    base.write("code/other.py", "")
    assert len(problems(base, SAGEMAKER_PROGRAM="train.py")) == 2


def test_check_names_a_program_that_is_missing_beside_other_problems(base: Base) -> None:
    base.hyperparameters(sagemaker_program="nosuch.py", sagemaker_container_log_level="loud")
    base.write("code/other.py", "")
    assert [("nosuch.py" in line, "loud" in line) for line in problems(base)] == [
        (False, True),
        (True, False),
    ]


def test_check_says_each_thing_once(base: Base) -> None:
    base.write("input/config/job.json", {"InputDataConfig": [1], "OutputDataConfig": "x"})
    base.script("")
    found = problems(base)
    assert len(found) == len(set(found)) == 2


SHELL = ["/bin/sh", "-c"]


def request(base: Base, entry: list[str], arguments: list[str] | None = None, **more: Any) -> None:
    algorithm: dict[str, Any] = {"ContainerEntrypoint": entry}
    if arguments is not None:
        algorithm["ContainerArguments"] = arguments
    base.write(
        "input/config/job.json",
        {"TrainingJobName": "j", "AlgorithmSpecification": algorithm, **more},
    )


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("nosuch", "ContainerEntrypoint: 'nosuch' is not on PATH"),
        ("/nosuch", "ContainerEntrypoint: '/nosuch' does not exist"),
        ("/etc/passwd", "ContainerEntrypoint: '/etc/passwd' is not executable"),
    ],
)
def test_check_names_a_program_that_cannot_be_started(base: Base, entry: str, reason: str) -> None:
    request(base, [entry])
    result = dry.look(base, "check")
    assert (result.status, result.out) == (1, f"{reason}\n")


def test_check_and_env_know_an_entry_point(base: Base) -> None:
    request(base, [*SHELL, "echo"], ["one"])
    assert dry.look(base, "check").out == "no problem found\n"
    found = json.loads(dry.look(base, "env", "--json").out)
    assert (found["command"], found["arguments"]) == ([*SHELL, "echo", "one"], ["one"])
