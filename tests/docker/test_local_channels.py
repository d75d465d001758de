"""Channels from this machine in containers: as root or not, with the right to mount or without."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.docker.container import Container, Ml, docker, run

SCRIPT = """
import json, os, pathlib, sys
channel = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"])
said = {}
def attempt(name, action):
    try:
        action()
    except OSError as error:
        said[name] = error.strerror
    else:
        said[name] = "done"
found = {str(p.relative_to(channel)): p.read_text() for p in channel.rglob("*") if p.is_file()}
attempt("write", lambda: open(channel / "d/x", "r+").write("!"))
attempt("create", lambda: open(channel / "d/new", "x"))
attempt("delete", lambda: os.remove(channel / "d/x"))
print(json.dumps([channel.is_symlink(), found, said]), flush=True)
if "wait" in sys.argv:
    sys.stdin = open("/dev/zero"); import signal; signal.pause()
"""
MOUNTS = ("--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined")
NOBODY = (
    *("--user", "1000:1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--read-only", "--tmpfs", "/tmp"),
)
RIGHTS = {"root": (), "the right to mount": MOUNTS, "no rights": NOBODY}
ACTIONS = ("write", "create", "delete")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data/d").mkdir(parents=True)
    (tmp_path / "data/d/x").write_text("data")
    return tmp_path / "data"


def job(ml: Ml, source: dict[str, Any], *arguments: str) -> tuple[str, ...]:
    """Write a job with a channel at ``/data``; return the options of ``docker run``."""
    ml.write("code/train.py", SCRIPT)
    given = {
        "TrainingJobName": "local",
        "HyperParameters": {"sagemaker_program": "train.py"},
        "AlgorithmSpecification": {"ContainerArguments": list(arguments)} if arguments else {},
        "InputDataConfig": [{"ChannelName": "train", "DataSource": source}],
    }
    for path in (ml.root, *ml.root.rglob("*")):
        os.chown(path, 1000, 1000)
    return (*ml.mount, "--network", "none", "-e", f"SM_RUNTIME_JOB={json.dumps(given)}")


def shared(mode: str) -> dict[str, Any]:
    return {"FileSystemDataSource": {"DirectoryPath": "/data", "FileSystemAccessMode": mode}}


@pytest.mark.parametrize("rights", RIGHTS)
def test_a_channel_can_be_written_to_although_its_source_cannot(
    cpu_image: str, ml: Ml, data: Path, rights: str
) -> None:
    options = job(ml, {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "file:///data"}})
    result = run(cpu_image, options=(*options, *RIGHTS[rights], "-v", f"{data}:/data:ro"))
    assert result.status == 0, result.err
    assert json.loads(result.out) == [False, {"d/x": "data"}, dict.fromkeys(ACTIONS, "done")]
    assert (data / "d/x").read_text() == "data"


@pytest.mark.parametrize("rights", RIGHTS)
def test_a_channel_that_is_to_be_read_only_is_so_as_far_as_can_be(
    cpu_image: str, ml: Ml, data: Path, rights: str
) -> None:
    options = job(ml, shared("ro"))
    result = run(cpu_image, options=(*options, *RIGHTS[rights], "-v", f"{data}:/data"))
    assert result.status == 0, result.err
    said = {
        "root": "done",
        "the right to mount": "Read-only file system",
        "no rights": "Permission denied",
    }
    assert json.loads(result.out) == [
        False, {"d/x": "data"}, dict.fromkeys(ACTIONS, said[rights]),
    ]  # fmt: skip
    assert ("nothing can be mounted read-only here" in result.err) == (RIGHTS[rights] != MOUNTS)
    assert (data / "d/x").read_text() == "data"


def test_a_container_that_is_killed_and_started_again_has_its_mounts_again(
    cpu_image: str, ml: Ml, data: Path
) -> None:
    options = (*job(ml, shared("rw"), "wait"), *MOUNTS, "-v", f"{data}:/data")
    with Container(cpu_image, options=options) as container:
        container.ready("]")
        docker("kill", container.name)
        assert container.wait() == 137
        assert (data / "d/new").exists() and not (data / "d/x").exists()
        (data / "d/new").unlink()
        docker("start", container.name)
        container.ready('"write": "No such file or directory", "create": "done"')
        assert container.stop(10) in (0, 143), container.log()
    assert (data / "d/new").exists()
