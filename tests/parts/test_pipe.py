"""Pipe channels, read by real processes: whatever a reader does, everything ends."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sm_runtime.channels.pipe import Feeds
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Cluster, Job, Options, Paths, Source
from tests.harness import eventually
from tests.s3 import CREDENTIALS, serving

ENVIRON = {**CREDENTIALS, "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}


class Fed:
    """Pipe channels that are fed, and what was said about their sources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failures: list[str] = []
        self.feeds: Feeds

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        return subprocess.run(
            ("cat", self.path(name)), stdout=subprocess.PIPE, check=True, timeout=60
        ).stdout


def channel(folder: Path, uri: str, name: str = "train", **values: Any) -> Channel:
    fields = {key: values.pop(key) for key in ("distribution", "record_wrapper") if key in values}
    source = Source(uri=uri, **values)
    return Channel(name=name, path=str(folder / name), mode="Pipe", source=source, **fields)


def _threads() -> set[threading.Thread]:
    """Return the threads but those that wait in a library, and what serves those: left behind."""
    left = ("s3", "store", "process_request_thread")
    found = threading.enumerate()
    return {thread for thread in found if not any(name in thread.name for name in left)}


@contextmanager
def fed(
    folder: Path,
    *channels: Channel,
    environ: Mapping[str, str] = ENVIRON,
    ranks: int = 1,
    options: Options | None = None,
) -> Iterator[Fed]:
    before = _threads()
    cluster = Cluster(current_host="algo-1", hosts=("algo-1",))
    job = Job(
        paths=Paths(str(folder)), cluster=cluster, channels=channels, options=options or Options()
    )
    result = Fed(folder)
    result.feeds = Feeds(job, environ, result.failures.append, ranks=ranks)
    result.feeds.start()
    try:
        yield result
    finally:
        try:
            result.feeds.close()
        finally:
            assert not [path for path in folder.iterdir() if path.is_fifo()]
            eventually(lambda: not _threads() - before, "all threads have ended")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "deeper").mkdir(parents=True)
    (tmp_path / "data" / "a").write_bytes(b"one\n" * 1000)
    (tmp_path / "data" / "b").write_bytes(b"")
    (tmp_path / "data" / "deeper" / "c").write_bytes(os.urandom(9_000_001))
    return tmp_path / "data"


def content(data: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file())


