"""Channels that name objects: real files from a real S3 server, or from a folder."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sm_runtime import channels
from sm_runtime.channels import fastfile, mounts
from sm_runtime.channels.download import Progress
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Cluster, InstanceGroup, Job, Options, Paths, Source
from sm_runtime.storage.s3 import S3Origin
from tests.harness import eventually, processes_with
from tests.mounting import can_mount
from tests.s3 import CREDENTIALS, Server, serving

HOSTS = ("algo-1", "algo-2", "algo-3")
CONTENT = {"a.txt": b"one", "b/c.txt": b"two" * 100_000, "b/ü 1+2%20.txt": b"", "b/d/e": b"e"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "buckets") as running:
        for name, content in CONTENT.items():
            running.put(f"s3://data/train/{name}", content)
        running.put("s3://data/train2/other", b"other")
        running.put("s3://data/table.csv", b"1,2")
        for i in range(10):
            running.put(f"s3://data/ten/{i}", bytes([i]) * i)
        running.put("s3://second/x/y", b"second")
        yield running


class Place:
    """A base folder, and jobs in it."""

    def __init__(self, root: Path, server: Server | None) -> None:
        self.root = root
        self.environ = {"PATH": os.environ["PATH"], **CREDENTIALS, "AWS_REGION": "us-east-1"}
        if server:
            self.environ["S3_ENDPOINT_URL"] = server.url

    def channel(self, uri: str, name: str = "train", **settings: Any) -> Channel:
        of_channel = {key: settings.pop(key) for key in ("mode", "distribution") if key in settings}
        path = str(self.root / "input/data" / name)
        return Channel(name=name, path=path, source=Source(uri=uri, **settings), **of_channel)

    def job(self, *given: Channel, host: str = HOSTS[0], **options: Any) -> Job:
        return Job(
            paths=Paths(str(self.root)),
            cluster=Cluster(current_host=host, hosts=HOSTS),
            managed=False,
            channels=given,
            options=Options(**options),
        )

    def prepare(self, *given: Channel, stopped: Callable[[], bool] = bool, **job: Any) -> None:
        channels.prepare(self.job(*given, **job), self.environ, stopped)

    def files(self, name: str = "train") -> dict[str, bytes]:
        """Return every file of a channel, hidden and unfinished ones included."""
        folder = self.root / "input/data" / name
        paths = (Path(at, file) for at, _, names in os.walk(folder) for file in names)
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def place(tmp_path: Path, server: Server) -> Place:
    return Place(tmp_path / "ml", server)


@pytest.mark.parametrize("uri", ["s3://data/train", "s3://data/train/"])
def test_a_prefix_is_the_channel(place: Place, uri: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    place.prepare(place.channel(uri))
    others = {"train2/other": b"other"} if uri.endswith("n") else {}
    assert place.files() == {**CONTENT, **others}
    assert f"downloaded train {4 + len(others)} files of 293.0 KiB in" in caplog.text
    assert ("also matches train2/other" in caplog.text) == bool(others)


def test_one_object_is_a_file_of_its_name(place: Place) -> None:
    place.prepare(place.channel("s3://data/table.csv"))
    assert place.files() == {"table.csv": b"1,2"}


def test_several_channels_are_downloaded_from_several_buckets(place: Place) -> None:
    test = place.channel("s3://second/x", "test")
    place.prepare(place.channel("s3://data/ten/"), test, place.channel("s3://data/t", "all"))
    assert place.files() == {str(i): bytes([i]) * i for i in range(10)}
    assert place.files("test") == {"y": b"second"}
    assert len(place.files("all")) == 16


def test_a_manifest_names_the_objects(place: Place, server: Server) -> None:
    keys = ["train/b/c.txt", "ten/7", "train/b/ü 1+2%20.txt", "ten/7"]
    document = json.dumps([{"prefix": "s3://data/"}, *keys])
    uri = server.put("s3://data/lists/a.manifest", document.encode())
    place.prepare(place.channel(uri, data_type="ManifestFile"))
    name = "b/ü 1+2%20.txt"
    assert place.files() == {
        "train/b/c.txt": CONTENT["b/c.txt"],
        "ten/7": b"\7" * 7,
        f"train/{name}": CONTENT[name],
    }


def test_an_object_that_a_manifest_names_in_vain_is_named(place: Place, server: Server) -> None:
    document = json.dumps([{"prefix": "s3://data/"}, "ten/7", "ten/11"])
    uri = server.put("s3://data/lists/b.manifest", document.encode())
    with pytest.raises(DataError, match="s3://data/ten/11"):
        place.prepare(place.channel(uri, data_type="ManifestFile"))
    assert place.files() == {}


def augmented(server: Server) -> str:
    lines = [
        {"source-ref": "s3://data/ten/3", "class": 0, "more": "x"},
        {"source-ref": "s3://second/x/y", "class": {"a": [1]}, "more": "x"},
        {"source-ref": "s3://data/ten/3", "class": "1", "more": "x"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return server.put("s3://data/lists/train.jsonl", text.encode())


def test_an_augmented_manifest_gives_its_objects_and_its_lines(
    place: Place, server: Server
) -> None:
    names = ("class", "source-ref")
    uri = augmented(server)
    place.prepare(place.channel(uri, data_type="AugmentedManifestFile", attribute_names=names))
    files = place.files()
    lines = [json.loads(line) for line in files.pop("train.jsonl").splitlines()]
    assert files == {"data/ten/3": b"\3" * 3, "second/x/y": b"second"}
    assert lines == [
        {"class": 0, "source-ref": "data/ten/3"},
        {"class": {"a": [1]}, "source-ref": "second/x/y"},
        {"class": "1", "source-ref": "data/ten/3"},
    ]


def test_the_lines_of_an_augmented_manifest_are_shared(place: Place, server: Server) -> None:
    found = []
    for host in HOSTS:
        own = Place(place.root / host, server)
        channel = own.channel(
            augmented(server),
            data_type="AugmentedManifestFile",
            attribute_names=("class",),
            distribution="ShardedByS3Key",
        )
        own.prepare(channel, host=host)
        found.append([json.loads(line) for line in own.files()["train.jsonl"].splitlines()])
    assert found == [[{"class": 0}], [{"class": {"a": [1]}}], [{"class": "1"}]]


def test_a_seed_decides_the_order_of_the_lines(place: Place, server: Server) -> None:
    lines = "".join(json.dumps({"class": i}) + "\n" for i in range(50))
    uri = server.put("s3://data/lists/many.jsonl", lines.encode())
    found = []
    for turn, seed in enumerate((7, 7, 8)):
        own = Place(place.root / str(turn), server)
        channel = own.channel(
            uri, data_type="AugmentedManifestFile", attribute_names=("class",), shuffle_seed=seed
        )
        own.prepare(channel)
        found.append([json.loads(line)["class"] for line in own.files()["many.jsonl"].splitlines()])
    assert found[0] == found[1] != found[2]
    assert sorted(found[0]) == sorted(found[2]) == list(range(50)) != found[0]


def test_a_host_of_another_group_does_not_get_the_channel(place: Place) -> None:
    groups = tuple(
        InstanceGroup(name=name, instance_type="x", hosts=(host,))
        for name, host in (("cpu", HOSTS[0]), ("gpu", HOSTS[1]))
    )
    given = place.channel("s3://data/ten", instance_groups=("gpu",))
    job = place.job(given)
    for host, group, count in ((HOSTS[0], "cpu", 0), (HOSTS[1], "gpu", 10)):
        here = Cluster(current_host=host, hosts=HOSTS[:2], groups=groups, current_group=group)
        channels.prepare(replace(job, cluster=here), place.environ)
        assert len(place.files()) == count


def test_each_host_gets_its_share_and_all_together_get_all(place: Place, server: Server) -> None:
    shards = []
    for turn in range(2):
        for host in HOSTS:
            own = Place(place.root / f"{host}-{turn}", server)
            own.prepare(own.channel("s3://data/ten/", distribution="ShardedByS3Key"), host=host)
            shards.append(own.files())
    assert shards[:3] == shards[3:]
    assert [len(shard) for shard in shards[:3]] == [4, 3, 3]
    assert shards[0] | shards[1] | shards[2] == {str(i): bytes([i]) * i for i in range(10)}


def test_compressed_objects_are_unpacked(place: Place, server: Server) -> None:
    text = os.urandom(300_000) + b"x" * 3_000_000
    server.put("s3://data/packed/a.csv.gz", gzip.compress(text) + gzip.compress(b"more"))
    server.put("s3://data/packed/d/b", gzip.compress(b""))
    place.prepare(place.channel("s3://data/packed/", compression="Gzip"))
    assert place.files() == {"a.csv": text + b"more", "d/b": b""}


def test_an_object_that_is_not_compressed_is_named(place: Place, server: Server) -> None:
    server.put("s3://data/half/a.gz", gzip.compress(b"a"))
    server.put("s3://data/half/b.gz", b"plain")
    with pytest.raises(DataError, match=r"^s3://data/half/b\.gz is not compressed with gzip"):
        place.prepare(place.channel("s3://data/half/", compression="Gzip"))
    assert not [name for name in place.files() if name.startswith("b")]


@pytest.mark.parametrize("scheme", ["s3", "file"])
def test_a_channel_without_objects_is_an_error_unless_allowed(
    place: Place, tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "none").mkdir()
    uri = "s3://data/none/" if scheme == "s3" else f"file://{tmp_path}/none"
    channel = place.channel(uri, distribution="ShardedByS3Key")
    with pytest.raises(DataError, match=f"^channel train: {uri} matched 0 objects"):
        place.prepare(channel)
    place.prepare(channel, allow_empty_channels=True)
    assert os.listdir(channel.path) == []


def test_what_is_refused_in_one_channel_keeps_all_from_being_fetched(
    place: Place, server: Server
) -> None:
    server.put("s3://data/clash/train/x", b"1")
    server.put("s3://data/clash/train/train2/x", b"1")
    server.put("s3://data/clash/train2/x", b"1")
    bad = place.channel("s3://data/clash/train", "bad")
    with pytest.raises(DataError, match=r"^channel bad: .* would be the same file, train2/x"):
        place.prepare(place.channel("s3://data/ten/"), bad)
    assert place.files() == place.files("bad") == {}


def test_what_is_missing_after_a_download_is_named(place: Place, server: Server) -> None:
    """Whatever took it away, up to ten of the objects are named."""
    for number in range(30):
        server.put(f"s3://verified/{number:02}", b"x" * 100)
    folder = place.root / "input/data/train"
    fetch = S3Origin.fetch

    def losing(origin: S3Origin, wanted: Any, **how: Any) -> None:
        fetch(origin, wanted, **how)
        for name in range(12):
            (folder / f"{name:02}").unlink()
        (folder / "12").write_bytes(b"short")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Origin, "fetch", losing)
        with pytest.raises(DataError) as caught:
            place.prepare(place.channel("s3://verified/"))
    text = str(caught.value)
    assert "channel train: s3://verified/: 13 of 30 objects are not there in full" in text
    assert text.endswith("'00', '01', '02', '03', '04', '05', '06', '07', '08', '09', ...")
    assert (folder / channels.UNFINISHED).exists()
    place.prepare(place.channel("s3://verified/"))
    assert len(place.files()) == 30


def test_what_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    place = Place(tmp_path / "ml", None)
    (tmp_path / "big").mkdir()
    with open(tmp_path / "big" / "x.gz", "wb") as file:
        file.truncate(8 << 40)
    channel = place.channel(f"file://{tmp_path}/big", compression="Gzip")
    with pytest.raises(DataError) as caught:
        place.prepare(channel)
    assert str(caught.value).startswith(f"channel train needs 8192.0 GiB, {channel.path} has ")
    assert set(place.files()) <= {channels.UNFINISHED}


def test_data_that_was_placed_by_hand_is_used(place: Place) -> None:
    (place.root / "input/data/train").mkdir(parents=True)
    (place.root / "input/data/train/mine").write_bytes(b"mine")
    place.prepare(place.channel("s3://data/train/"))
    assert place.files() == {"mine": b"mine"}


def test_nothing_is_written_through_the_link_of_an_earlier_version(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local/x").write_bytes(b"x")
    (place.root / "input/data").mkdir(parents=True)
    (place.root / "input/data/train").symlink_to(tmp_path / "local")
    place.prepare(place.channel("s3://data/ten/"))
    assert len(place.files()) == 10
    assert os.listdir(tmp_path / "local") == ["x"]


def interrupted(place: Place, server: Server) -> Channel:
    """Return a channel whose download was stopped in the middle."""
    for i in range(400):
        server.put(f"s3://many/{place.root.parent.name}/d{i % 7}/{i:03}", b"%03d" % i * 500)
    channel = place.channel(f"s3://many/{place.root.parent.name}/")

    def is_begun() -> bool:
        return sum(not name.endswith(".part") for name in _names(Path(channel.path))) > 20

    with pytest.raises(DataError):
        place.prepare(channel, stopped=is_begun)
    return channel


def test_an_interrupted_download_is_not_taken_for_data_and_goes_on(
    place: Place, server: Server
) -> None:
    channel = interrupted(place, server)
    begun = {path: os.stat(f"{channel.path}/{path}").st_ino for path in place.files()}
    assert channels.UNFINISHED in begun and 1 < len(begun) < 400
    stray = Path(channel.path) / "d0" / "000.sm-runtime.part"
    stray.write_bytes(b"half")
    place.prepare(channel)
    files = place.files()
    assert len(files) == 400
    assert all(content == name[-3:].encode() * 500 for name, content in files.items())
    kept = {path for path, inode in begun.items() if path in files}
    assert all(os.stat(f"{channel.path}/{path}").st_ino == begun[path] for path in kept)
    assert kept == begun.keys() - {channels.UNFINISHED}


def test_an_interrupted_download_of_other_content_begins_anew(place: Place, server: Server) -> None:
    channel = interrupted(place, server)
    assert channel.source is not None
    server.put(f"{channel.source.uri}d0/000", b"xyz" * 500)  # as long as before
    (server.folder / channel.source.uri[5:] / "d1/001").unlink()
    place.prepare(channel)
    files = place.files()
    assert len(files) == 399 and files["d0/000"] == b"xyz" * 500


KILLED = f"""
import sys
sys.path.append({str(Path(__file__).parents[2])!r})
from pathlib import Path
from sm_runtime import channels
from tests.parts.test_channels_s3 import Place
place = Place(Path(sys.argv[1]), None)
place.environ["S3_ENDPOINT_URL"] = sys.argv[2]
print("ready", flush=True)
place.prepare(place.channel("s3://kill/"))
"""


def test_a_download_that_is_killed_leaves_no_partial_file(place: Place, server: Server) -> None:
    # The server looks at the whole folder of an object at each request.
    content = {f"{i % 60:02}/{i:04}": b"%04d" % i * 5000 for i in range(1500)}
    for name, data in content.items():
        server.put(f"s3://kill/{name}", data)
    folder = place.root / "input/data/train"
    command = (sys.executable, "-c", KILLED, str(place.root), server.url)
    with subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE) as process:
        eventually(lambda: len(_names(folder)) > 50, "some files", 60)
        process.send_signal(signal.SIGKILL)
    names = set(_names(folder))
    assert channels.UNFINISHED in names
    whole = names & content.keys()
    assert 0 < len(whole) < 1500
    assert {(folder / name).stat().st_size for name in whole} == {20_000}
    assert all(name.endswith(".part") for name in names - whole - {channels.UNFINISHED})
    place.prepare(place.channel("s3://kill/"))
    assert place.files() == content


def _names(folder: Path) -> list[str]:
    """Return the paths of all files below a folder; it may be changing."""
    return [os.path.relpath(f"{at}/{n}", folder) for at, _, names in os.walk(folder) for n in names]


SELECTIONS = {
    "a shard": ("", {"distribution": "ShardedByS3Key"}, {"a": b"a", "d/e": b"e"}),
    "one file": ("/a", {}, {"a": b"a"}),
    "a manifest": (".manifest", {"data_type": "ManifestFile"}, {"d/e": b"e"}),
}


@pytest.mark.parametrize("case", SELECTIONS)
def test_a_selection_of_local_files_is_copied(tmp_path: Path, case: str) -> None:
    part, settings, expected = SELECTIONS[case]
    place, data = Place(tmp_path / "ml", None), tmp_path / "da ta"
    for name, content in {"a": b"a", "b": b"b", "c": b"c", "d/e": b"e"}.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)
    document = json.dumps([{"prefix": data.as_uri() + "/"}, "d/e"])
    Path(f"{data}.manifest").write_text(document)
    place.prepare(place.channel(f"file://{data}{part}", **settings))
    assert place.files() == expected
    assert not [path for path in place.root.rglob("*") if path.is_symlink()]


def test_a_local_path_inside_a_name_matches_as_a_prefix_does(tmp_path: Path) -> None:
    place = Place(tmp_path / "ml", None)
    for name in ("part-0", "part-1", "else"):
        (tmp_path / name).write_text(name)
    place.prepare(place.channel(f"file://{tmp_path}/part-"))
    assert place.files() == {"part-0": b"part-0", "part-1": b"part-1"}


def test_a_bar_shows_on_a_terminal() -> None:
    terminal = io.StringIO()
    with Progress("downloading train", 100, terminal=terminal) as progress:
        progress.add(50)
    assert "downloading train:" in terminal.getvalue()


def test_a_log_gets_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress("downloading train", 100, every=0.001):
        eventually(lambda: len(caplog.records) > 2, "some lines")
    assert "downloading train: 0 B of 100 B (0 %), 0 B/s, nothing arrives" in caplog.text


@pytest.fixture
def mount_path(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{beside}")


@pytest.mark.usefixtures("mount_path")
@pytest.mark.parametrize("distribution", ["FullyReplicated", "ShardedByS3Key"])
def test_a_fast_file_channel_is_mounted_or_says_what_it_lacks(
    place: Place, distribution: str
) -> None:
    channel = place.channel("s3://data/ten", mode="FastFile", distribution=distribution)
    job = place.job(channel, host=HOSTS[1])
    environ = {**place.environ, "PATH": os.environ["PATH"]}
    with ExitStack() as undo:
        if not can_mount():
            with pytest.raises(DataError, match=r"^channel train: FastFile .* File or Pipe mode$"):
                place.prepare(channel)
        else:
            place.prepare(channel)
            pids = undo.enter_context(channels.mounted(job, environ))
            assert mounts.is_mounted(channel.path)
            wanted = range(10) if distribution == "FullyReplicated" else (1, 4, 7)
            assert place.files() == {str(i): bytes([i]) * i for i in wanted}
            with pytest.raises(OSError, match="Read-only"):
                os.mkdir(f"{channel.path}/new")
            assert processes_with(str(place.root)) == list(pids)
            undo.pop_all().close()
    assert not mounts.is_mounted(channel.path)
    assert not os.path.exists(channel.path)
    assert processes_with(str(place.root)) == []


def _close(descriptor: int) -> None:
    with suppress(OSError):  # nobody is there any more to hear of it
        os.close(descriptor)


@pytest.mark.usefixtures("mount_path")
def test_a_mount_ends_although_something_still_reads(place: Place) -> None:
    channel = place.channel("s3://data/ten", mode="FastFile")
    with ExitStack() as reading:
        if can_mount():
            with channels.mounted(place.job(channel), place.environ):
                reader = os.open(f"{channel.path}/7", os.O_RDONLY)
                reading.callback(_close, reader)
        assert not mounts.is_mounted(channel.path)
    assert not os.path.exists(channel.path)


@pytest.mark.usefixtures("mount_path")
def test_a_mount_that_nobody_serves_any_more_is_replaced(place: Place) -> None:
    channel = place.channel("s3://data/ten", mode="FastFile")
    job = place.job(channel)
    if can_mount():
        with channels.mounted(job, place.environ) as pids:
            os.kill(pids[0], signal.SIGKILL)
            eventually(lambda: not os.path.isdir(channel.path), "a dead mount")
            with channels.mounted(job, place.environ):
                assert len(place.files()) == 10
    assert not mounts.is_mounted(channel.path)
    assert not os.path.exists(channel.path)


@pytest.mark.usefixtures("mount_path")
def test_a_fast_file_channel_without_objects_is_an_error(place: Place) -> None:
    channel = place.channel("s3://data/none", mode="FastFile")
    reason = "matched 0 objects" if can_mount() else "FastFile mode"
    with (
        pytest.raises(DataError, match=f"^channel train: .*{reason}"),
        channels.mounted(place.job(channel), place.environ),
    ):
        raise AssertionError("nothing is there to be mounted")


def test_a_container_that_may_not_mount_says_what_to_allow(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (fastfile.PROGRAM, mounts.HELPERS[0]):
        (tmp_path / name).write_text("#!/bin/sh\necho 'mount failed: not permitted' >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    channel = place.channel("s3://data/ten", mode="FastFile")
    with (
        pytest.raises(DataError) as caught,
        channels.mounted(place.job(channel), place.environ),
    ):
        raise AssertionError("it cannot be mounted")
    text = str(caught.value)
    assert text.startswith("channel train: FastFile mode cannot mount here")
    assert "--device /dev/fuse --cap-add SYS_ADMIN, or use File or Pipe mode" in text
    assert not os.path.exists(channel.path)
