"""Channels from this machine: to the script they look as channels from S3 do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import channel, files
from tests.harness import RUNTIME, Base, Result, eventually
from tests.hosts import Cluster, logs, statuses
from tests.s3 import CREDENTIALS, Server, serving

MIB = 1 << 20
CONTENT = {"a.jpg": b"one", "b/c.jpg": b"two" * 1000, "b/d/empty": b""}
NO_MOUNTS = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
_NO_RIGHTS = "-sys_admin,-dac_override,-dac_read_search,-fowner"
NO_RIGHTS = ("setpriv", f"--bounding-set={_NO_RIGHTS}", f"--inh-caps={_NO_RIGHTS}")
"""Root, whom permissions bind as they bind anyone."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of the user's, whose name is hard on whoever takes it apart."""
    folder = tmp_path / "da ta\t\\040"
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def request(base: Base, *channels: dict[str, Any], **parts: Any) -> None:
    base.write(
        "input/config/job.json",
        {"TrainingJobName": "j", "InputDataConfig": list(channels), **parts},
    )


def file_system(path: Path, mode: str, **more: Any) -> dict[str, Any]:
    source = {
        "FileSystemId": "fs-01234567",
        "FileSystemType": "EFS",
        "FileSystemAccessMode": mode,
        "DirectoryPath": str(path),
    }
    return {"ChannelName": "train", "DataSource": {"FileSystemDataSource": source}, **more}


def local(path: Path | str, **more: Any) -> dict[str, Any]:
    uri = path.as_uri() if isinstance(path, Path) else path
    return channel("train", uri, **more)


def run(base: Base, script: str, *channels: dict[str, Any], **options: Any) -> Result:
    request(base, *channels)
    return base.script(script).run(**options)


def snapshot(folder: Path) -> dict[str, tuple[int, float, bytes | str]]:
    """Return all that is below a folder, with modes, times and contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        what: bytes | str = "folder"
        if path.is_symlink():
            what = os.readlink(path)
        elif path.is_file():
            what = path.read_bytes()
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime, what)
    return found


# --- File mode


LOOK = """
import json, os, subprocess
channel, data = os.environ["SM_CHANNEL_TRAIN"], os.path.dirname(os.environ["SM_CHANNEL_TRAIN"])
walked = [os.path.join(at, name) for at, _, names in os.walk(data) for name in names]
found = subprocess.run(["find", channel, "-type", "f"], capture_output=True).stdout.split(b"\\n")
print(json.dumps({
    "links": [p for p in (channel, *walked) if os.path.islink(p)],
    "walked": sorted(os.path.relpath(p, channel) for p in walked),
    "found": sorted(os.path.relpath(os.fsdecode(p), channel) for p in found if p),
}))
"""
KINDS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "a folder": ("", {}, ["a.jpg", "b/c.jpg", "b/d/empty"]),
    "a folder with its slash": ("/", {}, ["a.jpg", "b/c.jpg", "b/d/empty"]),
    "one file": ("/a.jpg", {}, ["a.jpg"]),
    "the beginning of names": ("/a", {}, ["a.jpg"]),
    "a manifest": (".manifest", {"data_type": "ManifestFile"}, ["b/c.jpg"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_is_a_real_folder_of_real_files(base: Base, data: Path, kind: str) -> None:
    part, settings, names = KINDS[kind]
    document = json.dumps([{"prefix": data.as_uri() + "/"}, "b/c.jpg"])
    Path(f"{data}.manifest").write_text(document)
    result = run(base, LOOK, local(data.as_uri() + part, **settings))
    assert result.status == 0, result.log
    assert json.loads(result.out) == {"links": [], "walked": names, "found": names}
    assert files(base.path("input/data/train")) == {name: CONTENT[name] for name in names}
    many = "s" if len(names) > 1 else ""
    assert f"copied train {len(names)} file{many} of " in result.log


def test_the_objects_of_an_augmented_manifest_are_copies(base: Base, data: Path) -> None:
    lines = data.parent / "train.jsonl"
    lines.write_text(json.dumps({"source-ref": (data / "a.jpg").as_uri(), "class": 0}) + "\n")
    given = local(lines, data_type="AugmentedManifestFile")
    given["DataSource"]["S3DataSource"]["AttributeNames"] = ["source-ref", "class"]
    result = run(base, LOOK, given)
    assert result.status == 0, result.log
    found = json.loads(result.out)
    assert found["links"] == []
    copied = str(data / "a.jpg").lstrip("/")
    assert found["walked"] == sorted([copied, "train.jsonl"])
    line = json.loads(base.path("input/data/train/train.jsonl").read_text())
    assert line == {"source-ref": copied, "class": 0}


MANGLE = """
import os, pathlib, shutil, subprocess, tarfile
channel = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"])
work = pathlib.Path(os.environ["SM_MODEL_DIR"])
subprocess.run(["cp", "-r", str(channel), str(work / "work")], check=True)
(work / "work/a.jpg").write_bytes(b"changed")
with tarfile.open(channel / "packed.tar") as archive:
    archive.extractall(channel)