def python(text: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen((sys.executable, "-c", text, *arguments), stdout=subprocess.PIPE)


def test_each_epoch_is_all_of_the_data(folder: Path, data: Path) -> None:
    with fed(folder, channel(folder, data.as_uri() + "/")) as job:
        for epoch in range(40):
            assert hashlib.sha256(job.read(f"train_{epoch}")).digest() == (
                hashlib.sha256(content(data)).digest()
            )
            assert not os.path.exists(job.path(f"train_{epoch}")), "an epoch that is over is gone"
            assert os.path.exists(job.path(f"train_{epoch + 1}")), "the next one is there"
    assert job.failures == []


READERS = {
    "reads all": "open(name + '_0', 'rb').read()",
    "reads one byte and closes": "open(name + '_0', 'rb', 0).read(1)",
    "opens and closes": "open(name + '_0', 'rb', 0).close()",
    "reads nothing": "open(name + '_0', 'rb', 0).read(0)",
    "never opens": "pass",
    "opens epochs 0 and 2": "[open(f'{name}_{n}', 'rb').read() for n in (0, 2)]",
    "opens epochs 2, 1 and 0": "[open(f'{name}_{n}', 'rb').read() for n in (2, 1, 0)]",
    "opens two at once": "f, g = (open(f'{name}_{n}', 'rb') for n in (0, 1)); g.read(); f.read()",
    "leaves many early": "[open(f'{name}_{n}', 'rb', 0).read(1) for n in range(100)]",
    "keeps one open": "import os; f = open(name + '_0', 'rb', 0); f.read(1); os._exit(0)",
    "kills itself": "import os; f = open(name + '_0', 'rb', 0); f.read(1); os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("text", READERS.values(), ids=READERS)
def test_everything_ends_whatever_the_reader_does(
    folder: Path, data: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with fed(folder, channel(folder, data.as_uri() + "/")) as job:
        reader = python(f"import sys; name = sys.argv[1]; {text}", job.path("train"))
        assert reader.wait(60) == (-signal.SIGKILL if "kill" in text else 0)
        reader.communicate()
    assert job.failures == []
    assert "WARNING" not in caplog.text


def test_an_early_close_is_told_and_the_next_epoch_is_whole(
    folder: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with fed(folder, channel(folder, data.as_uri() + "/")) as job:
        with open(job.path("train_0"), "rb", buffering=0) as stream:
            stream.read(1)
        eventually(lambda: "epoch 0 was left by its reader" in caplog.text, "a line of the log")
        assert job.read("train_1") == content(data)


def test_the_end_of_the_job_ends_a_reader_that_waits(folder: Path, data: Path) -> None:
    with fed(folder, channel(folder, data.as_uri() + "/")) as job:
        reader = python(
            "import sys; f = open(sys.argv[1], 'rb', 0); f.read(1); print(flush=True)\n"
            "sys.stdin.read(); print(len(f.readall()))",
            job.path("train_0"),
        )
        assert reader.stdout
        reader.stdout.readline()
        reader.kill()
        reader.communicate()


def test_an_epoch_far_ahead_is_fed_to_whoever_makes_its_fifo(folder: Path, data: Path) -> None:
    with fed(folder, channel(folder, data.as_uri() + "/")) as job:
        os.mkfifo(job.path("train_5000"))
        assert job.read("train_5000") == content(data)
        assert job.read("train_5001") == content(data)


def test_what_an_earlier_job_left_is_no_obstacle(folder: Path, data: Path) -> None:
    os.mkfifo(folder / "train_0")
    os.mkfifo(folder / "train_77")
    with fed(folder, channel(folder, data.as_uri() + "/")) as job:
        assert not (folder / "train_77").exists()
        assert job.read("train_0") == content(data)


def test_a_file_in_the_way_is_told(folder: Path, data: Path) -> None:
    (folder / "train_0").write_text("x")
    with pytest.raises(DataError, match=r"channel train: .*/train_0: File exists"):
        fed(folder, channel(folder, data.as_uri() + "/")).__enter__()
    assert (folder / "train_0").read_text() == "x"


def test_a_channel_without_an_object_is_an_error(folder: Path, data: Path) -> None:
    uri = data.as_uri() + "/none"
    with pytest.raises(DataError, match=r"channel train: .*/none matched 0 objects"):
        fed(folder, channel(folder, uri)).__enter__()
    options = Options(allow_empty_channels=True)
    with fed(folder, channel(folder, uri), options=options) as job:
        assert job.read("train_0") == b""


def manifest(path: Path, data: Path, *keys: str) -> str:
    path.write_text(json.dumps([{"prefix": data.as_uri() + "/"}, *keys]))
    return path.as_uri()


def test_a_manifest_gives_its_order(folder: Path, data: Path, tmp_path: Path) -> None:
    uri = manifest(tmp_path / "m", data, "deeper/c", "a", "a")
    with fed(folder, channel(folder, uri, data_type="ManifestFile")) as job:
        a, c = (data / "a").read_bytes(), (data / "deeper/c").read_bytes()
        assert job.read("train_0") == c + a + a


def test_a_source_that_fails_ends_the_data_and_the_job(
    folder: Path, data: Path, tmp_path: Path
) -> None:
    uri = manifest(tmp_path / "m", data, "a", "missing", "a")
    with (
        pytest.raises(DataError, match=r"channel train: .*/data/missing does not exist"),
        fed(folder, channel(folder, uri, data_type="ManifestFile")) as job,
    ):
        assert job.read("train_0") == (data / "a").read_bytes()
        eventually(lambda: job.failures, "the failure is told")
        assert "/data/missing" in job.failures[0]
    assert len(job.failures) == 1


def test_a_channel_that_nobody_opens_reads_no_object(
    folder: Path, data: Path, tmp_path: Path
) -> None:
    uri = manifest(tmp_path / "m", data, "missing")
    with fed(folder, channel(folder, uri, data_type="ManifestFile")) as job:
        pass
    assert job.failures == []


def test_gzip_streams_of_any_number_of_members_are_inflated(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    large = os.urandom(1 << 20) + bytes(20 << 20)
    (source / "1.gz").write_bytes(gzip.compress(b"first") + gzip.compress(b"") + b"\0" * 512)
    (source / "2.gz").write_bytes(gzip.compress(large) + gzip.compress(b"last"))
    (source / "_SUCCESS").write_bytes(b"")
    expected = b"first" + large + b"last"
    with fed(folder, channel(folder, source.as_uri() + "/", compression="Gzip")) as job:
        assert job.read("train_0") == expected
    wrapped = channel(folder, source.as_uri(), compression="Gzip", record_wrapper="RecordIO")
    with fed(folder, wrapped) as job:
        size = len(large) + 4
        header = bytes.fromhex("0a23d7ce")
        assert job.read("train_0") == (
            header + (5).to_bytes(4, "little") + b"first" + bytes(3)
            + header + size.to_bytes(4, "little") + large + b"last" + header + bytes(4)
        )  # fmt: skip


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (gzip.compress(b"x" * 1000, mtime=0)[:-5], "ends in the middle of its gzip data"),
        (b"plain text", "is not compressed with gzip"),
        (gzip.compress(b"one", mtime=0) + b"junk", "is damaged"),
    ],
)
def test_a_damaged_gzip_stream_fails_the_job(
    folder: Path, tmp_path: Path, stored: bytes, reason: str
) -> None:
    (tmp_path / "x.gz").write_bytes(stored)
    uri = (tmp_path / "x.gz").as_uri()
    with (
        pytest.raises(DataError, match=f"x.gz {reason}"),
        fed(folder, channel(folder, uri, compression="Gzip")) as job,
    ):
        job.read("train_0")
        eventually(lambda: job.failures, "the failure is told")


def test_an_augmented_manifest_streams_its_attributes(
    folder: Path, data: Path, tmp_path: Path
) -> None:
    examples = [
        {"source-ref": (data / "a").as_uri(), "class": 7, "unused": None},
        {"class": {"x": "ä"}, "source-ref": (data / "b").as_uri()},
    ]
    text = "\n".join(json.dumps(example) for example in examples) + "\n"
    (tmp_path / "m").write_text(text)
    augmented = channel(
        folder, (tmp_path / "m").as_uri(), data_type="AugmentedManifestFile",
        attribute_names=("source-ref", "class"), record_wrapper="RecordIO",
    )  # fmt: skip
    with fed(folder, augmented) as job:
        from sm_runtime.records import recordio

        with open(job.path("train_0"), "rb", buffering=0) as stream:
            records = list(recordio(stream))
    assert records == [(data / "a").read_bytes(), b"7", b"", '{"x": "ä"}'.encode()]


def test_a_missing_attribute_names_its_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"text": "x"}\n{"other": 1}\n')
    lacking = channel(
        folder, (tmp_path / "m").as_uri(), data_type="AugmentedManifestFile",
        attribute_names=("text",),
    )  # fmt: skip
    with (
        pytest.raises(DataError, match=r"line 2 has no attribute 'text'"),
        fed(folder, lacking) as job,
    ):
        assert job.read("train_0") == b"x"
        eventually(lambda: job.failures, "the failure is told")


LARGE = """
import resource, sys, threading
from sm_runtime.channels.pipe import Feeds
from sm_runtime.job.model import Channel, Cluster, Job, Source
from sm_runtime.job.model import Paths
folder, uri = sys.argv[1:]
source = Channel(name="train", path=folder + "/train", mode="Pipe", source=Source(uri=uri))
job = Job(paths=Paths(folder), cluster=Cluster(current_host="a", hosts=("a",)), channels=(source,))
feeds = Feeds(job, {}, print, memory_bytes=16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
feeds.start()
print("ready", flush=True)
sys.stdin.read()
feeds.close()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_the_read_ahead_is_bounded(folder: Path, tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(600 << 20)
    with subprocess.Popen(
        (sys.executable, "-c", LARGE, folder, (tmp_path / "large").as_uri()),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as feeder:  # fmt: skip
        assert feeder.stdout
        assert feeder.stdout.readline() == b"ready\n"
        counted = subprocess.run(
            f"wc -c < '{folder}/train_0'", shell=True, capture_output=True, check=True
        )
        assert int(counted.stdout) == 600 << 20
        grown_mib = int(feeder.communicate(b"")[0])
    assert grown_mib < 40


def tfrecords(count: int) -> list[bytes]:
    from sm_runtime.records import masked_checksum

    records = []
    for number in range(count):
        head = len(payload := b"%d" % number * (number % 300)).to_bytes(8, "little")
        records.append(head + masked_checksum(head).to_bytes(4, "little") + payload + b"sums")
    return records


def recordios(count: int) -> list[bytes]:
    from sm_runtime.channels.coding import Framer

    # Some of them in several parts.
    texts = [b"%d" % n * (n % 300) for n in range(count)]
    return [b"".join(Framer(len(t), 500).frame(memoryview(t))) for t in texts]


FRAMINGS = {
    "TFRecord": tfrecords,
    "RecordIO": recordios,
    "lines": lambda count: [b"line %d\n" % number for number in range(count)],
}


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("make", FRAMINGS.values(), ids=FRAMINGS)
def test_ranks_get_each_record_once(folder: Path, tmp_path: Path, make: Any, ranks: int) -> None:
    records = make(10_000)
    (tmp_path / "x").write_bytes(b"".join(records))
    options = Options(pipe_per_rank=True)
    source = channel(folder, (tmp_path / "x").as_uri())
    with fed(folder, source, ranks=ranks, options=options) as job:
        for epoch in (0, 3):
            path = job.path(f"train_{epoch}.rank")
            text = "".join(f'cat "{path}{rank}" > {rank} & ' for rank in range(ranks))
            subprocess.run(text + "wait", shell=True, cwd=tmp_path, check=True, timeout=60)
            for rank in range(ranks):
                assert (tmp_path / str(rank)).read_bytes() == b"".join(records[rank::ranks])


def test_a_rank_sees_its_end_before_the_others_have_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\nb\nc")
    options = Options(pipe_per_rank=True)
    with fed(folder, channel(folder, (tmp_path / "x").as_uri()), ranks=4, options=options) as job:
        found = [job.read(f"train_0.rank{rank}") for rank in (1, 3, 2, 0)]
    assert found == [b"b\n", b"", b"c", b"a\n"]


def test_a_rank_that_leaves_does_not_hold_up_the_others(folder: Path, tmp_path: Path) -> None:
    lines = [b"%09d\n" % number for number in range(2_000_000)]
    (tmp_path / "x").write_bytes(b"".join(lines))
    options = Options(pipe_per_rank=True)
    source = channel(folder, (tmp_path / "x").as_uri())
    with fed(folder, source, ranks=2, options=options) as job:
        with open(job.path("train_0.rank1"), "rb", buffering=0) as stream:
            stream.read(1)
        assert job.read("train_0.rank0") == b"".join(lines[::2])


def test_several_ranks_at_one_fifo_are_warned_about(
    folder: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with fed(folder, channel(folder, data.as_uri() + "/"), ranks=4):
        assert "4 processes" in caplog.text
        assert "SM_RUNTIME_PIPE_PER_RANK=1" in caplog.text


def test_objects_of_s3_are_fed_and_a_lost_one_is_named(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "s3") as server:
        environ = {**ENVIRON, "AWS_ENDPOINT_URL_S3": server.url}
        parts = [os.urandom(size) for size in (10, 0, 3_000_000, 100_000, 7)]
        for number, part in enumerate(parts):
            server.put(f"s3://bucket/data/{number}", part)
        with fed(folder, channel(folder, "s3://bucket/data/"), environ=environ) as job:
            assert job.read("train_0") == b"".join(parts)
            assert job.read("train_2") == b"".join(parts)
        server.put("s3://bucket/m", b'[{"prefix": "s3://bucket/data/"}, "0", "lost"]')
        listed = channel(folder, "s3://bucket/m", data_type="ManifestFile")
        with (
            pytest.raises(DataError, match="s3://bucket/data/lost"),
            fed(folder, listed, environ=environ) as job,
        ):
            assert job.read("train_0") == parts[0]
            eventually(lambda: job.failures, "the failure is told")


class Stalling(http.server.BaseHTTPRequestHandler):
    """Lists one object, and never sends it."""

    def do_GET(self) -> None:
        if "list-type" not in self.path:
            self.server.stalled.set()
            self.rfile.read(1)  # until the client goes
            return
        text = (
            b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>x</Key>"
            b"<Size>100</Size></Contents></ListBucketResult>"
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def test_a_source_that_stalls_does_not_hold_up_the_end(folder: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling) as server:
        server.daemon_threads = True
        stalled = server.stalled = threading.Event()
        serve = threading.Thread(target=server.serve_forever)
        serve.start()
        environ = {**ENVIRON, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}"}
        try:
            with fed(folder, channel(folder, "s3://bucket/"), environ=environ) as job:
                reader = subprocess.Popen(("cat", job.path("train_0")), stdout=subprocess.PIPE)
                assert stalled.wait(60)
            assert reader.communicate(timeout=60)[0] == b""
        finally:
            server.shutdown()
            serve.join()
