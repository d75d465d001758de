"""Channels that name a local source are there when the script starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness import RUNTIME, Base

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


UNUSABLE = {
    "missing": ("file:///nonexistent/x", {}, "does not exist"),
    "object storage": ("s3://bucket/x", {}, "s3://"),
    "pipe": ("file:///usr", {"InputMode": "Pipe"}, "Pipe mode"),
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