(channel / "packed.tar").unlink()
with tarfile.open(work / "channel.tar", "w") as archive:
    archive.add(channel, "channel")
for path in list(channel.rglob("*")):
    if path.is_file():
        with open(path, "ab") as file:
            file.write(b"more")
(channel / "cache").write_bytes(b"beside the data")
shutil.rmtree(channel / "b")
"""


def test_nothing_that_a_script_does_to_its_channel_reaches_the_source(
    base: Base, data: Path
) -> None:
    with tarfile.open(data / "packed.tar", "w") as archive:
        archive.add(data / "a.jpg", "unpacked")
    for path in (data / "packed.tar", data / "a.jpg", data / "b/d", data):
        path.chmod(path.stat().st_mode & ~0o222)
    before = snapshot(data)
    result = run(base, MANGLE, local(data))
    assert result.status == 0, result.log
    assert snapshot(data) == before
    with tarfile.open(base.path("model/channel.tar")) as archive:
        member = archive.extractfile("channel/unpacked")
        assert member is not None and member.read() == b"one"


def test_a_source_that_nothing_can_be_written_to_is_a_channel_that_is_written_to(
    base: Base, data: Path
) -> None:
    """Mounted with ``:ro``, as is good practice."""
    subprocess.run(("mount", "--bind", "-o", "ro", data, data), check=True)
    try:
        result = run(base, MANGLE.replace("packed.tar", "b/packed.tar"), local(data / "none"))
        assert result.status == 1
        script = "import os\nopen(os.environ['SM_CHANNEL_TRAIN'] + '/b/cache', 'w')"
        result = run(base, script, local(data))
    finally:
        subprocess.run(("umount", data), check=True)
    assert result.status == 0, result.log


@pytest.mark.parametrize("rights", ["root", "permissions count"])
def test_copies_can_be_written_to_and_run_as_their_sources_could(
    base: Base, data: Path, rights: str
) -> None:
    (data / "a.jpg").chmod(0o444)
    (data / "tool").write_text("#!/bin/sh\necho tool\n")
    (data / "tool").chmod(0o555)
    os.utime(data / "a.jpg", ns=(1, 1_000_000_007))
    script = (
        "import os, subprocess\n"
        "os.chdir(os.environ['SM_CHANNEL_TRAIN'])\n"
        "print(os.stat('a.jpg').st_mtime_ns, subprocess.check_output(['./tool']))\n"
        "open('a.jpg', 'r+b').write(b'x'); open('tool', 'ab'); os.remove('b/c.jpg')"
    )
    result = run(base, script, local(data), prefix=NO_RIGHTS if rights != "root" else ())
    assert (result.status, result.out) == (0, b"1000000007 b'tool\\n'\n"), result.log
    found = files(base.path("input/data/train"))
    assert {name: found[name] for name in ("a.jpg", "b/d/empty")} == {
        "a.jpg": b"xne",
        "b/d/empty": b"",
    }


def test_every_kind_of_name_and_file_is_met(base: Base, data: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "linked").write_bytes(b"linked")
    odd = {os.fsdecode(b"\xff\xfe"), "-rf", "new\nline", "*", "%41", "a" * 255, "ü"}
    for name in odd:
        (data / name).write_bytes(os.fsencode(name))
    (data / "file link").symlink_to(outside / "linked")
    (data / "folder link").symlink_to(outside)
    os.link(data / "a.jpg", data / "hard link")
    os.mkfifo(data / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(data)
        server.bind("socket")
        os.chdir("/")
        result = run(base, "", local(data))
    assert result.status == 0, result.log
    expected = {
        **CONTENT,
        **{name: os.fsencode(name) for name in odd},
        "file link": b"linked",
        "folder link/linked": b"linked",
        "hard link": CONTENT["a.jpg"],
    }
    found = base.path("input/data/train")
    assert files(found) == expected
    assert not [path for path in found.rglob("*") if path.is_symlink()]
    assert (found / "hard link").stat().st_nlink == 1
    assert result.log.count("left out") == 1
    assert " and 1 more left out: neither a file nor a folder" in result.log


def _dangle(data: Path) -> None:
    (data / "nowhere").symlink_to("/nonexistent/x")


def _circle(data: Path) -> None:
    (data / "b/up").symlink_to(data)


def _deep(data: Path) -> None:
    os.chdir(data)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    os.chdir("/")


def _hide(data: Path) -> None:
    (data / "b/c.jpg").chmod(0)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a link to nowhere": (_dangle, "nowhere is a link to what does not exist"),
    "a folder in itself": (_circle, "holds itself: a symbolic link leads back to it"),
    "a deep folder": (_deep, "is more than 500 folders deep"),
    "a file that may not be read": (_hide, "b/c.jpg cannot be read: Permission denied"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_copied_is_named_before_anything_is(
    base: Base, data: Path, case: str
) -> None:
    prepare, reason = REFUSED[case]
    prepare(data)
    result = run(base, "print('ran')", local(data), prefix=NO_RIGHTS)
    subprocess.run(("rm", "-rf", data / "d"), check=True)
    assert (result.status, result.out) == (1, b"")
    assert base.failure().startswith("DataError: ") and reason in base.failure()
    assert files(base.path("input/data")) == {}


def test_hosts_share_a_local_folder(tmp_path: Path, data: Path) -> None:
    given = local(data)
    given["DataSource"]["S3DataSource"]["S3DataDistributionType"] = "ShardedByS3Key"
    found = []
    for host in ("algo-1", "algo-2"):
        base = Base(tmp_path / host)
        request(base, given)
        base.write(
            "input/config/resourceconfig.json",
            {"current_host": host, "hosts": ["algo-1", "algo-2"]},
        )
        result = base.script("print('ran')").run("check", command=RUNTIME)
        assert result.status == 0, result.out
        code = (
            "import os, sys; from sm_runtime.configure import configure;"
            "from sm_runtime.job.secrets import Mask; from sm_runtime import channels;"
            "channels.prepare(configure(dict(os.environ), Mask()), dict(os.environ))"
        )
        subprocess.run((sys.executable, "-c", code), env=base.environ, check=True)
        found.append(files(base.path("input/data/train")))
    assert found == [
        {name: CONTENT[name] for name in ("a.jpg", "b/d/empty")},
        {"b/c.jpg": CONTENT["b/c.jpg"]},
    ]


INSIDE: dict[str, tuple[str, str]] = {
    "the base folder": ("opt", "holds the job's own folder"),
    "the channel's own folder": ("opt/ml/input/data", "holds the job's own folder"),
    "the folder of another channel": (
        "opt/ml/input/data/other", "is in the folder of channel other",
    ),
    "the beginning of the base folder's name": ("op", "holds the job's own folder"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["train", "check"])
@pytest.mark.parametrize("case", INSIDE)
def test_a_folder_is_not_copied_into_itself(
    base: Base, tmp_path: Path, data: Path, case: str, command: str
) -> None:
    name, reason = INSIDE[case]
    other = channel("other", data.as_uri())
    base.write("input/data/other/.sm-runtime-download", "")  # of a job that was killed
    request(base, other, local(f"file://{tmp_path}/{name}"))
    result = base.script("print('ran')").run(command, command=RUNTIME)
    assert result.status == 1
    assert b"ran\n" not in result.out
    assert reason in result.out.decode() + result.log


def test_a_source_in_the_base_folder_is_like_any_other(base: Base) -> None:
    base.write("data/x", b"x")
    result = run(base, LOOK, local(base.path("data")))
    assert result.status == 0, result.log
    assert json.loads(result.out)["walked"] == ["x"]


# --- room


@pytest.fixture
def narrow(base: Base) -> Iterator[Base]:
    """A base folder on a disk of 24 MiB."""
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", base.root), check=True)
    yield base
    subprocess.run(("umount", base.root), check=True)


def links(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): os.readlink(path)
        for path in sorted(folder.rglob("*"))
        if path.is_symlink()
    }


def test_what_there_is_no_room_for_is_links_with_a_warning(narrow: Base, tmp_path: Path) -> None:
    for name, size in (("small", 4), ("large", 40)):
        (tmp_path / name / "d").mkdir(parents=True)
        (tmp_path / name / "d/x").write_bytes(os.urandom(size * MIB))
    request(narrow, *(channel(n, (tmp_path / n).as_uri()) for n in ("small", "large")))
    script = (
        "import os\nprint(sum(map(os.path.getsize, (os.environ['SM_CHANNEL_LARGE'] + '/d/x',))))"
    )
    result = narrow.script(script).run()
    assert (result.status, result.out) == (0, b"%d\n" % (40 * MIB)), result.log
    assert links(narrow.path("input/data")) == {"large/d/x": str(tmp_path / "large/d/x")}
    assert files(narrow.path("input/data/small")) == files(tmp_path / "small")
    (warning,) = [line for line in result.log.splitlines() if "are links" in line]
    assert "WARNING channels small, large need 44.0 MiB" in warning
    assert f"what the script writes into one changes {(tmp_path / 'large').as_uri()}" in warning


def test_links_are_to_be_had_on_request(base: Base, data: Path) -> None:
    request(base, local(data))
    result = base.script("").run(SM_RUNTIME_LINK_CHANNELS="1")
    assert result.status == 0, result.log
    folder = base.path("input/data/train")
    assert not folder.is_symlink() and not (folder / "b").is_symlink()
    assert links(folder) == {name: str(data / name) for name in CONTENT}
    # On second thoughts: nothing may be written through what is there.
    before = snapshot(data)
    result = base.script("import os\nopen(os.environ['SM_CHANNEL_TRAIN'] + '/a.jpg', 'w')").run()
    assert result.status == 0, result.log
    assert links(folder) == {}
    assert snapshot(data) == before


def test_holes_take_no_room(narrow: Base, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with open(tmp_path / "d/sparse", "wb") as file:
        file.write(b"begin")
        file.seek(64 << 30)
        file.write(b"middle")
        file.truncate(1 << 40)
    script = (
        "import os\n"
        "file = open(os.environ['SM_CHANNEL_TRAIN'] + '/sparse', 'rb')\n"
        "found = [file.read(5)]; file.seek(64 << 30); found.append(file.read(6))\n"
        "print(found, file.read(9).strip(b'\\0'), os.path.getsize(file.name))"
    )
    result = run(narrow, script, local(tmp_path / "d"))
    assert (result.status, result.out.decode()) == (
        0, f"[b'begin', b'middle'] b'' {1 << 40}\n",
    ), result.log  # fmt: skip
    assert links(narrow.path("input/data")) == {}


@pytest.fixture(params=["xfs", "btrfs"])
def sharing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 MiB on which files can share their blocks."""
    kind = request.param
    image, folder = tmp_path / "image", tmp_path / "mnt"
    with open(image, "wb") as file:
        file.truncate(400 * MIB)
    subprocess.run((f"mkfs.{kind}", "-q", image), check=True)
    folder.mkdir()
    subprocess.run(("mount", "-o", "loop", image, folder), check=True)
    yield folder
    subprocess.run(("umount", folder), check=True)


