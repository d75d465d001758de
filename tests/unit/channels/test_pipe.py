"""What an epoch consists of, how it is framed, and how records are read again."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_runtime.channels.coding import Framer
from sm_runtime.channels.fifos import EpochFifo, Ranks
from sm_runtime.channels.objects import Origins
from sm_runtime.channels.pipe import Epochs
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Cluster, Source
from sm_runtime.records import (
    CorruptedError,
    PipeError,
    lines,
    lines_batches,
    masked_checksum,
    open_channel,
    recordio,
    recordio_batches,
    tfrecord,
    tfrecord_batches,
)

HOSTS = ("algo-1", "algo-2", "algo-3")


def epochs(uri: str, host: str, seed: int | None, distribution: str, **source: Any) -> Epochs:
    cluster = Cluster(current_host=host, hosts=HOSTS)
    named = Source(uri=uri, shuffle_seed=seed, **source)
    channel = Channel(name="train", path="/x", mode="Pipe", distribution=distribution, source=named)
    return Epochs(channel, cluster, Origins({}, ""))


def names(of: Epochs, number: int) -> list[str]:
    found = [piece if isinstance(piece, str) else piece.uri for piece in of.pieces(number)]
    return [uri.rpartition("/")[2] for uri in found]


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "data").mkdir()
    for number in range(10):
        (tmp_path / "data" / str(number)).write_text("x")
    return (tmp_path / "data").as_uri() + "/"


@pytest.fixture(params=["S3Prefix", "ManifestFile"])
def source(data: str, tmp_path: Path, request: pytest.FixtureRequest) -> Mapping[str, Any]:
    if request.param == "S3Prefix":
        return {"uri": data}
    (tmp_path / "m").write_text(json.dumps([{"prefix": data}, *map(str, range(10))]))
    return {"uri": (tmp_path / "m").as_uri(), "data_type": "ManifestFile"}


def test_without_a_seed_every_epoch_has_the_order_of_the_keys(source: Mapping[str, Any]) -> None:
    ours = epochs(host="algo-1", seed=None, distribution="FullyReplicated", **source)
    ours.check()
    for number in (0, 1, 5, 0):
        assert names(ours, number) == list("0123456789")


def test_a_seed_gives_each_epoch_an_order_that_all_hosts_draw(source: Mapping[str, Any]) -> None:
    orders = []
    for host in HOSTS:
        ours = epochs(host=host, seed=-7, distribution="FullyReplicated", **source)
        orders.append([names(ours, number) for number in range(20)])
        ours.close()
    assert orders[0] == orders[1] == orders[2]
    assert all(sorted(order) == list("0123456789") for order in orders[0])
    assert len(set(map(tuple, orders[0]))) > 15


@pytest.mark.parametrize("seed", [None, 3])
def test_hosts_share_the_objects(source: Mapping[str, Any], seed: int | None) -> None:
    shares = {host: [] for host in HOSTS}
    for host in HOSTS:
        ours = epochs(host=host, seed=seed, distribution="ShardedByS3Key", **source)
        shares[host] = [names(ours, number) for number in range(20)]
        ours.close()
    for number in range(20):
        parts = [shares[host][number] for host in HOSTS]
        assert sorted(name for part in parts for name in part) == list("0123456789")
        assert sorted(map(len, parts)) == [3, 3, 4]
    moves = {frozenset(part) for part in shares["algo-1"]}
    assert (len(moves) > 10) == (seed is not None), "objects move between hosts when shuffled"


def test_lines_of_an_augmented_manifest_are_shuffled(tmp_path: Path) -> None:
    examples = [json.dumps({"a": number, "b": [number]}) for number in range(50)]
    (tmp_path / "m").write_text("\n".join(examples))
    ours = epochs(
        (tmp_path / "m").as_uri(), "algo-1", 1, "FullyReplicated",
        data_type="AugmentedManifestFile", attribute_names=("b", "a"),
    )  # fmt: skip
    pieces = list(ours.pieces(0))
    ours.close()
    pairs = list(zip(pieces[::2], pieces[1::2], strict=True))
    assert sorted(pairs, key=lambda pair: int(pair[1])) == [
        (b"[%d]" % number, b"%d" % number) for number in range(50)
    ]
    assert pairs != sorted(pairs, key=lambda pair: int(pair[1]))


class Dribble(io.RawIOBase):
    """Gives what it holds in pieces of the sizes that a test names."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data, self._sizes = data, sizes

    def readinto(self, buffer: Any) -> int:
        size = self._sizes.pop() if self._sizes else len(self._data)
        count = min(size, len(self._data), len(buffer))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


def tf(payload: bytes) -> bytes:
    head = len(payload).to_bytes(8, "little")
    # In plain Python the checksum of much data takes long, and nobody looks at it.
    sums = [masked_checksum(data[:100]).to_bytes(4, "little") for data in (head, payload)]
    return head + sums[0] + payload + sums[1]


def rio(payload: bytes, most: int) -> bytes:
    return b"".join(Framer(len(payload), most).frame(memoryview(payload)))


sizes = st.lists(st.integers(1, 60))
payloads = st.lists(st.binary(max_size=50) | st.just(b"x" * 2_000_000), max_size=6)


@settings(max_examples=40)
@given(payloads, sizes)
def test_tfrecords_are_read_in_whatever_pieces_they_come(
    found: list[bytes], cut: list[int]
) -> None:
    data = b"".join(map(tf, found))
    assert list(tfrecord(Dribble(data, list(cut)))) == found
    batches = tfrecord_batches(Dribble(data, list(cut)))
    assert [bytes(record) for batch in batches for record in batch] == found


