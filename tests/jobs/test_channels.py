"""Channels that name a local source are there when the script starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness import RUNTIME, Base, processes_with
from tests.mounting import can_mount
from tests.s3 import CREDENTIALS, serving

READ = (
    "import os, pathlib\n"
    "for p in sorted(pathlib.Path(os.environ['SM_CHANNEL_TRAIN']).rglob('*')): print(p.read_text())"
)


def request(base: Base, uri: str, **channel: Any) -> None:
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}
    channels = [{"ChannelName": "train", "DataSource": source, **channel}]
    base.write("input/config/job.json", {"TrainingJobName": "j", "InputDataConfig": channels})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "da ta"
    folder.mkdir()
    (folder / "a").write_text("one")
    return folder


def test_a_local_source_is_the_channel(base: Base, data: Path) -> None:
    request(base, data.as_uri())
    result = base.script(READ).run()
    assert (result.status, result.out) == (0, b"one\n"), result.log


@pytest.mark.parametrize("name", ["a#1", "q?x", "p%20q"])
def test_every_character_of_a_path_counts(base: Base, tmp_path: Path, name: str) -> None:
    for folder in (name, name[0]):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text(folder)
    request(base, (tmp_path / name).as_uri())
    assert base.script(READ).run().out.decode() == f"{name}\n"
    if "%" not in name:
        request(base, f"file://{tmp_path}/{name}")
        assert base.run().out.decode() == f"{name}\n"


def test_a_second_job_in_the_same_folder_sees_its_own_source(base: Base, data: Path) -> None:
    request(base, data.as_uri())
    base.script(READ).run()
    other = data.parent / "other"
    other.mkdir()
    (other / "a").write_text("two")
    request(base, other.as_uri())
    assert base.run().out == b"two\n"


def test_data_that_was_placed_by_hand_is_used(base: Base, data: Path) -> None:
    request(base, data.as_uri())
    base.write("input/data/train/b", "placed")
    assert base.script(READ).run().out == b"placed\n"


def test_a_file_system_source_is_the_channel(base: Base, data: Path) -> None:
    source = {
        "FileSystemId": "fs-01234567",
        "FileSystemType": "EFS",
        "FileSystemAccessMode": "ro",
        "DirectoryPath": str(data),
    }
    channel = {"ChannelName": "train", "DataSource": {"FileSystemDataSource": source}}
    base.write("input/config/job.json", {"TrainingJobName": "j", "InputDataConfig": [channel]})
    result = base.script(READ).run()
    assert (result.status, result.out) == (0, b"one\n"), result.log


def test_a_job_downloads_its_channels(base: Base, tmp_path: Path) -> None:
    with serving(tmp_path / "s3") as server:
        server.put("s3://bucket/da ta/a", b"one")
        server.put("s3://bucket/da ta/b/c", b"two")
        request(base, "s3://bucket/da ta")
        base.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": server.url}
        result = base.script(READ.replace("rglob('*')", "rglob('[ac]')")).run()
    assert (result.status, result.out) == (0, b"one\ntwo\n"), result.log
    assert "downloaded train 2 files of 6 B in" in result.log


def test_what_a_mode_does_not_have_is_refused(base: Base) -> None:
    source = {"S3DataSource": {"S3DataType": "ManifestFile", "S3Uri": "s3://bucket/x"}}
    channel = {"ChannelName": "train", "DataSource": source, "InputMode": "FastFile"}
    base.write("input/config/job.json", {"TrainingJobName": "j", "InputDataConfig": [channel]})
    for command in ("train", "check"):
        result = base.script("print('ran')").run(command, command=RUNTIME)
        assert result.status == 1
        text = result.out.decode() + result.log
        assert "channel train: FastFile mode reads S3DataType S3Prefix, not ManifestFile" in text
    assert base.failure().startswith("ConfigError: channel train")


@pytest.mark.parametrize("end", ["ok", "killed"])
def test_a_fast_file_channel_is_there_for_the_script_and_gone_after_it(
    base: Base, tmp_path: Path, end: str
) -> None:
    base.environ["PATH"] += f":{Path(sys.executable).parent}"
    read = READ + ("" if end == "ok" else "\nos.kill(os.getpid(), 9)")
    with serving(tmp_path / "s3") as server:
        server.put("s3://bucket/data/a", b"one")
        request(base, "s3://bucket/data", InputMode="FastFile")
        base.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": server.url}
        result = base.script(read).run()
    if can_mount():
        assert (result.status, result.out) == (0 if end == "ok" else 137, b"one\n"), result.log
    else:
        assert result.status == 1
        assert base.failure().startswith("DataError: channel train: FastFile mode")
    channel = base.path("input/data/train")
    assert str(channel) not in Path("/proc/self/mountinfo").read_text()
    assert not channel.exists()
    assert processes_with(str(base.root)) == []


UNUSABLE = {
    "missing": ("file:///nonexistent/x", {}, "does not exist"),
    "a file system without data": ("file:///dev/null/x", {}, "does not exist"),
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("command", ["train", "check"])
def test_a_source_that_cannot_be_had_is_named(base: Base, case: str, command: str) -> None:
    uri, channel, hint = UNUSABLE[case]
    request(base, uri, **channel)
    result = base.script("print('ran')").run(command, command=RUNTIME)
    assert result.status == 1
    text = result.out.decode() + result.log
    assert "channel train" in text and uri in text and hint in text
    assert b"ran\n" not in result.out
    if command == "train":
        assert base.failure().startswith("DataError: channel train")
        assert base.failure_json()["phase"] == "download"