def test_copies_share_the_blocks_of_their_sources_where_the_file_system_can(sharing: Path) -> None:
    base = Base(sharing / "opt/ml")
    (sharing / "d").mkdir()
    (sharing / "d/x").write_bytes(os.urandom(200 * MIB))  # twice that is more than there is
    (sharing / "d/empty").write_bytes(b"")
    script = "import os\nopen(os.environ['SM_CHANNEL_TRAIN'] + '/x', 'r+b').write(b'changed')"
    before = (sharing / "d/x").read_bytes()
    result = run(base, script, local(sharing / "d"))
    assert result.status == 0, result.log
    assert "copied train 2 files of 200.0 MiB" in result.log
    assert links(base.path("input/data")) == {}
    assert (sharing / "d/x").read_bytes() == before
    after = base.path("input/data/train/x").read_bytes()
    assert after == b"changed" + before[7:]


# --- the next attempt


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "buckets").mkdir()
    with serving(tmp_path / "buckets") as server:
        yield server


def sources(kind: str, base: Base, tmp_path: Path, server: Server) -> tuple[str, str]:
    """Return the URIs of two sources with the same names and other contents."""
    for name in ("one", "two"):
        for number in range(6):
            path = tmp_path / f"buckets/bucket/{name}/d{number % 2}/{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"%s %d" % (name.encode(), number))
    base.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": server.url, "AWS_REGION": "eu-west-1"}
    if kind == "s3":
        return "s3://bucket/one/", "s3://bucket/two/"
    return f"file://{tmp_path}/buckets/bucket/one", f"file://{tmp_path}/buckets/bucket/two"


