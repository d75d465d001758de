from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import random
import shutil
import socket
import stat
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sm_runtime.job.errors import ArtifactError
from sm_runtime.output import tar as pack
from sm_runtime.output.tar import BLOCK_BYTES, GzipWriter, has_isal

KIB = 1 << 10
WITH_ISAL = [False, True] if has_isal() else [False]


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def weights(size: int, seed: int = 1) -> bytes:
    """Bytes as float32 weights have them: three that never repeat, and a sign and exponent."""
    mantissas = noise(size, seed)
    exponents = random.Random(seed).choices(
        (0x3D, 0xBD, 0x3C, 0xBC, 0x3B, 0xBB), (8, 8, 4, 4, 1, 1), k=size // 4
    )
    data = bytearray(mantissas)
    data[3::4] = bytes(exponents)[: len(data[3::4])]
    return bytes(data)


def text(size: int) -> bytes:
    source = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    return (source * (size // len(source) + 1))[:size]


def compressed(data: bytes, threads: int = 2, *, with_isal: bool = True) -> bytes:
    sink = io.BytesIO()
    with GzipWriter(sink, threads=threads, with_isal=with_isal) as writer:
        writer.write(data)
        writer.close()
    assert writer.written_bytes == len(sink.getvalue())
    return sink.getvalue()


@pytest.mark.parametrize("with_isal", WITH_ISAL)
@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 77])
@pytest.mark.parametrize("kind", [bytes, text, weights, noise])
def test_data_comes_back_and_bytes_do_not_depend_on_the_threads(
    kind: Callable[[int], bytes], size: int, with_isal: bool
) -> None:
    data = kind(size)
    one, four = (compressed(data, threads, with_isal=with_isal) for threads in (1, 4))
    assert one == four
    assert gzip.decompress(one) == data


@pytest.mark.parametrize("with_isal", WITH_ISAL)
def test_weights_become_as_small_as_gzip_makes_them(with_isal: bool) -> None:
    data = weights(5 * BLOCK_BYTES)
    by_gzip = subprocess.run(["gzip", "-6c"], input=data, stdout=subprocess.PIPE, check=True)
    assert len(compressed(data, with_isal=with_isal)) <= 1.01 * len(by_gzip.stdout)


@pytest.mark.parametrize("with_isal", WITH_ISAL)
def test_no_time_and_no_name_is_in_the_stream(with_isal: bool) -> None:
    head = compressed(b"", with_isal=with_isal)[:8]
    assert head == b"\x1f\x8b\x08\0\0\0\0\0"


