"""A whole job whose channels are streamed from a bucket, or from a folder, into its script."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import channel, request
from tests.faults import Plan, Request, proxying
from tests.harness import Base, processes_with
from tests.s3 import Server, serving

# Reads epochs of `train` and prints the digest of each.
READ = """
import hashlib, os, signal, sys
base = os.environ["SAGEMAKER_BASE_DIR"]
def read(epoch, name="train"):
    with open(f"{base}/input/data/{name}_{epoch}", "rb") as pipe:
        return pipe.read()
def digest(data):
    print(hashlib.sha256(data).hexdigest(), flush=True)
"""
LARGE = os.urandom(20 << 20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with serving(tmp_path / "buckets") as server:
        yield server


def piped(base: Base, url: str, uri: str, data_type: str = "S3Prefix", **more: Any) -> None:
    channels = [channel("train", uri, data_type, InputMode="Pipe", **more)]
    request(base, url, InputDataConfig=channels)


def digests(*contents: bytes) -> list[str]:
    return [hashlib.sha256(content).hexdigest() for content in contents]


@pytest.mark.parametrize("scheme", ["s3", "file"])
def test_each_epoch_is_all_of_the_data(base: Base, server: Server, scheme: str) -> None:
    parts = {f"s3://bucket/d/{i}": os.urandom(3 << i) for i in range(18)}
    for uri, content in parts.items():
        server.put(uri, content)
    uri = "s3://bucket/d/" if scheme == "s3" else (server.folder / "bucket/d").as_uri()
    piped(base, server.url, uri)
    result = base.script(READ + "for epoch in (0, 1, 5): digest(read(epoch))").run()
    assert result.status == 0, result.log
    whole = b"".join(content for _, content in sorted(parts.items()))
    assert result.out.decode().split() == digests(whole) * 3
    assert os.listdir(base.path("input/data")) == []
    assert processes_with(str(base.root)) == []


def failing(
    base: Base, server: Server, plan: Plan, uri: str, data_type: str = "S3Prefix", **environ: str
) -> list[str]:
    """Run a job whose source fails; return what its script, which will not be stopped, has read."""
    script = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "data = read(0)\nprint(len(data))\ndigest(data)\nprint('end')\n"
    )
    with proxying(server.url, plan) as proxy:
        piped(base, proxy.url, uri, data_type)
        result = base.script(READ + script).run(**environ)
    assert result.status == 1, result.log
    assert processes_with(str(base.root)) == []
    assert os.listdir(base.path("input/data")) == []
    assert not base.path("output/success").exists()
    return result.out.decode().split()


def test_a_source_that_fails_ends_the_data_and_the_job_names_the_object(
    base: Base, server: Server
) -> None:
    server.put("s3://bucket/d/0", b"zero")
    entries = [{"prefix": "s3://bucket/d/"}, "0", "lost"]
    server.put("s3://bucket/manifest", json.dumps(entries).encode())
    read = failing(base, server, lambda _: None, "s3://bucket/manifest", "ManifestFile")
    assert read == ["4", *digests(b"zero"), "end"]
    assert base.failure().startswith("DataError: channel train: s3://bucket/d/lost does not exist")


def test_a_script_that_obeys_is_stopped_and_the_object_is_the_reason(
    base: Base, server: Server
) -> None:
    for name in ("0", "1"):
        server.put(f"s3://bucket/d/{name}", name.encode())
    with proxying(server.url, lambda r: "denied" if r.path == "/bucket/d/1" else None) as proxy:
        piped(base, proxy.url, "s3://bucket/d/")
        wait = "print(read(0))\nwhile True: signal.pause()"
        result = base.script(READ + wait).run()
    assert result.status in (1, 143), result.log
    assert base.failure().startswith("DataError: channel train: s3://bucket/d/1 cannot be")


def test_an_object_that_is_replaced_while_it_is_read_is_named(base: Base, server: Server) -> None:
    """Its ranges are asked for each by itself: those of two versions are never mixed."""
    server.put("s3://bucket/d/large", LARGE)

    def plan(one: Request) -> str | None:
        return "changed" if one.is_object and one.number >= 4 else None

    read = failing(base, server, plan, "s3://bucket/d/")
    assert "s3://bucket/d/large cannot be downloaded: it has changed meanwhile" in base.failure()
    count = int(read[0])
    assert read[1:] == [*digests(LARGE[:count]), "end"]


def test_a_file_that_is_replaced_while_it_is_read_is_named(base: Base, server: Server) -> None:
    """Both are looked up at once, but the first one is more than is read ahead."""
    folder = server.folder / "bucket/d"
    folder.mkdir()
    manifest = folder / "../manifest"
    manifest.write_text(json.dumps([{"prefix": folder.as_uri() + "/"}, "0", "1"]))
    (folder / "0").write_bytes(bytes(100 << 20))
    (folder / "1").write_bytes(b"old")
    piped(base, server.url, manifest.resolve().as_uri(), "ManifestFile")
    script = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pipe = open(base + '/input/data/train_0', 'rb')\npipe.read(1)\n"
        f"os.replace({str(folder / '../new')!r}, {str(folder / '1')!r})\n"
        "print(len(pipe.read()))\n"
    )
    (folder / "../new").write_bytes(b"new")
    result = base.script(READ + script).run()
    assert result.status == 1
    assert result.out == b"%d\n" % ((100 << 20) - 1)
    assert f"{(folder / '1').as_uri()} cannot be read: it has changed" in base.failure()


def test_the_store_is_asked_for_more_while_the_script_computes(
    base: Base, server: Server, tmp_path: Path
) -> None:
    """Of what the script has not read yet, a FIFO alone would hold one object."""
    parts = [os.urandom(64 << 10) for _ in range(40)]
    for number, content in enumerate(parts):
        server.put(f"s3://bucket/d/{number:02}", content)
    asked: set[str] = set()

    def plan(one: Request) -> None:
        if one.is_object:
            asked.add(one.path)
            if len(asked) == len(parts):
                (tmp_path / "all").touch()

    with proxying(server.url, plan) as proxy:
        piped(base, proxy.url, "s3://bucket/d/")
        script = (
            "import time\npipe = open(base + '/input/data/train_0', 'rb')\nfirst = pipe.read(1)\n"
            f"while not os.path.exists({str(tmp_path / 'all')!r}): time.sleep(0.05)\n"
            "digest(first + pipe.read())\n"
        )
        result = base.script(READ + script).run(seconds=50)
    assert (result.status, result.out.decode().split()) == (0, digests(b"".join(parts)))


def test_a_stalled_connection_is_given_up_as_soon_as_the_job_wants(
    base: Base, server: Server
) -> None:
    """The proxy stalls for 60 s."""
    server.put("s3://bucket/d/large", LARGE)
    with proxying(server.url, lambda r: "stall" if r.is_object and r.number < 3 else None) as proxy:
        piped(base, proxy.url, "s3://bucket/d/")
        result = base.script(READ + "digest(read(0))").run(seconds=50, SM_RUNTIME_STALL_SECONDS="1")
        assert proxy.seen("stall") == 2
        assert proxy.sent_bytes < 1.2 * len(LARGE)
    assert (result.status, result.out.decode().split()) == (0, digests(LARGE)), result.log


@pytest.mark.parametrize(
    "reader",
    {
        "reads one byte": "open(base + '/input/data/train_0', 'rb').read(1)",
        "never opens": "pass",
        "skips an epoch": "digest(read(0)); digest(read(2))",
        "is killed": "open(base + '/input/data/train_0', 'rb').read(1); os.kill(os.getpid(), 9)",
        "reads beside": "a, b = (open(f'{base}/input/data/train_{n}', 'rb') for n in (0, 1));"
        " digest(b.read()); digest(a.read())",
    }.values(),
)
def test_the_job_ends_with_its_script_whatever_was_read(
    base: Base, server: Server, reader: str
) -> None:
    server.put("s3://bucket/d/large", LARGE)
    piped(base, server.url, "s3://bucket/d/")
    result = base.script(READ + reader).run(seconds=30)
    assert result.status == (128 + signal.SIGKILL if "kill" in reader else 0), result.log
    assert set(result.out.decode().split()) <= set(digests(LARGE))
    assert os.listdir(base.path("input/data")) == []
    assert processes_with(str(base.root)) == []


RANKS = """
import subprocess, sys
ranks = [subprocess.Popen((sys.executable, sys.argv[2], str(n))) for n in range(int(sys.argv[1]))]
sys.exit(max(rank.wait() for rank in ranks))
"""
RANK = """
import sys
from sm_runtime.records import lines, open_channel
rank = int(sys.argv[1])
for epoch in range(2):
    with open_channel("train", epoch, rank=rank) as stream:
        found = b",".join(lines(stream)).decode()
    sys.stdout.write(f"{epoch} {found}\\n")
    sys.stdout.flush()