def content(name: str) -> dict[str, bytes]:
    numbers = (0, 2, 4, 1, 3, 5)  # as they are sorted
    return {f"d{number % 2}/{number}": b"%s %d" % (name.encode(), number) for number in numbers}


SPOIL = """
import os, pathlib, shutil, sys
os.chdir(os.environ["SM_CHANNEL_TRAIN"])
users = pathlib.Path(os.environ["USERS"])
print({str(p): p.read_bytes() for p in sorted(pathlib.Path().rglob("*")) if p.is_file()})
stamp = os.stat("d0/0")
with open("d0/0", "r+b") as file: file.write(b"ONE")            # as long as it was
os.utime("d0/0", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))     # and as old
os.remove("d0/2")
os.remove("d0/4"); os.symlink(users / "kept", "d0/4")
shutil.rmtree("d1"); os.symlink(users, "d1")
os.makedirs("cache/deep"); open("cache/deep/x", "w").close()
os.mkfifo("fifo")
os.symlink(users / "kept", ".sm-runtime-download")
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_the_next_attempt_gets_its_source_again_whatever_the_script_did(
    base: Base, tmp_path: Path, server: Server, kind: str
) -> None:
    one, two = sources(kind, base, tmp_path, server)
    users = tmp_path / "users"
    users.mkdir()
    (users / "kept").write_bytes(b"the user's")
    base.environ["USERS"] = str(users)
    folder, folder_was_used = base.path("input/data/train"), False
    for uri in (one, one, two):
        request(base, local(uri))
        result = base.script(SPOIL).run()
        assert result.status == 137, result.log
        expected = content("one" if uri == one else "two")
        if folder_was_used:
            assert "that an earlier job has left or altered: " in result.log
        folder_was_used = True
        assert result.out.decode() == f"{expected}\n", result.log
        assert (folder / "d1").is_symlink()
        assert files(users) == {"kept": b"the user's"}


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_what_nobody_has_touched_is_not_fetched_again(
    base: Base, tmp_path: Path, server: Server, kind: str
) -> None:
    one, _ = sources(kind, base, tmp_path, server)
    request(base, local(one))
    assert base.script("").run().status == 0
    kept = base.path("input/data/train/d0/0").stat()
    result = base.script("import os\nos.remove(os.environ['SM_CHANNEL_TRAIN'] + '/d1/1')").run()
    assert result.status == 0
    result = base.script("").run()
    assert result.status == 0
    assert "B of the same objects are there from an earlier attempt" in result.log
    assert files(base.path("input/data/train")) == content("one")
    now = base.path("input/data/train/d0/0").stat()
    assert (now.st_ino, now.st_ctime_ns) == (kept.st_ino, kept.st_ctime_ns)


def test_a_source_that_was_rewritten_in_place_is_copied_anew(base: Base, data: Path) -> None:
    """As long and as old as it was before."""
    assert run(base, "", local(data)).status == 0
    status = (data / "a.jpg").stat()
    with open(data / "a.jpg", "r+b") as file:
        file.write(b"ONE")
    os.utime(data / "a.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(base, "", local(data)).status == 0
    assert base.path("input/data/train/a.jpg").read_bytes() == b"ONE"


def _anew(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "mine").write_bytes(b"mine")


def _copied(folder: Path) -> None:
    subprocess.run(("cp", "-a", folder, folder.parent / "copy"), check=True)
    shutil.rmtree(folder)
    (folder.parent / "copy").rename(folder)
    (folder / "mine").write_bytes(b"mine")


def _mounted(folder: Path) -> None:
    kept = folder.parents[2] / "kept"
    folder.rename(kept)
    folder.mkdir()
    (kept / "mine").write_bytes(b"mine")
    subprocess.run(("mount", "--bind", kept, folder), check=True)


@pytest.mark.parametrize("put", [_anew, _copied, _mounted])
def test_what_somebody_puts_in_the_place_of_a_channel_is_theirs(
    base: Base, data: Path, put: Callable[[Path], None]
) -> None:
    """Also where it was one of ours: copied with all its attributes, or moved and mounted."""
    assert run(base, "", local(data)).status == 0
    folder = base.path("input/data/train")
    put(folder)
    before = files(folder)
    try:
        result = run(base, "", local(data))
    finally:
        subprocess.run(("umount", folder), check=put == _mounted, stderr=subprocess.DEVNULL)
    assert result.status == 0
    assert files(folder if put != _mounted else base.path("kept")) == before
    assert before["mine"] == b"mine"
    assert f"channel train: what {folder} holds is used" in result.log


def test_a_mount_inside_an_earlier_channel_is_not_cleared(
    base: Base, data: Path, tmp_path: Path
) -> None:
    assert run(base, "", local(data)).status == 0
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "x").write_bytes(b"mine")
    inside = base.path("input/data/train/b")
    subprocess.run(("mount", "--bind", mine, inside), check=True)
    try:
        result = run(base, "print('ran')", local(data))
    finally:
        subprocess.run(("umount", inside), check=True)
    assert (result.status, result.out) == (1, b"")
    assert f"channel train: {inside} is mounted inside" in base.failure()
    assert files(mine) == {"x": b"mine"}


def many(folder: Path, count: int) -> dict[str, bytes]:
    folder.mkdir()
    made = {f"{number:05}": b"%05d" % number * 100 for number in range(count)}
    for name, text in made.items():
        (folder / name).write_bytes(text)
    return made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_copy_is_not_taken_for_data_and_goes_on(
    base: Base, tmp_path: Path, number: signal.Signals
) -> None:
    expected = many(tmp_path / "many", 6000)
    folder = base.path("input/data/train")
    request(base, local(tmp_path / "many"))
    running = base.script("print('ran')").start()
    eventually(lambda: folder.is_dir() and len(os.listdir(folder)) > 50, "some files", 60)
    running.send(number)
    result = running.wait()
    assert (result.status, result.out) == (128 + number, b"")
    left = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    assert ".sm-runtime-download" in left and len(left) < 6000
    whole = {name: data for name, data in left.items() if name in expected}
    assert whole.items() <= expected.items()
    if number == signal.SIGTERM:
        assert not [name for name in left if name.endswith(".part")]
    result = base.run()
    assert (result.status, result.out) == (0, b"ran\n"), result.log
    assert "of the same objects are there from an earlier attempt" in result.log
    assert files(folder) == expected


# --- read-only


TRY_TO_WRITE = """
import json, os, pathlib
channel = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"])
mine = {str(p.relative_to(channel)): p.read_bytes().decode() for p in sorted(channel.rglob("*"))
        if p.is_file() and not p.stat().st_size > 99}