def test_gzip_itself_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    path = tmp_path / "data.gz"
    data = weights(3 * BLOCK_BYTES + 1)
    path.write_bytes(compressed(data))
    done = subprocess.run(["gzip", "-tv", path], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("OK")
    assert subprocess.run(["gzip", "-dc", path], capture_output=True).stdout == data


class FullSink:
    """Takes the first 1000 bytes or so."""

    taken = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.taken > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.taken += len(data)


@pytest.mark.parametrize("with_isal", WITH_ISAL)
def test_a_sink_that_fails_ends_the_writer_and_its_threads(with_isal: bool) -> None:
    before = threading.active_count()
    with (
        pytest.raises(OSError, match="No space left"),
        GzipWriter(FullSink(), threads=4, with_isal=with_isal) as writer,
    ):
        for seed in range(40):
            writer.write(noise(BLOCK_BYTES, seed))
        writer.close()
    assert threading.active_count() == before


# --- tar


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def packed(root: Path) -> tuple[bytes, list[str], pack.Count]:
    sink, warnings = io.BytesIO(), []
    count = pack.write_tar(str(root), sink, warnings.append)
    return sink.getvalue(), warnings, count


def members(archive: bytes) -> dict[str, bytes | None]:
    """Read with tarfile: None for folders."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        return {
            member.name: file.read() if (file := tar.extractfile(member)) else None
            for member in tar
        }


def extracted(archive: bytes, folder: Path) -> Path:
    """Extract with the tar binary, which must say nothing."""
    folder.mkdir()
    done = subprocess.run(["tar", "xf", "-", "-C", folder], input=archive, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    return folder


def tree_of(root: Path) -> dict[bytes, bytes | None]:
    found: dict[bytes, bytes | None] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in folders:
            found[os.path.relpath(os.path.join(folder, name), os.fsencode(root))] = None
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, os.fsencode(root))] = file.read()
    return found


LONG = "a" * 250
TREES: dict[str, dict[str, bytes]] = {
    "a saved model": {"1/saved_model.pb": b"graph", "1/variables/variables.index": noise(700)},
    "an empty file": {"empty": b""},
    "sizes around a tar block": {str(n): bytes(n) for n in (1, 511, 512, 513, 1024, 10239, 10240)},
    "names of 99 to 101 bytes": {"n" * n: b"x" for n in (99, 100, 101)},
    "long names in long folders": {f"{LONG}/{LONG}/{LONG}/{LONG}": b"deep"},
    "non-ASCII": {"模型/naïve café.bin": b"x"},
    "names that are no UTF-8": {os.fsdecode(b"\xff\xfe/caf\xe9"): b"latin-1"},
    "newlines, quotes, options": {"a\nb": b"1", "--checkpoint-action=exec=sh": b"2", "'\"\\": b"3"},
    "leading dots and blanks": {".hidden/..x": b"1", " lead": b"2", "trail ": b"3", "...": b"4"},
    "names that sort unlike paths": {"a/z": b"1", "a-b": b"2", "a.b": b"3", "B": b"4"},
    "a deep tree": {"/".join(["d"] * 300) + "/f": b"bottom"},
    "more than a buffer": {"big": noise(3 * (1 << 20) + 1)},
}


@pytest.mark.parametrize("name", TREES)
def test_trees_come_back_through_tar_and_tarfile(name: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "model", TREES[name])
    archive, warnings, count = packed(root)
    assert tree_of(extracted(archive, tmp_path / "out")) == tree_of(root)
    assert {key: data for key, data in members(archive).items() if data is not None} == TREES[name]
    assert count.files == len(TREES[name])
    assert count.size_bytes == sum(map(len, TREES[name].values()))
    assert warnings == []


def test_members_are_at_the_root_and_in_the_byte_order_of_their_names(tmp_path: Path) -> None:
    root = fill(tmp_path / "model", TREES["names that sort unlike paths"] | {"a/b/c": b""})
    assert list(members(packed(root)[0])) == ["B", "a", "a/b", "a/b/c", "a/z", "a-b", "a.b"]


def test_empty_folders_are_kept(tmp_path: Path) -> None:
    root = fill(tmp_path / "model", {"1/saved_model.pb": b"x"})
    (root / "1" / "assets").mkdir()
    assert members(packed(root)[0])["1/assets"] is None


def test_equal_trees_made_differently_give_the_same_bytes(tmp_path: Path) -> None:
    files = {name: noise(1000, i) for i, name in enumerate(("b", "a/1", "a/2", "c/d/e", "z"))}
    first = fill(tmp_path / "first", files)
    second = fill(tmp_path / "second", dict(reversed(files.items())))
    for folder, _, names in os.walk(second):
        for name in names:
            path = os.path.join(folder, name)
            os.chmod(path, 0o600)
            os.utime(path, (1e9, 1e9))
    os.chmod(second / "a", 0o700)
    os.chmod(first / "b", 0o755)
    os.chmod(second / "b", 0o700)
    assert hashlib.sha256(packed(first)[0]).digest() == hashlib.sha256(packed(second)[0]).digest()


def test_owner_time_and_mode_are_the_same_for_all(tmp_path: Path) -> None:
    root = fill(tmp_path / "model", {"run.sh": b"#!", "weights": b"1"})
    os.chmod(root / "run.sh", 0o4711)
    os.chmod(root / "weights", 0o640)
    with tarfile.open(fileobj=io.BytesIO(packed(root)[0])) as tar:
        facts = {m.name: (m.mode, m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar}
    assert facts == {
        "run.sh": (0o755, 0, 0, 0, "", ""),
        "weights": (0o644, 0, 0, 0, "", ""),
    }


def test_links_become_what_they_lead_to(tmp_path: Path) -> None:
    cache = fill(tmp_path / "cache", {"blob": b"weights", "sub/x": b"x"})
    root = fill(tmp_path / "model", {"real": b"r"})
    (root / "file").symlink_to(cache / "blob")
    (root / "folder").symlink_to(cache / "sub")
    (root / "chain").symlink_to("file")
    os.link(root / "real", root / "hard")
    archive, warnings, _ = packed(root)
    assert members(archive) == {
        "chain": b"weights",
        "file": b"weights",
        "folder": None,
        "folder/x": b"x",
        "hard": b"r",
        "real": b"r",
    }
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert all(member.isfile() or member.isdir() for member in tar)
    assert warnings == []


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


LEFT_OUT: dict[str, tuple[Callable[[Path], None], str]] = {
    "dangling": (link_to("nowhere"), "the link to nowhere leads nowhere"),
    "through a file": (link_to("kept/below"), "the link to kept/below leads nowhere"),
    "to itself": (link_to("odd"), "the link to odd leads in a circle"),
    "to its folder": (link_to("."), "the link leads to a folder that holds it"),
    "to the file system's root": (link_to("/"), "the link leads to a folder that holds it"),
    "a FIFO": (lambda path: os.mkfifo(path), "it is a FIFO"),
    "a socket": (make_socket, "it is a socket"),
    "a device": (link_to("/dev/zero"), "it is a device"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_cannot_be_packed_is_left_out_with_its_path_and_why(name: str, tmp_path: Path) -> None:
    make, why = LEFT_OUT[name]
    root = fill(tmp_path / "model", {"kept": b"1"})
    make(root / "odd")
    archive, warnings, count = packed(root)
    assert warnings == [f"{root}/odd is left out: {why}"]
    assert members(archive) == {"kept": b"1"}
    assert count.files == 1


def test_a_circle_of_links_between_folders_is_cut(tmp_path: Path) -> None:
    root = fill(tmp_path / "model", {"a/x": b"1", "b/y": b"2"})
    (root / "a" / "to_b").symlink_to("../b")
    (root / "b" / "to_a").symlink_to("../a")
    archive, warnings, _ = packed(root)
    assert set(members(archive)) == {
        *("a", "a/x", "a/to_b", "a/to_b/y", "b", "b/y", "b/to_a", "b/to_a/x")
    }
    assert len(warnings) == 2


def test_a_name_that_breaks_lines_does_not_break_a_warning(tmp_path: Path) -> None:
    root = fill(tmp_path / "model", {"kept": b"1"})
    os.mkfifo(os.fsencode(root) + b"/a\nERROR \xff")
    (warning,) = packed(root)[1]
    assert warning.isprintable()
    assert r"a\nERROR \udcff" in warning


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root may read everything: be someone else."""
    before = os.geteuid()
    os.seteuid(65534 if before == 0 else before)
    yield
    os.seteuid(before)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own is private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["secret", "folder"])
