"""A self-managed job saves what its script left, however the script ended."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Base

MODEL = (
    "import os, signal, sys\n"
    "open(os.environ['SM_MODEL_DIR'] + '/weights', 'w').write('w')\n"
    "open(os.environ['SM_OUTPUT_DATA_DIR'] + '/plot', 'w').write('p')\n"
)


@pytest.fixture
def store(base: Base, tmp_path: Path) -> Path:
    """The folder where the artifacts of the job ``mnist-1`` go."""
    destination = tmp_path / "store"
    request = {
        "TrainingJobName": "mnist-1",
        "OutputDataConfig": {"S3OutputPath": destination.as_uri()},
    }
    base.write("input/config/job.json", request)
    return destination / "mnist-1" / "output"


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return sorted(tar.getnames())


def test_a_job_that_succeeds_saves_both_archives_and_says_where(base: Base, store: Path) -> None:
    result = base.script(MODEL).run()
    assert result.status == 0, result.log
    assert names(store / "model.tar.gz") == ["weights"]
    assert names(store / "output.tar.gz") == ["plot"]
    assert f"model: 1 file, 1 B -> {(store / 'model.tar.gz').as_uri()}" in result.log
    assert len([line for line in result.log.splitlines() if line.strip()]) <= 15


def test_a_script_that_fails_still_has_its_artifacts_saved(base: Base, store: Path) -> None:
    result = base.script(MODEL + "sys.exit(7)").run()
    assert result.status == 7
    assert names(store / "model.tar.gz") == ["weights"]
    assert names(store / "output.tar.gz") == ["failure.json", "plot"]


@pytest.mark.parametrize("deaf", [False, True], ids=["ends", "is killed"])
def test_a_script_that_is_stopped_still_has_its_artifacts_saved(
    base: Base, store: Path, deaf: bool
) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    running = base.script(
        MODEL + ignore + "print('ready', flush=True)\nwhile True: signal.pause()"
    ).start(SM_RUNTIME_STOP_GRACE_SECONDS="0.5")
    running.ready()
    running.send(signal.SIGTERM)
    assert running.wait().status == 143
    assert names(store / "model.tar.gz") == ["weights"]


def test_uncompressed_artifacts_are_plain_files(base: Base, store: Path) -> None:
    request = {
        "TrainingJobName": "mnist-1",
        "OutputDataConfig": {
            "S3OutputPath": store.parents[1].as_uri(),
            "CompressionType": "NONE",
        },
    }
    base.write("input/config/job.json", request)
    assert base.script(MODEL).run().status == 0
    assert (store / "model" / "weights").read_text() == "w"
    assert (store / "data" / "plot").read_text() == "p"


@pytest.fixture
def full(store: Path) -> Iterator[Path]:
    """The destination, on a disk of 64 KiB."""
    disk = store.parents[1]
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    yield store
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("status", [0, 7])
def test_an_artifact_that_cannot_be_written_fails_the_job(
    base: Base, full: Path, status: int
) -> None:
    big = "open(os.environ['SM_MODEL_DIR'] + '/big', 'wb').write(os.urandom(2**20))\n"
    result = base.script(MODEL + big + f"sys.exit({status})").run()
    assert result.status == (status or 1)
    assert (
        "ArtifactError" in result.log and "No space left on" in result.log
    )  # the first line of a failure is short
    assert sorted(os.listdir(full)) == ["output.tar.gz", "report.html"]
    if not status:
        assert base.failure().startswith("ArtifactError: ")
        assert base.failure_json()["phase"] == "upload"
        assert not base.path("output/success").exists()


def test_a_destination_that_is_unusable_is_said_before_the_script_starts(base: Base) -> None:
    request = {
        "TrainingJobName": "j",
        "OutputDataConfig": {"S3OutputPath": base.path("model").as_uri()},
    }
    base.write("input/config/job.json", request)
    result = base.script("print('ran')").run()
    assert (result.status, result.out) == (1, b"")
    assert base.failure().startswith("ConfigError: ")


@pytest.mark.parametrize("required", ["0", "1"])
def test_an_empty_model_folder_is_a_warning_or_a_failure(base: Base, required: str) -> None:
    result = base.script("").run(SM_RUNTIME_REQUIRE_MODEL=required)
    assert result.status == int(required)
    assert "model is empty" in result.log
    assert base.path("output/failure").exists() == (required == "1")
    if required == "1":
        assert "require_model" in base.failure()


def test_what_a_job_leaves_can_be_owned_by_the_caller(base: Base, store: Path) -> None:
    result = base.script(MODEL + "sys.exit(3)").run(SM_RUNTIME_CHOWN="1234:1235")
    assert result.status == 3
    tops = (base.path("model"), base.path("output"), store.parent)
    left = [path for top in tops for path in (top, *top.rglob("*"))]
    left.append(base.path("input/sm_training.env"))
    assert store / "model.tar.gz" in left
    assert {(p.stat().st_uid, p.stat().st_gid) for p in left} == {(1234, 1235)}