said = {}
def attempt(name, action):
    try:
        action()
    except OSError as error:
        said[name] = error.strerror
    else:
        said[name] = "done"
attempt("write", lambda: open(channel / "a.jpg", "r+b").write(b"!"))
attempt("create", lambda: open(channel / "b/new", "x"))
attempt("delete", lambda: os.remove(channel / "a.jpg"))
print(json.dumps([channel.is_symlink(), mine, said]), flush=True)
"""
SMALL = {"a.jpg": "one", "b/d/empty": ""}
EROFS = dict.fromkeys(("write", "create", "delete"), "Read-only file system")
EACCES = dict.fromkeys(("write", "create", "delete"), "Permission denied")


def read_only(kind: str, data: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a channel that the script must not write to, and what is in it."""
    if kind == "a file system":
        return file_system(data, "ro"), SMALL
    if kind == "a file system of no mode":
        given = file_system(data, "ro")
        del given["DataSource"]["FileSystemDataSource"]["FileSystemAccessMode"]
        return given, SMALL
    if kind == "FastFile":
        return local(data, InputMode="FastFile"), SMALL
    if kind == "a selection":
        return local(f"{data.as_uri()}/a", InputMode="FastFile"), {"a.jpg": "one"}
    assert kind == "links that lead out"
    (data.parent / "beside").write_bytes(b"beside")
    (data / "out").symlink_to("../beside")
    return local(data, InputMode="FastFile"), {**SMALL, "out": "beside"}


