"""The SageMaker Python SDK's local mode starts the images as it starts any other."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.docker.container import ROOT, docker, host_address
from tests.s3 import CREDENTIALS, Server, serving_by_rclone

PYTHON = ROOT / "build/sdk/bin/python"  # made by scripts/docker test
SETTINGS = {
    "SchemaVersion": "1.0",
    "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}},
}
SHOWS = """
import argparse, json, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.add_argument("--learning-rate", type=float)
parser.add_argument("--name")
parser.add_argument("--nested")
parser.add_argument("--train", default=os.environ.get("SM_CHANNEL_TRAIN"))
parser.add_argument("--test", default=os.environ.get("SM_CHANNEL_TEST"))
args = vars(parser.parse_args())
for name in ("train", "test"):
    args[name] = args[name] and pathlib.Path(args[name], "part").read_text()
args["module"] = __import__("beside").VALUE
args["hyperparameters"] = json.loads(os.environ["SM_HPS"])
args["job"] = json.loads(os.environ["SM_TRAINING_ENV"])["job_name"]
args["hosts"] = json.loads(os.environ["SM_HOSTS"]) == [os.environ["SM_CURRENT_HOST"]]
pathlib.Path(os.environ["SM_MODEL_DIR"], "result.json").write_text(json.dumps(args))
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "notes").write_text("fine")
"""


@dataclass(frozen=True)
class Job:
    """How a job of the SDK ended: its status, what it printed, what it said was wrong."""

    status: int
    log: str
    error: str
    folder: Path

    def artifact(self, archive: str, member: str) -> str:
        with tarfile.open(self.folder / "artifacts" / f"{archive}.tar.gz") as opened:
            names = {name.removeprefix("./"): name for name in opened.getnames()}
            stream = opened.extractfile(names[member])
            assert stream is not None
            return stream.read().decode()

    def members(self, archive: str) -> set[str]:
        with tarfile.open(self.folder / "artifacts" / f"{archive}.tar.gz") as opened:
            return {member.name.removeprefix("./") for member in opened if member.isfile()}


def sdk(
    script: str, specification: dict[str, Any], folder: Path, python: Path = PYTHON, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a script with the SDK's Python, nothing of this machine's AWS set-up in its view."""
    path = folder / "specification.json"
    path.write_text(json.dumps(specification), encoding="utf-8")
    settings = folder / "settings.yaml"
    settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        **CREDENTIALS,
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(settings),
        # Whoever runs the tests may be cut off: nothing may wait for AWS's own addresses.
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_MAX_ATTEMPTS": "1",
        **more,
    }
    return subprocess.run(
        (python, ROOT / "tests/docker" / script, path),
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )


def remove_projects(folder: Path) -> None:
    """Remove the stopped containers that the SDK leaves of its Compose projects."""
    label = "com.docker.compose.project.working_dir"
    listing = docker("ps", "-a", "--format", f'{{{{.ID}}}} {{{{.Label "{label}"}}}}')
    for line in listing.splitlines():
        container, _, project = line.partition(" ")
        if project.startswith(str(folder)):
            docker("rm", "-f", container)


@pytest.fixture
def folder(tmp_path: Path, cpu_image: str) -> Iterator[Path]:
    for name in ("code", "root", "artifacts", "data/train", "data/test"):
        (tmp_path / name).mkdir(parents=True)
    for channel in ("train", "test"):
        (tmp_path / "data" / channel / "part").write_text(f"{channel} data", encoding="utf-8")
    (tmp_path / "code/train.py").write_text(SHOWS, encoding="utf-8")
    (tmp_path / "code/beside.py").write_text("VALUE = 'beside'\n", encoding="utf-8")
    yield tmp_path
    remove_projects(tmp_path)


@pytest.fixture
def server(tmp_path: Path, cpu_image: str) -> Iterator[Server]:
    """An S3 server that containers reach."""
    with serving_by_rclone(tmp_path / "s3", host_address()) as found:
        (found.folder / "a-bucket").mkdir()
        yield found


def fit(image: str, folder: Path, **arguments: Any) -> Job:
    """Fit an estimator whose data and artifacts are folders."""
    specification = {
        "image_uri": image,
        "entry_point": "train.py",
        "source_dir": str(folder / "code"),
        "root": str(folder / "root"),
        "output_path": f"file://{folder / 'artifacts'}",
        "inputs": {"train": f"file://{folder / 'data/train'}"},
        **arguments,
    }
    done = sdk("sdk_job.py", specification, folder)
    error = folder / "error"
    return Job(
        done.returncode,
        done.stdout,
        error.read_text(encoding="utf-8") if error.exists() else "",
        folder,
    )


def test_script_mode_with_typed_hyperparameters_and_two_channels(
    cpu_image: str, folder: Path
) -> None:
    hyperparameters = {
        "epochs": 3,
        "learning-rate": 0.1,
        "name": 'it\'s a "name"',
        "nested": {"a": [1, 2]},
    }
    job = fit(
        cpu_image,
        folder,
        hyperparameters=hyperparameters,
        inputs={
            "train": f"file://{folder / 'data/train'}",
            "test": f"file://{folder / 'data/test'}",
        },
    )
    assert job.status == 0, job.log
    result = json.loads(job.artifact("model", "result.json"))
    assert result["epochs"] == 3
    assert result["learning_rate"] == 0.1
    assert result["name"] == hyperparameters["name"]
    assert result["nested"] == "a=[1, 2]"
    assert result["hyperparameters"] == hyperparameters
    assert (result["train"], result["test"]) == ("train data", "test data")
    assert result["module"] == "beside"
    assert result["job"] == "sdk-job"
    assert result["hosts"] is True
    assert job.members("output") == {"data/notes", "metrics/job.json", "success"}