"""


def test_the_processes_of_a_host_share_the_records_of_an_epoch(base: Base, server: Server) -> None:
    """What starts them need not be mpirun."""
    server.put("s3://bucket/d/0", b"".join(b"%d\n" % number for number in range(500)))
    server.put("s3://bucket/d/1", b"".join(b"%d\n" % number for number in range(500, 1002)))
    piped(base, server.url, "s3://bucket/d/")
    base.hyperparameters(sagemaker_mpi_num_of_processes_per_host="4")
    base.write("ranks.py", RANKS)
    words = ["{python}", str(base.path("ranks.py")), "{processes_per_host}", "{script}"]
    result = base.script(RANK).run(
        SM_RUNTIME_PIPE_PER_RANK="1",
        SM_RUNTIME_LAUNCHER=json.dumps(words),
    )
    assert result.status == 0, result.log
    said = [line.split() for line in result.out.decode().splitlines() if "," in line]
    for epoch in ("0", "1"):
        shares = [found.split(",") for number, found in said if number == epoch]
        assert sorted(map(len, shares)) == [250, 250, 251, 251]
        assert sorted(int(one) for share in shares for one in share) == list(range(1002))
    assert "SM_RUNTIME_PIPE_PER_RANK" not in result.log


def test_processes_that_would_share_a_fifo_are_warned_about(base: Base, server: Server) -> None:
    server.put("s3://bucket/d/0", b"x\n")
    piped(base, server.url, "s3://bucket/d/")
    base.hyperparameters(sagemaker_mpi_num_of_processes_per_host="4")
    words = json.dumps(["{python}", "{script}"])
    result = base.script("").run(SM_RUNTIME_LAUNCHER=words)
    assert result.status == 0, result.log
    assert "SM_RUNTIME_PIPE_PER_RANK=1 gives each its own" in result.log


EPOCHS = """
from sm_runtime.pipe_mode.records import read_records
for epoch in range(20):
    assert list(read_records("train", "TextLine", timeout_seconds=5)) == [b"one", b"two"]
