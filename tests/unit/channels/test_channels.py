"""Which object goes to which path, which host gets it, and what is refused before any byte."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from sm_runtime import channels
from sm_runtime.channels import coding, download, folder, objects
from sm_runtime.channels.survey import Spool, Survey, below_prefix, survey
from sm_runtime.job.errors import ConfigError, DataError
from sm_runtime.job.model import Channel, Cluster, InstanceGroup, Job, Paths, Source
from sm_runtime.storage import Blob

HOSTS = ("algo-1", "algo-2", "algo-3")


def blob(key: str, size: int = 1, etag: str | None = "e") -> Blob:
    return Blob(uri=f"s3://b/{key}", key=key, size_bytes=size, etag=etag)


class Bucket:
    """A bucket as a listing shows it: also with keys that no file system can hold."""

    def __init__(self, *blobs: Blob) -> None:
        self.blobs = sorted(blobs, key=lambda each: each.key.encode())

    def __call__(self, uri: str) -> Bucket:
        return self

    def list(self, uri: str, *, stopped: object = None) -> Iterator[Blob]:
        prefix = uri.removeprefix("s3://b/")
        return (each for each in self.blobs if each.key.startswith(prefix))


def bucket(*keys: str) -> Bucket:
    return Bucket(*map(blob, keys))


def train(
    uri: str = "s3://b/train", distribution: str = "FullyReplicated", **source: object
) -> Channel:
    return Channel(
        name="train",
        path="/data/train",
        distribution=distribution,
        source=Source(uri=uri, **source),
    )


def cluster(host: str = "algo-1", hosts: tuple[str, ...] = HOSTS) -> Cluster:
    return Cluster(current_host=host, hosts=hosts)


def look(channel: Channel, where: Bucket, host: str = "algo-1") -> Survey:
    return survey(channel, cluster(host), where, lambda: False)


def placed(channel: Channel, where: Bucket, host: str = "algo-1") -> list[str]:
    return [path.removeprefix("/data/train/") for _, path in look(channel, where, host).wanted()]


LAYOUTS = {
    "a folder": ("p/train", "p/train/a/x", "a/x"),
    "a folder with its slash": ("p/train/", "p/train/a/x", "a/x"),
    "the whole bucket": ("", "p/x", "p/x"),
    "one object": ("p/train.csv", "p/train.csv", "train.csv"),
    "one object at the top": ("train.csv", "train.csv", "train.csv"),
    "inside a name": ("p/part-", "p/part-0", "part-0"),
    "inside the name of a folder": ("p/tr", "p/train/x", "train/x"),
    "another folder that begins so": ("p/train", "p/train2/x", "train2/x"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_file_is_where_the_rest_of_its_key_says(case: str) -> None:
    prefix, key, path = LAYOUTS[case]
    assert below_prefix(key, prefix) == path


UNFIT = {
    "above": ("train/../../x", "leads out of"),
    "absolute": ("train//etc/passwd", "empty part"),
    "a dot": ("train/./x", "empty part or '.'"),
    "a folder with content": ("train/x/", "empty part"),
    "a NUL": ("train/x\0y", "NUL"),
    "too long": ("train/" + "ä" * 130, "more than 255 bytes"),
    "the mark of an unfinished download": ("train/.sm-runtime-download", "unfinished"),
    "a file being written": ("train/x.sm-runtime.part", "unfinished"),
}


@pytest.mark.parametrize("case", UNFIT)
@pytest.mark.parametrize("host", HOSTS)
def test_a_key_that_can_be_no_file_is_refused_by_name_on_every_host(case: str, host: str) -> None:
    key, reason = UNFIT[case]
    sharded = train("s3://b/train/", "ShardedByS3Key")
    with pytest.raises(DataError) as caught:
        look(sharded, bucket("train/a", key), host)
    text = str(caught.value)
    assert text.startswith("channel train: s3://b/train/:")
    assert repr(key) in text and reason in text


def test_folders_that_consoles_make_are_no_files() -> None:
    found = Bucket(blob("train/", 0), blob("train/a/", 0), blob("train/a/x"))
    assert placed(train(), found) == ["a/x"]


CLASHES = {
    "a file that is a folder": (("train/a", "train/a-b", "train/a/x"), "file, and a folder"),
    "a file that is a folder far above": (("train/a", "train/a/b/c/d/x"), "file, and a folder"),
    "one path for two keys": (("train/train2/x", "train2/x"), "the same file, train2/x"),
}


@pytest.mark.parametrize("case", CLASHES)
def test_keys_that_exclude_each_other_are_refused_by_name(case: str) -> None:
    keys, reason = CLASHES[case]
    with pytest.raises(DataError) as caught:
        look(train(), bucket("train/0", *keys, "train/z/y"))
    assert reason in str(caught.value)
    assert repr(keys[0]) in str(caught.value) and repr(keys[-1]) in str(caught.value)


def test_neighbours_do_not_exclude_each_other() -> None:
    keys = ("a", "a-b/x", "a.b", "a0/x", "b/a", "b/a0", "c/d/a", "c/e/a", "c/d2")
    assert sorted(placed(train("s3://b/"), bucket(*keys))) == sorted(keys)


def test_what_a_prefix_matches_besides_its_folder_is_placed_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = bucket("train/a", "train/b", "train.old/a", "train2/a")
    assert sorted(placed(train(), found)) == ["a", "b", "train.old/a", "train2/a"]
    assert "s3://b/train also matches train.old/a and 1 more" in caplog.text
    caplog.clear()
    assert placed(train("s3://b/train/"), found) == ["a", "b"]
    assert placed(train("s3://b/train2"), found) == ["a"]
    assert placed(train("s3://b/train."), found) == ["train.old/a"]
    assert not caplog.text


def test_compressed_files_lose_their_suffix_and_may_not_meet() -> None:
    packed = train(compression="Gzip")
    assert placed(packed, bucket("train/a.csv.gz", "train/b", "train/.gz")) == [".gz", "a.csv", "b"]
    with pytest.raises(DataError, match="the same file, a"):
        look(packed, bucket("train/a", "train/a.gz"))


def test_shards_are_disjoint_complete_even_and_always_the_same() -> None:
    found = bucket(*(f"train/{i}" for i in range(10)), "train2/x")
    sharded = train("s3://b/train/", "ShardedByS3Key")
    shards = [placed(sharded, found, host) for host in HOSTS]
    assert sorted(chain(*shards)) == sorted(map(str, range(10)))
    assert [len(shard) for shard in shards] == [4, 3, 3]
    assert shards == [placed(sharded, found, host) for host in HOSTS]
    assert [placed(train(), found, host) for host in HOSTS] == [placed(train(), found)] * 3


def test_with_fewer_objects_than_hosts_some_get_none() -> None:
    sharded = train("s3://b/train/", "ShardedByS3Key")
    found = [look(sharded, bucket("train/a"), host) for host in HOSTS]
    assert [(each.files, each.matched) for each in found] == [(1, 1), (0, 1), (0, 1)]


def test_a_share_is_of_the_groups_that_receive_the_channel() -> None:
    groups = (
        InstanceGroup(name="gpu", instance_type="g", hosts=("algo-1", "algo-3")),
        InstanceGroup(name="cpu", instance_type="c", hosts=("algo-2",)),
    )
    channel = train("s3://b/train/", "ShardedByS3Key", instance_groups=("gpu",))
    found = {}
    for host, group in (("algo-1", "gpu"), ("algo-2", "cpu"), ("algo-3", "gpu")):
        here = Cluster(current_host=host, hosts=HOSTS, current_group=group, groups=groups)
        if channel.reaches(here):
            found[host] = objects.share(channel, here)
    shares = {name: (part.index, part.count) for name, part in found.items()}
    assert shares == {"algo-1": (0, 2), "algo-3": (1, 2)}


def test_a_spool_gives_back_what_it_was_given() -> None:
    keys = ["a", "a\nb", "\n", "ü/ 😀", "x" * 1000, "sur\udcffrogate", "a=b"]
    blobs = [blob(f"{key}{i}", i, None if i % 7 else "x") for i in range(1000) for key in keys]
    blobs.append(Blob(uri="file:///a%20b", key="/a b", size_bytes=5))
    spool = Spool()
    for each in blobs:
        spool.add(each)
    assert list(spool) == blobs == list(spool)


def test_a_manifest_lists_objects_after_its_prefix() -> None:
    text = json.dumps([{"prefix": "s3://b/p/"}, "x/1", "2"])
    assert objects.manifest_entries(text, "here") == ["s3://b/p/x/1", "s3://b/p/2"]
    assert objects.manifest_prefix(text) == "s3://b/p/"


WRONG_MANIFESTS = {
    "no JSON": ("{", "is no JSON document"),
    "an object": ("{}", "is no manifest"),
    "without a prefix": ('["a"]', "is no manifest"),
    "with an empty prefix": ('[{"prefix": ""}, "a"]', "is no manifest"),
    "of another kind of store": ('[{"prefix": "http://x/"}, "a"]', "'http://x/' must begin"),
    "without keys": ('[{"prefix": "s3://b/"}]', "lists no objects"),
    "with a number": ('[{"prefix": "s3://b/"}, "a", 7]', "element 2 must be a key, not 7"),
}


@pytest.mark.parametrize("case", WRONG_MANIFESTS)
def test_what_is_no_manifest_is_refused(case: str) -> None:
    text, reason = WRONG_MANIFESTS[case]
    with pytest.raises(DataError) as caught:
        objects.manifest_entries(text, "channel train: s3://b/m")
    assert str(caught.value).startswith("channel train: s3://b/m") and reason in str(caught.value)


def test_an_augmented_manifest_gives_attributes_in_the_order_of_their_names() -> None:
    lines = [
        b'{"class": 0, "source-ref": "s3://b/1.jpg", "more": 1}',
        b"",
        '{"source-ref": "s3://b/2.jpg", "class": {"ä": [1, "x"]}}\r'.encode(),
        b'{"class": "text", "source-ref": "s3://b/2.jpg"}',
    ]
    found = list(objects.augmented(lines, ("source-ref", "class"), "here"))
    assert [[each.value for each in example] for example in found] == [
        ["s3://b/1.jpg", "0"],
        ["s3://b/2.jpg", '{"ä": [1, "x"]}'],
        ["s3://b/2.jpg", "text"],
    ]
    assert {tuple(each.is_reference for each in example) for example in found} == {(True, False)}


WRONG_LINES = {
    "no JSON": (b"{", "line 2 is no JSON"),
    "a list": (b"[1]", "line 2 must be an object, not [1]"),
    "an attribute less": (b'{"class": 1}', "line 2 has no attribute 'x-ref', only 'class'"),
    "a reference to nothing": (b'{"x-ref": 5}', "line 2: x-ref must be the URI"),
}


@pytest.mark.parametrize("case", WRONG_LINES)
def test_a_wrong_line_is_named(case: str) -> None:
    line, reason = WRONG_LINES[case]
    with pytest.raises(DataError) as caught:
        list(objects.augmented([b'{"x-ref": "s3://b/k"}', line], ("x-ref",), "m"))
    assert str(caught.value).startswith("m: line 2") and reason.partition(": ")[0] in str(
        caught.value
    )


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_gzip_data_is_unpacked_member_by_member(step: int) -> None:
    parts = [b"one " * 300, b"", b"\0" * 5_000_000 if step > 1 else b"two"]
    packed = b"".join(map(gzip.compress, parts)) + b"\0" * 10
    pieces = [packed[at : at + step] for at in range(0, len(packed), step)]
    found = list(coding.gunzipped(pieces, "x"))
    assert b"".join(found) == b"".join(parts)
    assert max(map(len, found)) <= 1 << 20


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends in the middle"),
        (b"plain text", "is not compressed with gzip"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-4], "ends in the middle"),
        (gzip.compress(b"x" * 1000, mtime=0) + b"junk", "is damaged"),
    ],
)
def test_what_is_no_whole_gzip_data_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"^s3://b/x.*{reason}"):
        list(coding.gunzipped([data] if data else [], "s3://b/x"))


@pytest.mark.parametrize(
    ("done", "rate", "text"),
    [
        (0, 0.0, "c: 0 B of 120.0 GiB (0 %), 0 B/s, nothing arrives"),
        (30 << 30, 1 << 30, "c: 30.0 GiB of 120.0 GiB (25 %), 1.0 GiB/s, 1 min 30 s left"),
        (60 << 30, 4 << 20, "c: 60.0 GiB of 120.0 GiB (50 %), 4.0 MiB/s, 4 h 16 min left"),
        (120 << 30, 5000, "c: 120.0 GiB of 120.0 GiB (100 %), 4.9 KiB/s, nearly done"),
    ],
)
def test_a_line_of_progress_tells_bytes_rate_and_what_is_left(
    done: int, rate: float, text: str
) -> None:
    assert download.line("c", done, 120 << 30, rate) == text


def test_a_lack_of_room_is_told_before_anything_is_done(tmp_path: Path) -> None:
    need = folder.Need(channel="train", folder=f"{tmp_path}/not/there", size_bytes=1 << 60, files=1)
    short = folder.shortage([need])
    assert short and short.needs == (need,)
    assert short.reason.startswith(f"channel train needs 1073741824.0 GiB, {tmp_path} has ")
    assert " free" in short.reason
    small = folder.Need(channel="small", folder=str(tmp_path), size_bytes=1, files=1)
    assert folder.shortage([small]) is None
    short = folder.shortage([small, need])
    assert short and short.reason.startswith("channels small, train need 1073741824.0 GiB, ")


def test_many_small_files_need_room_for_their_blocks(tmp_path: Path) -> None:
    many = folder.Need(channel="train", folder=str(tmp_path), size_bytes=1, files=1 << 50)
    short = folder.shortage([many])
    assert short and f"with the blocks of {1 << 50} files, " in short.reason
    assert " free" in short.reason


REFUSED = {
    "FastFile and a manifest": (
        {"mode": "FastFile"},
        {"data_type": "ManifestFile"},
        "FastFile mode reads S3DataType S3Prefix, not ManifestFile",
    ),
    "FastFile and gzip": (
        {"mode": "FastFile"},
        {"compression": "Gzip"},
        "CompressionType Gzip is not supported in FastFile mode",
    ),
    "an augmented manifest and gzip": (
        {},
        {"data_type": "AugmentedManifestFile", "compression": "Gzip"},
        "CompressionType Gzip is not supported with AugmentedManifestFile",
    ),
    "a group that is not there": (
        {},
        {"instance_groups": ("cpu", "tpu")},
        "InstanceGroupNames: 'tpu' is not one of the instance groups 'cpu'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_mode_does_not_have_is_refused_before_anything_is_done(case: str) -> None:
    channel, source, reason = REFUSED[case]
    group = InstanceGroup(name="cpu", instance_type="c", hosts=HOSTS)
    job = Job(
        paths=Paths("/nonexistent"),
        cluster=Cluster(current_host="algo-1", hosts=HOSTS, groups=(group,)),
        channels=(
            Channel(
                name="train",
                path="/nonexistent/train",
                source=Source(uri="s3://b/x", **source),
                **channel,
            ),
        ),
    )
    with pytest.raises(ConfigError, match=f"^channel train: {reason}"):
        channels.prepare(job, {})
    assert channels.problems(job)[0].startswith(f"channel train: {reason}")