def through_storage(image: str, folder: Path, server: Server, **arguments: Any) -> Job:
    """Fit an estimator whose code the SDK packs and uploads, with a dependency beside it."""
    library = folder / "elsewhere/common"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("", encoding="utf-8")
    (library / "lib.py").write_text("VALUE = 'dependency'\n", encoding="utf-8")
    (folder / "code/requirements.txt").write_text("numpy>=1.20\nboto3\n", encoding="utf-8")
    return fit(
        image,
        folder,
        s3={"url": server.url, "bucket": "a-bucket"},
        dependencies=[str(library)],
        **arguments,
    )


def test_code_and_dependencies_that_the_sdk_uploads_are_fetched(
    cpu_image: str, folder: Path, server: Server
) -> None:
    (folder / "code/train.py").write_text(
        SHOWS.replace('"beside").VALUE', '"common.lib").lib.VALUE'), encoding="utf-8"
    )
    hyperparameters = {"epochs": 3, "learning-rate": 0.1, "name": "plain", "nested": {"a": [1]}}
    job = through_storage(cpu_image, folder, server, hyperparameters=hyperparameters)
    assert job.status == 0, job.log
    assert "downloaded s3://a-bucket/sdk-job/source/sourcedir.tar.gz" in job.log
    result = json.loads(job.artifact("model", "result.json"))
    assert result["module"] == "dependency"
    assert (result["epochs"], result["learning_rate"]) == (3, 0.1)
    assert result["hyperparameters"] == hyperparameters
    assert result["train"] == "train data"
    assert job.members("output") == {"data/notes", "metrics/job.json", "success"}


def test_a_failure_of_uploaded_code_comes_through(
    cpu_image: str, folder: Path, server: Server
) -> None:
    (folder / "code/train.py").write_text("import os; os._exit(3)", encoding="utf-8")
    job = through_storage(cpu_image, folder, server)
    assert job.status == 1
    assert "exited with code 3" in job.log


def test_requirements_that_the_image_meets_cost_no_network(cpu_image: str, folder: Path) -> None:
    (folder / "code/requirements.txt").write_text("numpy>=1.20\nboto3\n", encoding="utf-8")
    (folder / "code/train.py").write_text("import numpy, boto3\n", encoding="utf-8")
    job = fit(cpu_image, folder)
    assert job.status == 0, job.log
    assert not list((folder / "code").glob("**/*.egg-info"))


def test_a_shell_script_can_be_the_entry_point(cpu_image: str, folder: Path) -> None:
    (folder / "code/run.sh").write_text(
        'set -eu\necho "$@" >"$SM_MODEL_DIR/arguments"\n', encoding="utf-8"
    )
    job = fit(cpu_image, folder, entry_point="run.sh", hyperparameters={"epochs": 3})
    assert job.status == 0, job.log
    assert job.artifact("model", "arguments") == "--epochs 3\n"


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        ("raise ValueError('no more apples')", 1, "ValueError: no more apples"),
        ("import os; os._exit(3)", 3, "3"),
    ],
)
def test_a_failure_comes_through_with_its_reason(
    cpu_image: str, folder: Path, script: str, status: int, reason: str
) -> None:
    (folder / "code/train.py").write_text(script, encoding="utf-8")
    job = fit(cpu_image, folder)
    assert job.status == 1
    assert "Failed to run" in job.error
    assert f"exited with code {status}" in job.log
    assert reason in job.artifact("output", "failure")
    assert job.members("model") == set()


def test_an_image_that_holds_its_code_needs_no_script_mode(cpu_image: str, folder: Path) -> None:
    """The estimator of a container of one's own: no code, hyperparameters as plain strings."""
    job = fit(
        cpu_image,
        folder,
        entry_point=None,
        source_dir=None,
        environment={"SAGEMAKER_PROGRAM": "/bin/echo"},
        hyperparameters={"number": 1},
    )
    assert job.status == 0, job.log
    assert job.members("output") == {"metrics/job.json", "success"}


def test_a_job_of_the_model_trainer_runs_in_the_image(cpu_image: str, folder: Path) -> None:
    (folder / "code/requirements.txt").write_text("numpy\n", encoding="utf-8")
    specification = {
        "image": cpu_image,
        "root": str(folder / "root"),
        "source": str(folder / "code"),
        "script": "train.py",
        "requirements": "requirements.txt",
        "data": str(folder / "data/train"),
        "hyperparameters": {"epochs": 3, "learning-rate": 0.1, "name": "plain"},
    }
    (folder / "code/train.py").write_text(
        SHOWS.replace('json.loads(os.environ["SM_TRAINING_ENV"])["job_name"]', "None"),
        encoding="utf-8",
    )
    done = sdk("sdk_trainer.py", specification, folder)
    assert done.returncode == 0, done.stdout
    with tarfile.open(next((folder / "root").rglob("model.tar.gz"))) as archive:
        stream = archive.extractfile("result.json")
        assert stream is not None
        result = json.load(stream)
    assert (result["epochs"], result["learning_rate"]) == (3, 0.1)
    assert result["train"] == "train data"