"""


def local(base: Base, **more: Any) -> Base:
    """Describe a job by a request alone, with a folder that is streamed."""
    base.write("source/part", "one\ntwo\n")
    document = {
        "TrainingJobName": "job",
        "InputDataConfig": [
            channel("train", base.path("source").as_uri() + "/", InputMode="Pipe"),
        ],
    }
    base.write("input/config/job.json", {**document, **more})
    return base


def test_each_attempt_on_a_folder_begins_at_epoch_0(base: Base) -> None:
    local(base).script(EPOCHS)
    state = base.path("pipe_state/.train-pipe_mode-state")
    other = base.write("pipe_state/.other-pipe_mode-state", "7")
    for _ in range(3):
        result = base.run()
        assert result.status == 0, result.log
        assert state.read_text() == "20"
    assert other.read_text() == "7"


def test_processes_of_a_job_take_epochs_from_one_count(base: Base) -> None:
    text = EPOCHS.replace("20", "5")
    script = f"import os\nfor _ in range(3):\n    if not os.fork(): break\n{text}"
    script += (
        "while True:\n    try:\n        os.wait()\n    except ChildProcessError:\n        break\n"
    )
    result = local(base).script(script).run()
    assert result.status == 0, result.log
    assert base.path("pipe_state/.train-pipe_mode-state").read_text() == "20"


def test_a_count_that_stays_is_warned_about(base: Base) -> None:
    state = local(base).path("pipe_state/.train-pipe_mode-state")
    state.mkdir(parents=True)
    result = base.script("").run()
    assert result.status == 0, result.log
    assert f"channel train: readers do not begin at epoch 0: {state}: " in result.log


def test_a_relative_base_folder_is_the_same_one_for_the_script(base: Base) -> None:
    relative = str(base.root).lstrip("/")  # the command runs in /
    result = local(base).script(EPOCHS).run(SAGEMAKER_BASE_DIR=relative)
    assert result.status == 0, result.log
    assert base.path("pipe_state/.train-pipe_mode-state").read_text() == "20"