READ_ONLY = (
    *("a file system", "a file system of no mode", "FastFile", "a selection"),
    "links that lead out",
)
ONE_ONLY = {"a selection": {"create": "No such file or directory"}}


@pytest.mark.parametrize("kind", READ_ONLY)
@pytest.mark.parametrize("rights", [(), NO_MOUNTS, NO_RIGHTS], ids=["all", "no mounts", "none"])
def test_what_is_read_only_is_so_for_the_script_as_far_as_can_be(
    base: Base, data: Path, kind: str, rights: tuple[str, ...]
) -> None:
    given, expected = read_only(kind, data)
    before = snapshot(data)
    result = run(base, TRY_TO_WRITE, given, prefix=rights)
    assert result.status == 0, result.log
    is_link, mine, said = json.loads(result.out)
    assert (is_link, mine) == (False, expected)
    if not rights:
        wanted = {**EROFS, **ONE_ONLY.get(kind, {})}
    elif rights == NO_RIGHTS:
        wanted = {**EACCES, **ONE_ONLY.get(kind, {})}
    else:
        wanted = {**dict.fromkeys(EROFS, "done"), **ONE_ONLY.get(kind, {})}
    assert said == wanted
    assert snapshot(data) == before
    told = [line for line in result.log.splitlines() if "mounted read-only" in line]
    assert len(told) == bool(rights)
    if rights:
        assert "WARNING channel train: nothing can be mounted read-only here (" in told[0]
        assert "--cap-add SYS_ADMIN" in told[0]
    assert str(base.root) not in Path("/proc/self/mountinfo").read_text()
    # Its owner can do away with it.
    subprocess.run((*NO_RIGHTS, "rm", "-rf", base.root), check=True)
    assert snapshot(data) == before