@settings(max_examples=40)
@given(payloads, sizes, st.sampled_from([1, 7, 30, 2**29 - 1]))
def test_recordio_is_read_as_it_was_framed(found: list[bytes], cut: list[int], most: int) -> None:
    found = [payload[:5000] for payload in found]
    data = b"".join(rio(payload, most) for payload in found)
    assert list(recordio(Dribble(data, list(cut)))) == found
    batches = recordio_batches(Dribble(data, list(cut)))
    assert [bytes(record) for batch in batches for record in batch] == found


@given(st.binary(), sizes)
def test_lines_end_at_newlines_only(data: bytes, cut: list[int]) -> None:
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert list(lines(Dribble(data, list(cut)))) == expected
    assert [line for batch in lines_batches(Dribble(data, list(cut))) for line in batch] == expected


def test_recordio_is_framed_as_the_format_says() -> None:
    assert rio(b"abcde", 99) == bytes.fromhex("0a23d7ce05000000") + b"abcde\0\0\0"
    assert rio(b"", 99) == bytes.fromhex("0a23d7ce00000000")
    assert rio(b"abcde", 2) == b"".join(
        bytes.fromhex("0a23d7ce") + (flag << 29 | len(part)).to_bytes(4, "little") + part
        + bytes(-len(part) % 4)
        for flag, part in ((1, b"ab"), (2, b"cd"), (3, b"e"))
    )  # fmt: skip


def test_the_parts_of_dmlc_files_are_joined_by_the_magic_number() -> None:
    magic = bytes.fromhex("0a23d7ce")
    assert list(recordio(io.BytesIO(rio(b"abcd", 2)), join=magic)) == [b"ab" + magic + b"cd"]


@pytest.mark.parametrize(
    ("read", "data", "reason"),
    [
        (tfrecord, tf(b"one")[:-1], "byte 0: the stream ends inside a TFRecord record"),
        (tfrecord, tf(b"one") + b"x", "byte 19: the stream ends inside"),
        (tfrecord, tf(b"one") + b"x" * 20, "byte 19: CRC check on header failed"),
        (
            lambda s: tfrecord(s, check_data=True),
            tf(b"one")[:-1] + b"x",
            "byte 0: CRC check on data",
        ),
        (recordio, rio(b"one", 99)[:-1], "byte 0: the stream ends inside a RecordIO record"),
        (recordio, rio(b"one", 99) + b"x" * 8, "byte 12: Invalid magic number: 2021161080"),
        (recordio, rio(b"abcd", 2)[:12], "byte 0: the stream ends inside"),
        (recordio, rio(b"abcd", 2)[12:], "byte 0: part 3 of a record is out of order"),
    ],
)
def test_damage_is_told_with_its_position(read: Any, data: bytes, reason: str) -> None:
    with pytest.raises(CorruptedError, match=reason):
        list(read(io.BytesIO(data)))


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "input/data").mkdir(parents=True)
    channels = {"train": {"TrainingInputMode": "Pipe"}, "test": {"TrainingInputMode": "File"}}
    return {
        "SAGEMAKER_BASE_DIR": str(tmp_path),
        "SM_INPUT_DATA_CONFIG": json.dumps(channels),
        "SM_CHANNELS": '["train","test"]',
        "SM_CHANNEL_TEST": "/the/test/folder",
    }


def test_a_channel_that_there_is_not_is_told_at_once(environ: dict[str, str]) -> None:
    with pytest.raises(PipeError, match="no channel 'trian'; the channels are: test, train"):
        open_channel("trian", environ=environ)
    with pytest.raises(PipeError, match=r"'test' is in File mode, not Pipe: .* /the/test/folder"):
        open_channel("test", environ=environ)


def test_the_configuration_file_does_as_well(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "input/config").mkdir()
    config = environ.pop("SM_INPUT_DATA_CONFIG")
    (tmp_path / "input/config/inputdataconfig.json").write_text(config)
    with pytest.raises(PipeError, match="the channels are: test, train"):
        open_channel("trian", environ=environ)


def test_waiting_for_a_fifo_has_an_end(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match=r"train_3 did not appear for 0.01 s"):
        open_channel("train", 3, timeout_seconds=0.01, environ=environ)
    os.mkfifo(tmp_path / "input/data/train_3.rank1")
    with pytest.raises(TimeoutError, match=r"train_3.rank1: no data came for 0.01 s"):
        open_channel("train", 3, rank=1, timeout_seconds=0.01, environ=environ)


def test_an_open_channel_is_a_stream(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "input/data/train_0"
    os.mkfifo(path)
    both = os.open(path, os.O_RDWR)
    os.write(both, b"one\ntwo")
    with open_channel("train", environ=environ) as stream:
        os.close(both)
        assert list(lines(stream)) == [b"one", b"two"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (rio(b"one", 99) + b"x" * 8, "a damaged RecordIO record: Invalid magic number"),
        (tf(b"one") + bytes(20), "a damaged TFRecord record: CRC check on header failed"),
        (tf(b"one")[:-1], "the data ends inside a record"),
    ],
)
def test_damage_in_the_records_of_ranks_is_told(data: bytes, reason: str, tmp_path: Path) -> None:
    channel = Channel(name="train", path=f"{tmp_path}/train", mode="Pipe")
    with contextlib.closing(EpochFifo(channel, 0, ranks=2)) as fifo:
        ranks = Ranks(fifo, fifo.fds[0])
        with pytest.raises(DataError, match=f"^channel train: {reason}"):
            ranks.write([data])
            ranks.end()
