"""The files that describe a job are read, wherever they are."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from sm_runtime.cluster import session
from sm_runtime.contract import config_files
from sm_runtime.contract.reader import Document
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.model import Paths


def documents(paths: Paths, environ: dict[str, str]) -> dict[str, Document]:
    found, problems = config_files.collect(paths, environ)
    if problems:
        raise ConfigError(problems.values())
    return found


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "input/config").mkdir(parents=True)
    return Paths(str(tmp_path))


def test_absent_files_and_folders_are_absent_keys(tmp_path: Path, paths: Paths) -> None:
    assert documents(paths, {}) == {}
    assert documents(Paths(str(tmp_path / "none")), {}) == {}
    (tmp_path / "file").touch()
    assert documents(Paths(str(tmp_path / "file")), {}) == {}


def test_each_file_is_read_as_bytes(paths: Paths) -> None:
    names = ("hyperparameters", "inputdataconfig", "resourceconfig", "job")
    expected = {
        name: Document(f"{paths.config}/{name}.json", b"\xff" + name.encode()) for name in names
    }
    for document in expected.values():
        Path(document.path).write_bytes(document.data)
    assert documents(paths, {"SM_RUNTIME_JOB": ""}) == expected


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", " {} "])
def test_the_request_may_be_a_file_elsewhere(tmp_path: Path, paths: Paths, form: str) -> None:
    Path(paths.config, "job.json").write_text("unused")
    file = tmp_path / "my job.json"
    file.write_text("{}")
    found = documents(paths, {"SM_RUNTIME_JOB": form.format(file)})
    assert found == {"job": Document(str(file), b"{}")}


def test_the_request_may_be_the_variable_itself(paths: Paths) -> None:
    found = documents(paths, {"SM_RUNTIME_JOB": ' {"a": "\udcff"}'})
    assert found == {"job": Document("SM_RUNTIME_JOB", b'{"a": "\xff"}')}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("/nowhere/job.json", "SM_RUNTIME_JOB: the file '/nowhere/job.json' does not exist"),
        ("file:///nowhere", "the file '/nowhere' does not exist"),
        (
            "file://relative",
            "'file://relative' has the host 'relative'; file:///path has three slashes",
        ),
        ("/", "/: is a directory, it must be a file"),
        ("s3://bucket", "SM_RUNTIME_JOB: 's3://bucket' names no object: write s3://bucket/key"),
        ("https://x/y", "'https://x/y' must be a path, a file:// or s3:// URI, or a JSON object"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_a_request_that_cannot_be_read_is_named(paths: Paths, value: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        documents(paths, {"SM_RUNTIME_JOB": value})
    assert reason in str(caught.value)


def test_every_file_that_cannot_be_read_is_named(paths: Paths) -> None:
    os.mkdir(f"{paths.config}/hyperparameters.json")
    os.symlink("resourceconfig.json", f"{paths.config}/resourceconfig.json")
    with pytest.raises(ConfigError) as caught:
        documents(paths, {"SM_RUNTIME_JOB": "/nowhere"})
    assert caught.value.problems == (
        f"{paths.config}/hyperparameters.json: is a directory, it must be a file",
        f"{paths.config}/resourceconfig.json: cannot be read: Too many levels of symbolic links",
        "environment: SM_RUNTIME_JOB: the file '/nowhere' does not exist",
    )


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listener(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def folder(path: Path) -> None:
    path.mkdir()


KINDS = {"a FIFO": fifo, "a device": device, "a socket": listener, "a directory": folder}
NAMES = ("hyperparameters", "inputdataconfig", "resourceconfig", "job")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_is_refused_by_name_and_at_once(paths: Paths, name: str, kind: str) -> None:
    KINDS[kind](Path(paths.config, f"{name}.json"))
    with pytest.raises(ConfigError) as caught:
        documents(paths, {})
    assert str(caught.value) == f"{paths.config}/{name}.json: is {kind}, it must be a file"


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_fifo_that_the_variable_names_is_refused(paths: Paths, form: str) -> None:
    path = f"{paths.base}/pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="/pipe: is a FIFO, it must be a file"):
        documents(paths, {"SM_RUNTIME_JOB": form.format(path)})


def test_a_file_of_configuration_is_no_data_set(paths: Paths) -> None:
    with open(f"{paths.config}/job.json", "wb") as file:
        file.truncate(config_files.MAX_BYTES + 1)
    with pytest.raises(ConfigError, match=r"job\.json: is larger than 16 MiB"):
        documents(paths, {})


def test_the_file_of_a_secret_is_a_file(paths: Paths) -> None:
    path = f"{paths.base}/secret"
    os.mkfifo(path)
    name = session.SECRET_FILE
    with pytest.raises(ConfigError, match=f"environment: {name}: {path}: is a FIFO"):
        session.secret({name: path})
    with pytest.raises(ConfigError, match=f"environment: {name}: /nowhere: does not exist"):
        session.secret({name: "/nowhere"})


def test_a_secret_of_the_cluster_may_be_a_reference(paths: Paths) -> None:
    path = Path(paths.base) / "secret"
    path.write_text("0123456789abcdef\n")
    assert session.secret({session.SECRET: json.dumps({"$file": str(path)})}) == b"0123456789abcdef"
    with pytest.raises(ConfigError, match=f"{session.SECRET}: /nowhere: does not exist"):
        session.secret({session.SECRET: '{"$file": "/nowhere"}'})


def test_what_can_be_read_is_read_beside_what_cannot(paths: Paths) -> None:
    os.mkfifo(f"{paths.config}/job.json")
    Path(paths.config, "hyperparameters.json").write_text("{}")
    found, problems = config_files.collect(paths, {})
    assert [found[name].data for name in ("hyperparameters", "job")] == [b"{}", None]
    assert list(problems) == ["job"]


def test_what_a_platform_says_of_checkpoints_is_the_scripts_business(paths: Paths) -> None:
    """Only beside a request does it say something to the runtime."""
    os.mkfifo(f"{paths.config}/checkpointconfig.json")
    assert config_files.collect(paths, {}) == ({}, {})
    _, problems = config_files.collect(paths, {"SM_RUNTIME_JOB": "{}"})
    assert list(problems) == ["checkpointconfig"]