def test_what_is_read_only_is_links_on_request_where_nothing_can_be_mounted(
    base: Base, data: Path
) -> None:
    before = snapshot(data)
    script = "import os\nprint(open(os.environ['SM_CHANNEL_TRAIN'] + '/a.jpg').read())"
    for rights in (NO_RIGHTS, ()):
        request(base, file_system(data, "ro"))
        result = base.script(script).run(prefix=rights, SM_RUNTIME_LINK_CHANNELS="1")
        assert (result.status, result.out) == (0, b"one\n"), result.log
        assert ("the files are links, through which" in result.log) == bool(rights)
    assert snapshot(data) == before


HOLD = TRY_TO_WRITE + "import time\ntime.sleep(60)\n"


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_no_mount_outlives_the_job_nor_is_seen_outside(base: Base, data: Path, mode: str) -> None:
    """Somebody clears the base folder while the job runs, and its runtime has been killed."""
    request(base, file_system(data, mode))
    running = base.script(HOLD).start()
    running.ready(b"]")
    before = snapshot(data)
    assert ("b/new" in before) == (mode == "rw")
    folder = base.path("input/data/train")
    assert os.listdir(folder) == []
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    children = _descendants(running.pid)
    running.send(signal.SIGKILL)
    running.wait()
    shutil.rmtree(base.path("input/data"))
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert snapshot(data) == before
    result = base.script(TRY_TO_WRITE).run()
    assert result.status == 0, result.log
    assert not folder.exists()


