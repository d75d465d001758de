"""What an archive may hold, what it may not, and that a refused one leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sm_runtime.code.archive import MAX_DEPTH, extract, kind_of
from sm_runtime.job.errors import CodeError

LIMIT = 10 << 20


def entry(
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    target: str = "",
    mode: int = 0o644,
    mtime: float = 1_000_000_000,
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, target, mode, mtime
    info.size = len(content)
    return info, content


def folder(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.SYMTYPE, target=target)


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.LNKTYPE, target=target)


def tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> str:
    with tarfile.open(path, mode) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_is_unpacked_whatever_its_compression_and_name(tmp_path: Path, mode: str) -> None:
    big = os.urandom(700_000)
    path = tar(
        tmp_path / "sourcedir",
        folder("./"),
        folder("pkg", 0o555),
        entry("./train.py", b"print(1)"),
        entry("pkg/mod.py", big),
        entry("deep/without/folders/x", b"x"),
        mode=mode,
    )
    extract(path, str(tmp_path / "code"), LIMIT)
    assert tree(tmp_path / "code") == {
        "train.py": b"print(1)",
        "pkg/mod.py": big,
        "deep/without/folders/x": b"x",
    }


def test_rwx_bits_and_times_are_kept_and_the_owner_may_always_read_and_write(
    tmp_path: Path,
) -> None:
    path = tar(
        tmp_path / "a.tar.gz",
        folder("d", 0o2550),
        entry("d/run.sh", b"", mode=0o755),
        entry("secret", b"", mode=0o040),
        symlink("link", "secret"),
    )
    extract(path, str(tmp_path / "code"), LIMIT)
    found = {
        name: (stat.S_IMODE(s.st_mode), s.st_mtime)
        for name in ("d", "d/run.sh", "secret")
        for s in [os.lstat(tmp_path / "code" / name)]
    }
    assert found == {
        "d": (0o750, 1e9),
        "d/run.sh": (0o755, 1e9),
        "secret": (0o640, 1e9),
    }
    assert os.lstat(tmp_path / "code" / "link").st_mtime == 1e9
    assert os.stat(tmp_path / "code" / "secret").st_uid == os.getuid()


def test_a_time_beyond_the_file_system_is_no_reason_to_refuse_code(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", entry("train.py", b"x", mtime=-1e19))
    extract(path, str(tmp_path / "code"), LIMIT)
    assert tree(tmp_path / "code") == {"train.py": b"x"}


def test_links_that_stay_inside_are_kept(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar.gz",
        entry("lib/one.py", b"1"),
        hardlink("lib/twin.py", "lib/one.py"),
        symlink("current", "lib"),
        symlink("lib/up", "../lib/one.py"),
        symlink("dangling", "nowhere"),
        symlink("loop", "loop"),
        symlink("back", "a/b/../lib"),
        folder("a"),
        symlink("a/b", "../current"),
    )
    extract(path, str(tmp_path / "code"), LIMIT)
    code = tmp_path / "code"
    assert (code / "current" / "one.py").read_bytes() == b"1"
    assert (code / "lib" / "up").read_bytes() == b"1"
    assert os.readlink(code / "dangling") == "nowhere"
    assert os.stat(code / "lib" / "twin.py").st_ino == os.stat(code / "lib" / "one.py").st_ino


def test_the_later_of_two_files_of_a_name_counts_and_a_twin_of_the_first_is_left_alone(
    tmp_path: Path,
) -> None:
    path = tar(
        tmp_path / "a.tar.gz",
        entry("a", b"old"),
        hardlink("twin", "a"),
        entry("a", b"new"),
    )
    extract(path, str(tmp_path / "code"), LIMIT)
    assert tree(tmp_path / "code") == {"a": b"new", "twin": b"old"}


def test_names_of_any_bytes_arrive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 'q\" $(x)\n")
    path = tar(tmp_path / "a.tar.gz", entry(name, b"1"), entry("ü" * 90, b"2"))
    extract(path, str(tmp_path / "code"), LIMIT)
    assert sorted(os.listdir(tmp_path / "code")) == sorted([name, "ü" * 90])


REFUSED = {
    "parent": ([entry("../evil", b"x")], "'..' in its name"),
    "parent further down": ([entry("a/../../evil", b"x")], "'..' in its name"),
    "absolute": ([entry("/tmp/evil", b"x")], "an absolute name"),
    "absolute link": ([symlink("evil", "/etc/passwd")], "outside of the code folder"),
    "link to the parent": ([symlink("evil", "..")], "outside of the code folder"),
    "link out through a link": (
        [folder("d"), symlink("d/root", ".."), symlink("evil", "d/root/../x")],
        "outside of the code folder",
    ),
    "link out once a later link is there": (
        [symlink("evil", "a/b/../../x"), folder("a"), symlink("a/b", "..")],
        "outside of the code folder",
    ),
    "file through a link to a folder": (
        [folder("d"), symlink("evil", "d"), entry("evil/x", b"x")],
        "written through the symlink",
    ),
    "file over a link": (
        [entry("a", b"x"), symlink("evil", "a"), entry("evil", b"y")],
        "comes twice",
    ),
    "link over a file": ([entry("evil", b"x"), symlink("evil", "a")], "comes twice"),
    "file over a folder": ([folder("evil"), entry("evil", b"x")], "comes twice"),
    "folder below a file": ([entry("evil", b"x"), entry("evil/y", b"y")], "through the file"),
    "hard link out": ([hardlink("evil", "../../etc/passwd")], "not a file before it"),
    "hard link to an absolute name": ([hardlink("evil", "/etc/passwd")], "not a file before it"),
    "hard link to a link": (
        [symlink("a", "b"), hardlink("evil", "a")],
        "not a file before it",
    ),
    "device": ([entry("evil", kind=tarfile.CHRTYPE)], "a device or a FIFO"),
    "block device": ([entry("evil", kind=tarfile.BLKTYPE)], "a device or a FIFO"),
    "fifo": ([entry("evil", kind=tarfile.FIFOTYPE)], "a device or a FIFO"),
    "setuid": ([entry("evil", b"x", mode=0o4755)], "setuid or setgid bit"),
    "setgid": ([entry("evil", b"x", mode=0o2755)], "setuid or setgid bit"),
    "no name": ([entry(".", b"evil")], "member '.' is a file without a name"),
}


@pytest.mark.parametrize(
    ("entries", "why"),
    REFUSED.values(),
    ids=REFUSED.keys(),
)
def test_a_member_that_could_do_harm_is_named_and_nothing_is_unpacked(
    tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], why: str
) -> None:
    path = tar(tmp_path / "bad.tar.gz", entry("good.py", b"x"), *entries)
    (tmp_path / "in").mkdir()
    with pytest.raises(CodeError) as caught:
        extract(path, str(tmp_path / "in" / "code"), LIMIT)
    assert why in str(caught.value)
    assert "bad.tar.gz" in str(caught.value)
    assert "member 'evil" in str(caught.value) or str(entries[-1][0].name) in str(caught.value)
    assert os.listdir(tmp_path / "in") == []
    assert sorted(os.listdir(tmp_path)) == ["bad.tar.gz", "in"]


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    info, content = entry("x", b"1")
    info.pax_headers = {"path": "train.py\0.txt"}
    path = tar(tmp_path / "a.tar.gz", (info, content))
    with pytest.raises(CodeError, match="NUL"):
        extract(path, str(tmp_path / "code"), LIMIT)


def test_a_size_over_the_limit_is_refused_before_more_than_the_limit_is_written(
    tmp_path: Path,
) -> None:
    path = tar(tmp_path / "a.tar.gz", entry("one", os.urandom(600)), entry("two", os.urandom(600)))
    extract(path, str(tmp_path / "fits"), 1200)
    with pytest.raises(CodeError, match="'two' takes the unpacked size over the limit of 1199"):
        extract(path, str(tmp_path / "code"), 1199)
    assert not (tmp_path / "code").exists()


def bomb_tar(path: Path) -> str:
    return tar(path, entry("zeros", bytes(80 << 20)))


def bomb_zip(path: Path) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(80 << 20))
    return str(path)


def bomb_in_the_headers(path: Path) -> str:
    info, content = entry("x", b"1")
    info.pax_headers = {"comment": "0" * (80 << 20)}
    return tar(path, (info, content))


@pytest.mark.parametrize("make", [bomb_tar, bomb_zip, bomb_in_the_headers])
def test_a_bomb_within_the_limit_is_refused_by_its_ratio(
    tmp_path: Path, make: Callable[[Path], str]
) -> None:
    path = make(tmp_path / "bomb")
    with pytest.raises(CodeError, match="more than 200 times"):
        extract(path, str(tmp_path / "code"), 10 << 30)
    assert not (tmp_path / "code").exists()


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", *(entry(f"f{n}") for n in range(4)))
    extract(path, str(tmp_path / "fits"), LIMIT, max_members=4)
    with pytest.raises(CodeError, match="'f3' is one more than the 3 members"):
        extract(path, str(tmp_path / "code"), LIMIT, max_members=3)
    assert not (tmp_path / "code").exists()


def watched(folder: Path, seen: list[int]) -> Callable[[], bool]:
    """Note, whenever it is asked whether to stop, how many bytes are below ``folder``."""

    def stopped() -> bool:
        seen.append(sum(os.lstat(p).st_size for p in folder.rglob("*") if p.is_file()))
        return False

    return stopped


def two_parts(path: Path, mode: str) -> str:
    """Write an archive of two files, each larger than the blocks in which it is read."""
    parts = [entry(f"part{n}", os.urandom(300_000)) for n in (1, 2)]
    if mode != "zip":
        return tar(path, *parts, mode=mode)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, content in parts:
            archive.writestr(info.name, content)
    return str(path)


@pytest.fixture(scope="module", params=["w", "w:gz", "w:bz2", "w:xz", "zip"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_parts(tmp_path_factory.mktemp("archive") / "packed", request.param)


def test_what_all_members_declare_is_compared_before_the_first_byte_is_written(
    tmp_path: Path, packed: str
) -> None:
    seen: list[int] = []
    stopped = watched(tmp_path, seen)
    with pytest.raises(CodeError, match="'part2' takes the unpacked size over the limit of 599999"):
        extract(packed, str(tmp_path / "code"), 599_999, stopped=stopped)
    assert set(seen) == {0}
    assert os.listdir(tmp_path) == []


def test_a_stop_is_seen_between_the_blocks_of_a_member(tmp_path: Path, packed: str) -> None:
    sizes: list[int] = []
    look = watched(tmp_path, sizes)

    def stopped() -> bool:
        return look() or sizes[-1] > 0

    with pytest.raises(CodeError, match="packed was not unpacked: a stop was requested"):
        extract(packed, str(tmp_path / "code"), LIMIT, stopped=stopped)
    assert 0 < sizes[-1] < 300_000
    assert os.listdir(tmp_path) == []


def test_a_stop_is_seen_while_only_headers_are_read(tmp_path: Path, packed: str) -> None:
    sizes: list[int] = []
    look = watched(tmp_path, sizes)

    def stopped() -> bool:
        return look() or len(sizes) > 1

    with pytest.raises(CodeError, match="a stop was requested"):
        extract(packed, str(tmp_path / "code"), LIMIT, stopped=stopped)
    assert sizes == [0, 0]


def deep_zip(path: Path, name: str) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"1")
    return str(path)


def deep_folder(path: Path, name: str) -> str:
    return tar(path, folder(name))


@pytest.mark.parametrize(
    "make", [lambda path, name: tar(path, entry(name, b"1")), deep_zip, deep_folder]
)
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1500, 5000])
def test_a_member_that_is_too_deep_is_one_sentence(
    tmp_path: Path, make: Callable[[Path, str], str], depth: int
) -> None:
    path = make(tmp_path / "packed", "d/" * depth + "train.py")
    with pytest.raises(CodeError, match=f"is more than {MAX_DEPTH} folders deep"):
        extract(path, str(tmp_path / "code"), LIMIT)
    assert not (tmp_path / "code").exists()


def test_a_member_as_deep_as_is_allowed_is_unpacked(tmp_path: Path) -> None:
    name = "d/" * MAX_DEPTH + "train.py"
    path = tar(tmp_path / "a.tar.gz", entry(name, b"1"))
    extract(path, str(tmp_path / "code"), LIMIT)
    assert (tmp_path / "code" / name).read_bytes() == b"1"


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_the_end(data: bytes) -> bytes:
    return data[:-12]


def flipped(data: bytes) -> bytes:
    at = len(data) - 6
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [cut, without_the_end, flipped])
@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_damaged_archive_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, mode: str, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "a.tar.gz"
    tar(path, entry("a", os.urandom(50_000)), entry("b", os.urandom(50_000)), mode=mode)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CodeError, match=r"a\.tar\.gz is damaged, truncated"):
        extract(str(path), str(tmp_path / "code"), LIMIT)
    assert not (tmp_path / "code").exists()


@pytest.mark.parametrize("size", [700, 1024, 1100, 1536])
def test_a_plain_tar_that_is_cut_anywhere_is_damaged(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.tar"
    tar(path, entry("a", b"1" * 500), entry("b", b"2"), mode="w")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CodeError, match="damaged"):
        extract(str(path), str(tmp_path / "code"), LIMIT)


def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    plain = tmp_path / "a.tar"
    tar(plain, entry("a", b"1"), entry("b", b"2"), entry("c", b"3"), mode="w")
    data = bytearray(plain.read_bytes())
    data[1024 + 148] ^= 0xFF
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(CodeError, match=r"damaged.*after member 'a'"):
        extract(str(path), str(tmp_path / "code"), LIMIT)
    assert not (tmp_path / "code").exists()


def test_a_compressed_tar_without_end_marks_is_whole_when_its_checksum_is(tmp_path: Path) -> None:
    plain = tmp_path / "a.tar"
    tar(plain, entry("a", b"1"), mode="w")
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()[:1024]))
    extract(str(path), str(tmp_path / "code"), LIMIT)
    assert tree(tmp_path / "code") == {"a": b"1"}


def test_a_zip_is_unpacked_with_its_modes_and_links(tmp_path: Path) -> None:
    path = tmp_path / "code.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pkg/", b"")
        archive.writestr("pkg/mod.py", b"1")
        run = zipfile.ZipInfo("run.sh", (2001, 9, 9, 1, 46, 40))
        run.external_attr = (stat.S_IFREG | 0o755) << 16
        archive.writestr(run, b"2")
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "pkg/mod.py")
    extract(str(path), str(tmp_path / "code"), LIMIT)
    assert tree(tmp_path / "code") == {"pkg/mod.py": b"1", "run.sh": b"2", "link": b"1"}
    found = os.stat(tmp_path / "code" / "run.sh")
    assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o755, 1e9)


@pytest.mark.parametrize(
    ("name", "attributes", "content", "why"),
    [
        ("../evil", stat.S_IFREG, "x", "'..' in its name"),
        ("/evil", stat.S_IFREG, "x", "an absolute name"),
        ("evil", stat.S_IFLNK, "../x", "outside of the code folder"),
        ("evil", stat.S_IFIFO, "", "a device or a FIFO"),
        ("evil", stat.S_IFREG | stat.S_ISUID, "x", "setuid"),
    ],
)
def test_a_zip_is_held_to_the_same_rules(
    tmp_path: Path, name: str, attributes: int, content: str, why: str
) -> None:
    path = tmp_path / "code.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = (attributes | 0o644) << 16
        archive.writestr(info, content)
    with pytest.raises(CodeError) as caught:
        extract(str(path), str(tmp_path / "code"), LIMIT)
    assert why in str(caught.value)
    assert not (tmp_path / "code").exists()


def test_a_damaged_zip_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "code.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"1" * 1000)
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CodeError, match="damaged"):
        extract(str(path), str(tmp_path / "code"), LIMIT)


def test_a_member_of_a_zip_whose_name_begins_with_a_nul_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "code.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("??", b"1")
    path.write_bytes(path.read_bytes().replace(b"??", b"\0x"))
    with pytest.raises(CodeError, match=r"code\.zip"):
        extract(str(path), str(tmp_path / "code"), LIMIT)
    assert not (tmp_path / "code").exists()


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "code.tar.gz"
    path.write_bytes(b"hello")
    with pytest.raises(CodeError, match="neither a tar"):
        extract(str(path), str(tmp_path / "code"), LIMIT)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", None),
        (b"print(1)\n" * 100, None),
        (gzip.compress(b"", mtime=0), "gz"),
        (b"PK\x03\x04", "zip"),
    ],
)
def test_the_kind_is_told_by_content(tmp_path: Path, content: bytes, kind: str | None) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(content)
    assert kind_of(str(path)) == kind


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_tar_dialect_and_the_one_without_magic_is_a_tar(tmp_path: Path, style: int) -> None:
    header = bytearray(entry("a")[0].tobuf(style))
    path = tmp_path / "x"
    path.write_bytes(header)
    assert kind_of(str(path)) == "tar"
    header[257:265] = bytes(8)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    path.write_bytes(header)
    assert kind_of(str(path)) == "tar"