def test_what_cannot_be_read_is_an_error_that_names_it(
    name: str, open_path: Path, request: pytest.FixtureRequest
) -> None:
    root = fill(open_path / "model", {"secret": b"1", "folder/x": b"2"})
    os.chmod(root / name, 0)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(ArtifactError) as caught:
        packed(root)
    assert str(caught.value) == f"{root}/{name} cannot be read: Permission denied"


class ShrinkingSink:
    """Cuts the file when the first of its bytes arrive."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, data: bytes | memoryview) -> None:
        os.truncate(self.path, 1 << 20)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    root = fill(tmp_path / "model", {"growing": bytes(3 << 20)})
    with pytest.raises(ArtifactError, match=rf"{root}/growing shrank .*: 1048576 of 3145728 bytes"):
        pack.write_tar(str(root), ShrinkingSink(root / "growing"), pytest.fail)


def test_an_absent_folder_is_an_empty_archive(tmp_path: Path) -> None:
    archive, warnings, count = packed(tmp_path / "absent")
    assert (len(archive), members(archive), warnings, count) == (10240, {}, [], pack.Count())


def test_a_file_of_more_than_8_gib_has_its_size_in_the_header(tmp_path: Path) -> None:
    root = fill(tmp_path / "model", {"big": b""})
    os.truncate(root / "big", (8 << 30) + 5)

    class Stop(Exception):
        pass

    class HeaderSink:
        header = b""

        def write(self, data: bytes | memoryview) -> None:
            if self.header:
                raise Stop
            self.header = bytes(data)

    sink = HeaderSink()
    with pytest.raises(Stop):
        pack.write_tar(str(root), sink, pytest.fail)
    read = tarfile.TarInfo.frombuf(sink.header, "utf-8", "surrogateescape")
    assert (read.name, read.size) == ("big", (8 << 30) + 5)


def test_packing_changes_nothing_in_the_folder(tmp_path: Path) -> None:
    root = fill(tmp_path / "model", TREES["a saved model"])
    (root / "link").symlink_to("1/saved_model.pb")

    def facts() -> list[tuple[str, int, int, int]]:
        return sorted(
            (str(path), found.st_mode, found.st_mtime_ns, found.st_ino)
            for path in root.rglob("*")
            if (found := path.lstat()) and not stat.S_ISSOCK(found.st_mode)
        )

    before = facts()
    packed(root)
    assert facts() == before