def _descendants(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(entry.name), *_descendants(int(entry.name))]
    return found


def test_what_is_mounted_inside_a_source_is_shown_and_is_read_only_too(
    base: Base, data: Path, tmp_path: Path
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.jpg").write_bytes(b"inner")
    subprocess.run(("mount", "--bind", inner, data / "b"), check=True)
    try:
        script = TRY_TO_WRITE.replace("b/new", "new").replace('channel / "a', 'channel / "b/a')
        result = run(base, script, file_system(data, "ro"))
    finally:
        subprocess.run(("umount", data / "b"), check=True)
    assert result.status == 0, result.log
    assert json.loads(result.out) == [False, {"a.jpg": "one", "b/a.jpg": "inner"}, EROFS]
    assert files(inner) == {"a.jpg": b"inner"}


def test_the_script_of_each_host_sees_what_is_mounted(cluster: Cluster, data: Path) -> None:
    for base in cluster.bases:
        request(base, file_system(data, "ro"))
    results = cluster.script(TRY_TO_WRITE).start().wait()
    assert set(statuses(results)) == {0}, logs(results)
    for result in results:
        assert json.loads(result.out) == [False, SMALL, EROFS]


@pytest.mark.parametrize("rights", [(), NO_MOUNTS], ids=["all", "no mounts"])
def test_what_is_written_to_a_file_system_reaches_it(
    base: Base, data: Path, rights: tuple[str, ...]
) -> None:
    result = run(base, TRY_TO_WRITE, file_system(data, "rw"), prefix=rights)
    assert result.status == 0, result.log
    is_link, mine, said = json.loads(result.out)
    assert (is_link, mine) == (bool(rights), SMALL)
    assert set(said.values()) == {"done"}
    assert (data / "b/new").exists() and not (data / "a.jpg").exists()
    assert ("channel train: a link to " in result.log) == bool(rights)
    subprocess.run(("rm", "-rf", base.root), check=True)
    assert (data / "b/new").exists()


def test_a_file_system_that_is_written_to_may_be_empty(base: Base, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    script = "import os\nopen(os.environ['SM_CHANNEL_TRAIN'] + '/new', 'w')"
    assert run(base, script, file_system(tmp_path / "empty", "rw")).status == 0
    assert (tmp_path / "empty/new").exists()
    result = run(base, script, file_system(tmp_path / "none", "rw"))
    assert result.status == 1 and "none does not exist" in base.failure()


def test_another_way_to_show_the_same_channel_clears_the_earlier_one(
    base: Base, data: Path
) -> None:
    ways = [
        local(data), file_system(data, "ro"), local(data, InputMode="FastFile"),
        local(data), file_system(data, "rw"), local(data),
    ]  # fmt: skip
    for prefix in ((), NO_MOUNTS):
        for given in ways:
            result = run(base, LOOK, given, prefix=prefix)
            assert result.status == 0, result.log
            if "a link to" not in result.log:
                assert json.loads(result.out)["found"] == sorted(CONTENT)
            folder = base.path("input/data/train")
            if given == ways[0]:
                assert {path.stat().st_mode & 0o222 for path in folder.rglob("*")} == {0o200}
    assert files(data) == CONTENT
