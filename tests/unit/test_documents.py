"""The files that describe a job are read, wherever they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sm_runtime import documents
from sm_runtime.errors import ConfigError
from sm_runtime.paths import Paths
from sm_runtime.reader import Document


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "input/config").mkdir(parents=True)
    return Paths(str(tmp_path))


def test_absent_files_and_folders_are_absent_keys(tmp_path: Path, paths: Paths) -> None:
    assert documents.read(paths, {}) == {}
    assert documents.read(Paths(str(tmp_path / "none")), {}) == {}
    (tmp_path / "file").touch()
    assert documents.read(Paths(str(tmp_path / "file")), {}) == {}


def test_each_file_is_read_as_bytes(paths: Paths) -> None:
    names = ("hyperparameters", "inputdataconfig", "resourceconfig", "job")
    expected = {
        name: Document(f"{paths.config}/{name}.json", b"\xff" + name.encode()) for name in names
    }
    for document in expected.values():
        Path(document.path).write_bytes(document.data)
    assert documents.read(paths, {"SM_RUNTIME_JOB": ""}) == expected


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", " {} "])
def test_the_request_may_be_a_file_elsewhere(tmp_path: Path, paths: Paths, form: str) -> None:
    Path(paths.config, "job.json").write_text("unused")
    file = tmp_path / "my job.json"
    file.write_text("{}")
    found = documents.read(paths, {"SM_RUNTIME_JOB": form.format(file)})
    assert found == {"job": Document(str(file), b"{}")}


def test_the_request_may_be_the_variable_itself(paths: Paths) -> None:
    found = documents.read(paths, {"SM_RUNTIME_JOB": ' {"a": "\udcff"}'})
    assert found == {"job": Document("SM_RUNTIME_JOB", b'{"a": "\xff"}')}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("/nowhere/job.json", "SM_RUNTIME_JOB: the file '/nowhere/job.json' does not exist"),
        ("file:///nowhere", "the file '/nowhere' does not exist"),
        ("file://relative", "'file://relative' must name an absolute path"),
        ("/", "/: is a directory, it must be a file"),
        ("s3://bucket", "SM_RUNTIME_JOB: 's3://bucket' names no object: write s3://bucket/key"),
        ("https://x/y", "'https://x/y' must be a path, a file:// or s3:// URI, or a JSON object"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_a_request_that_cannot_be_read_is_named(paths: Paths, value: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        documents.read(paths, {"SM_RUNTIME_JOB": value})
    assert reason in str(caught.value)


def test_every_file_that_cannot_be_read_is_named(paths: Paths) -> None:
    os.mkdir(f"{paths.config}/hyperparameters.json")
    os.symlink("resourceconfig.json", f"{paths.config}/resourceconfig.json")
    with pytest.raises(ConfigError) as caught:
        documents.read(paths, {"SM_RUNTIME_JOB": "/nowhere"})
    assert caught.value.problems == (
        f"{paths.config}/hyperparameters.json: is a directory, it must be a file",
        f"{paths.config}/resourceconfig.json: cannot be read: Too many levels of symbolic links",
        "environment: SM_RUNTIME_JOB: the file '/nowhere' does not exist",
    )
