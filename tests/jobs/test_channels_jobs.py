"""A whole job whose File channels are in a bucket: what goes on at once, and what goes wrong."""

from __future__ import annotations

import gzip
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.buckets import channel, files, request
from tests.faults import Request, proxying
from tests.harness import Base
from tests.httpd import Answers, answering
from tests.jobs.test_install import wheel
from tests.s3 import Server, serving

MIB = 1 << 20
WAIT = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with serving(tmp_path / "buckets") as server:
        yield server


@pytest.fixture
def narrow(base: Base) -> Iterator[Base]:
    """A base folder on a disk of 24 MiB."""
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", base.root), check=True)
    yield base
    subprocess.run(("umount", base.root), check=True)


def test_more_than_there_is_room_for_is_refused_before_the_first_byte(
    narrow: Base, server: Server
) -> None:
    for name in ("a", "b"):
        server.put(f"s3://bucket/{name}/x", os.urandom(20 * MIB))
    with proxying(server.url, lambda _: None) as proxy:
        channels = [channel(name, f"s3://bucket/{name}/") for name in ("a", "b")]
        request(narrow, proxy.url, InputDataConfig=channels)
        result = narrow.script("print('ran')").run()
        assert not [one for one in proxy.requests if one.is_object]
    assert (result.status, result.out) == (1, b"")
    assert narrow.failure().startswith("DataError: channels a, b need")
    assert "free (largest free: " in narrow.failure()


def test_a_disk_that_fills_up_while_files_are_unpacked_leaves_none_half_written(
    narrow: Base, server: Server
) -> None:
    """How much a compressed file holds is not known before."""
    server.put("s3://bucket/d/small.gz", gzip.compress(b"small"))
    server.put("s3://bucket/d/vast.gz", gzip.compress(bytes(40 * MIB)))
    channels = [channel("train", "s3://bucket/d/", CompressionType="Gzip")]
    request(narrow, server.url, InputDataConfig=channels)
    result = narrow.script("print('ran')").run()
    assert (result.status, result.out) == (1, b"")
    assert narrow.failure().startswith("DataError: ")
    assert "s3://bucket/d/vast.gz" in narrow.failure()
    assert "No space left on device" in narrow.failure()
    left = files(narrow.path("input/data/train"))
    assert (
        left.items()
        <= {"small": b"small", ".sm-runtime-download": left.get(".sm-runtime-download")}.items()
    )


@pytest.mark.parametrize("fault", ["gone", "denied", "short"])
def test_an_object_that_cannot_be_had_is_the_reason_of_the_failure(
    base: Base, server: Server, fault: str
) -> None:
    for number in range(20):
        server.put(f"s3://bucket/d/{number:02}", os.urandom(1000))
    with proxying(server.url, lambda r: fault if r.path.endswith("/07") else None) as proxy:
        request(base, proxy.url, InputDataConfig=[channel("train", "s3://bucket/d/")])
        result = base.script("print('ran')").run()
    assert (result.status, result.out) == (1, b"")
    assert "s3://bucket/d/07" in base.failure()
    here = files(base.path("input/data/train"))
    assert "07" not in here
    assert not [name for name in here if name.endswith(".part")]


def test_damaged_connections_cost_less_than_a_fifth_more_bytes(base: Base, server: Server) -> None:
    content = {f"{number:03}": os.urandom(60_000 + number) for number in range(60)}
    content["large"] = os.urandom(20 * MIB)
    for name, data in content.items():
        server.put(f"s3://bucket/d/{name}", data)
    lock, count = threading.Lock(), 0

    def plan(one: Request) -> str | None:
        """Cut every third body, stall one, and be busy for a while."""
        nonlocal count
        if not one.is_object:
            return None
        with lock:
            count += 1
            if count == 10:
                return "stall"
            return "busy" if 20 <= count < 26 else "cut" if count % 3 == 0 else None

    with proxying(server.url, plan) as proxy:
        request(base, proxy.url, InputDataConfig=[channel("train", "s3://bucket/d/")])
        result = base.script("").run(SM_RUNTIME_STALL_SECONDS="1")
        assert {"stall", "busy", "cut"} == set(proxy.faults)
        assert proxy.sent_bytes < 1.2 * sum(map(len, content.values()))
    assert result.status == 0, result.log
    assert files(base.path("input/data/train")) == content


@contextmanager
def index(folder: Path, asked: threading.Event, go: threading.Event) -> Iterator[str]:
    """Serve the wheels of a folder as an index does, the first answer when ``go`` is set."""

    class Handler(Answers):
        def do_GET(self) -> None:
            asked.set()
            go.wait(WAIT)
            name = self.path.rpartition("/")[2]
            links = "".join(f'<a href="/{p.name}">{p.name}</a>' for p in folder.iterdir())
            body = (folder / name).read_bytes() if name else links.encode()
            self.say(body, "application/zip" if name else "text/html")

    with answering(Handler) as url:
        yield f"{url}/simple/"


def test_channels_come_while_code_is_fetched_and_requirements_are_installed(
    base: Base, server: Server, tmp_path: Path
) -> None:
    """Each waits for the other to begin: one after the other would be over only by timeouts."""
    server.put("s3://bucket/d/x", b"data")
    server.put("s3://bucket/e/x", b"data")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "sm-runtime-probe", "1.0")
    installing, downloading = threading.Event(), threading.Event()
    met: list[bool] = []

    def plan(one: Request) -> str | None:
        if one.is_object:
            downloading.set()
            met.append(installing.wait(WAIT))
        return None

    with (
        proxying(server.url, plan) as proxy,
        index(wheels, installing, downloading) as url,
    ):
        channels = [channel(name, f"s3://bucket/{name}/") for name in ("d", "e")]
        request(base, proxy.url, InputDataConfig=channels)
        base.write("code/requirements.txt", "sm-runtime-probe\n")
        result = base.script("import sm_runtime_probe; print('ran')").run(
            PIP_INDEX_URL=url,
            PIP_TARGET=str(tmp_path / "site"),
            PYTHONPATH=str(tmp_path / "site"),
        )
    assert (result.status, result.out.split()[-1]) == (0, b"ran"), result.log
    assert met == [True, True]
