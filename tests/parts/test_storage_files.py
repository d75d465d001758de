"""How files of this machine are copied: what the kernel refuses, and what changes meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sm_runtime.job.errors import DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.files import FileOrigin
from sm_runtime.storage.writing import PIECE_BYTES, copy, data_bytes

LARGE = os.urandom(3 * PIECE_BYTES + 7)


def listed(path: Path) -> Blob:
    return FileOrigin().stat(path.as_uri())


def fetch(path: Path, target: Path, **how: Callable[..., object]) -> None:
    FileOrigin().fetch([(listed(path), str(target))], **how)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EXDEV, errno.EPERM, errno.EINVAL, 0])
def test_a_file_is_copied_also_where_the_kernel_does_not_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An old kernel, two file systems, a profile of seccomp, an odd file system; one that lies."""
    asked = []

    def refusing(*arguments: int) -> int:
        asked.append(arguments)
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    monkeypatch.setattr(os, "copy_file_range", refusing)
    (tmp_path / "source").write_bytes(LARGE)
    fetch(tmp_path / "source", tmp_path / "a/b/target")
    assert (tmp_path / "a/b/target").read_bytes() == LARGE
    assert asked


def test_a_file_that_the_kernel_writes_as_it_is_read_is_copied(tmp_path: Path) -> None:
    """It has no blocks, and less than its size."""
    path = Path("/sys/kernel/uevent_seqnum")
    with open(path, "rb") as source, open(tmp_path / "target", "wb") as target:
        count = copy(source.fileno(), target.fileno(), path.stat().st_size)
    assert (tmp_path / "target").read_bytes()[:count] == path.read_bytes()


HOLES = {
    "in the middle": ((0, 100_000), (5_000_000, 100_000), 9_000_000),
    "at both ends": ((1_000_000, 70_000), 9_000_000),
    "all of it": (9_000_000,),
    "nowhere": ((0, 1_000_000), 1_000_000),
}


@pytest.mark.parametrize("case", HOLES)
def test_holes_stay_holes(tmp_path: Path, case: str) -> None:
    *parts, size = HOLES[case]
    assert isinstance(size, int)
    with open(tmp_path / "source", "wb") as file:
        for part in parts:
            assert isinstance(part, tuple)
            file.seek(part[0])
            file.write(os.urandom(part[1]))
        file.truncate(size)
    told: list[int] = []
    fetch(tmp_path / "source", tmp_path / "target", progress=told.append)
    assert sum(told) == size
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()
    before, after = (tmp_path / "source").stat(), (tmp_path / "target").stat()
    assert after.st_blocks <= before.st_blocks
    assert data_bytes(str(tmp_path / "source"), before) <= 512 * before.st_blocks


def _grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def _shrink(path: Path) -> None:
    os.truncate(path, PIECE_BYTES)


def _rewrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"other")


@pytest.mark.parametrize("change", [_grow, _shrink, _rewrite])
def test_a_file_that_changes_while_it_is_copied_is_an_error(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path, told = tmp_path / "source", []
    path.write_bytes(LARGE)

    def progress(size_bytes: int) -> None:
        if not told:
            change(path)
        told.append(size_bytes)

    with pytest.raises(DataError, match=f"^{path.as_uri()} .*changed"):
        fetch(path, tmp_path / "target", progress=progress)
    assert [one.name for one in tmp_path.iterdir()] == ["source"]


def test_a_file_that_was_replaced_by_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    blob = listed(tmp_path / "source")
    os.unlink(tmp_path / "source")
    os.mkfifo(tmp_path / "source")
    with pytest.raises(DataError, match="changed"):
        FileOrigin().fetch([(blob, str(tmp_path / "target"))])


def test_a_stop_is_seen_in_the_middle_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(LARGE)
    told: list[int] = []
    with pytest.raises(DataError, match="a stop was asked for"):
        fetch(tmp_path / "source", tmp_path / "t", progress=told.append, stopped=lambda: bool(told))
    assert 0 < sum(told) < len(LARGE)
    assert [one.name for one in tmp_path.iterdir()] == ["source"]


def test_a_stop_is_seen_while_a_folder_is_listed(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}").touch()
    looks: list[int] = []

    def stopped() -> bool:
        looks.append(1)
        return len(looks) > 5

    with pytest.raises(DataError, match="a stop was asked for"):
        list(FileOrigin().list(tmp_path.as_uri(), stopped=stopped))


def test_what_is_no_file_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A Pipe channel is listed for each epoch."""
    (tmp_path / "x").touch()
    os.mkfifo(tmp_path / "fifo")
    origin = FileOrigin()
    for _ in range(3):
        assert [blob.key for blob in origin.list(tmp_path.as_uri())] == [str(tmp_path / "x")]
    assert caplog.text.count("left out: neither a file nor a folder") == 1
