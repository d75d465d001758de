"""A stop, or a want of room, while the code is fetched, unpacked, copied or installed."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Base, Running, eventually
from tests.s3 import CREDENTIALS, serving

MIB = 1 << 20
LARGE = 1024 * MIB
"""Of zeros that take no room on the disk, until they are written once more."""


def submit(base: Base, source: str) -> Base:
    base.hyperparameters(sagemaker_program='"train.py"', sagemaker_submit_directory=f'"{source}"')
    return base


def stopped(running: Running, sentence: str) -> None:
    """Stop the job; it has to end for that reason and say what it has left."""
    running.send(signal.SIGTERM)
    result = running.wait()
    assert result.status == 143, result.log
    assert sentence in result.log
    assert "stopped by SIGTERM before the script started" in result.log
    assert "Traceback" not in result.log
    assert result.out == b""


def large_tar(folder: Path) -> Path:
    script, large = tarfile.TarInfo("train.py"), tarfile.TarInfo("weights")
    large.size = LARGE
    path = folder / "sourcedir.tar"
    with open(path, "wb") as file:
        file.write(script.tobuf() + large.tobuf())
        file.truncate(file.tell() + LARGE + 1024)
    return path


def large_folder(folder: Path) -> Path:
    source = folder / "source"
    source.mkdir()
    (source / "train.py").write_text("print('ran')")
    with open(source / "weights", "wb") as file:
        file.truncate(LARGE)
    return source


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (large_tar, "was not unpacked: a stop was requested"),
        (large_folder, "weights was not copied: a stop was requested"),
    ],
)
@pytest.mark.parametrize("image", ["code of the image", "no code of the image"])
def test_a_stop_ends_the_placing_of_the_code_and_leaves_nothing_of_it(
    base: Base, tmp_path: Path, make: Callable[[Path], Path], sentence: str, image: str
) -> None:
    if image == "code of the image":
        base.write("code/train.py", "print('of the image')")
    running = submit(base, str(make(tmp_path))).start()
    eventually(lambda: list(base.root.rglob("weights")), "a byte of it", 60)
    stopped(running, sentence)
    assert [p.name for p in base.root.rglob("*") if "unpacking" in p.name] == []
    assert not base.path("code-submitted").exists()


def test_a_stop_ends_a_download_that_has_stalled(base: Base) -> None:
    submit(base, "s3://a-bucket/a-job/sourcedir.tar.gz")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30)
        base.environ |= {
            **CREDENTIALS,
            "AWS_REGION": "eu-west-1",
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{listening.getsockname()[1]}",
        }
        running = base.start()
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
            stopped(running, "sourcedir.tar.gz cannot be downloaded: a stop was asked for")


def test_a_stop_ends_the_wait_for_another_installation(base: Base, tmp_path: Path) -> None:
    base.script("print('ran')").write("code/requirements.txt", "no-such-package")
    with open(tmp_path / f"sm-runtime-install-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = base.start(TMPDIR=str(tmp_path))
        waits = b"waiting for another installation"
        eventually(lambda: waits in running.err, "it waits", 30)
        stopped(running, "nothing was installed: a stop was requested")


@pytest.fixture
def narrow(base: Base) -> Iterator[Base]:
    """A base folder on a disk of 24 MiB with room for 200 files."""
    options = "size=24m,nr_inodes=200"
    subprocess.run(("mount", "-t", "tmpfs", "-o", options, "tmpfs", base.root), check=True)
    yield base
    subprocess.run(("umount", base.root), check=True)


def random_tar(folder: Path, sizes: list[int]) -> Path:
    for number, size in enumerate(sizes):
        (folder / f"{number}").write_bytes(os.urandom(size))
    path = folder / "sourcedir.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for number in range(len(sizes)):
            archive.add(folder / f"{number}", f"{number}")
    return path


def full_folder(folder: Path, sizes: list[int]) -> Path:
    source = folder / "source"
    source.mkdir()
    for number, size in enumerate(sizes):
        (source / f"{number}").write_bytes(os.urandom(size))
    return source


@pytest.mark.parametrize("make", [random_tar, full_folder])
@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ([10 * MIB] * 4, "needs 40.0 MiB, {root} has 2"),
        ([1] * 300, "has 300 files"),
    ],
    ids=["bytes", "files"],
)
def test_code_that_there_is_no_room_for_is_refused_before_the_first_byte(
    narrow: Base,
    tmp_path: Path,
    make: Callable[[Path, list[int]], Path],
    sizes: list[int],
    sentence: str,
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    narrow.environ["SAGEMAKER_PROGRAM"] = "0"
    result = submit(narrow, str(make(folder, sizes))).run()
    assert result.status == 1
    assert sentence.format(root=narrow.root) in narrow.failure()
    assert narrow.failure().startswith("CodeError: ")
    assert not list(narrow.root.rglob("*unpacking*"))


def test_an_object_that_there_is_no_room_for_is_refused_by_what_the_server_says(
    narrow: Base, tmp_path: Path
) -> None:
    uri = "s3://a-bucket/a-job/sourcedir.tar.gz"
    submit(narrow, uri)
    with serving(tmp_path / "s3/buckets") as server:
        server.put(uri, b"")
        os.truncate(server.folder / uri[5:], 100_000_000)
        result = narrow.run(
            **CREDENTIALS,
            AWS_REGION="eu-west-1",
            S3_ENDPOINT_URL=server.url,
            TMPDIR=str(narrow.root),
        )
    assert result.status == 1
    assert f"{uri} needs 95.4 MiB, {narrow.root} has 2" in narrow.failure()
