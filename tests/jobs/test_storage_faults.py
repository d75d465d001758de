"""What networks and stores do to a download, and what becomes of it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sm_runtime.job.errors import DataError
from sm_runtime.storage import Blob, Origin, open_origin
from tests.faults import Plan, Proxy, Request, always, every, first, proxying
from tests.harness import eventually
from tests.s3 import CREDENTIALS, Server, serving

SMALL = {f"d/{number:02d}": os.urandom(10_000 + number) for number in range(40)}
LARGE = os.urandom(30 << 20)


@dataclass
class Told:
    """Adds up what ``progress`` is told."""

    total: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, count: int) -> None:
        with self.lock:
            self.total += count


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "buckets") as found:
        for key, content in SMALL.items():
            found.put(f"s3://b/{key}", content)
        found.put("s3://b/large", LARGE)
        yield found


def origin_at(url: str, **more: str) -> Origin:
    environ = {**CREDENTIALS, "S3_ENDPOINT_URL": url, "HOME": "/nonexistent", **more}
    return open_origin("s3://b", environ, "eu-west-1", stall_seconds=1)


def blobs(prefix: str) -> list[Blob]:
    found = {**SMALL, "large": LARGE}
    return [
        Blob(uri=f"s3://b/{key}", key=key, size_bytes=len(content))
        for key, content in found.items()
        if key.startswith(prefix)
    ]


def fetched(server: Server, plan: Plan, prefix: str, target: Path) -> tuple[Proxy, int]:
    """Download what has a prefix through a proxy and compare it; return what was told as well."""
    told = Told()
    with proxying(server.url, plan) as proxy:
        origin = origin_at(proxy.url)
        origin.fetch(((blob, str(target / blob.key)) for blob in blobs(prefix)), progress=told)
        origin.close()
    for blob in blobs(prefix):
        content = (target / blob.key).read_bytes()
        expected = SMALL.get(blob.key, LARGE)
        assert hashlib.sha256(content).digest() == hashlib.sha256(expected).digest(), blob.key
    assert not list(target.rglob("*.part"))
    return proxy, told.total


def refused(server: Server, plan: Plan, prefix: str, target: Path, **more: str) -> str:
    """Return why a download failed; nothing of the object that it names is there."""
    with proxying(server.url, plan) as proxy:
        origin = origin_at(proxy.url, **more)
        with pytest.raises(DataError) as caught:
            origin.fetch((blob, str(target / blob.key)) for blob in blobs(prefix))
        origin.close()
    assert not list(target.rglob("*.part"))
    for blob in blobs(prefix):
        if (target / blob.key).exists():
            assert (target / blob.key).read_bytes() == SMALL.get(blob.key, LARGE)
    return str(caught.value)


# --- what is overcome


@pytest.mark.parametrize("prefix", ["d/", "large"])
@pytest.mark.parametrize(
    ("make", "number", "fault"),
    [
        (every, 3, "cut"),
        (first, 1, "stall"),
        (first, 1, "mute"),
        (first, 6, "busy"),
        (first, 2, "broken"),
        (first, 3, "slow"),
    ],
)
def test_data_arrives_intact_with_few_bytes_fetched_twice(
    server: Server,
    tmp_path: Path,
    make: Callable[[int, str], Plan],
    number: int,
    fault: str,
    prefix: str,
) -> None:
    proxy, told = fetched(server, make(number, fault), prefix, tmp_path / "out")
    wanted = sum(blob.size_bytes for blob in blobs(prefix))
    assert proxy.faults
    assert told == wanted
    assert wanted <= proxy.sent_bytes < 1.2 * wanted


def test_a_store_that_knows_no_ranges_sends_a_large_object_once(
    server: Server, tmp_path: Path
) -> None:
    proxy, told = fetched(server, always("whole"), "large", tmp_path / "out")
    assert told == len(LARGE)
    # Ranges that were asked for at the same time are given up, with what is on its way.
    assert proxy.sent_bytes < 1.5 * len(LARGE)


@pytest.mark.parametrize("answer", ["elsewhere", "constrained"])
def test_a_bucket_in_another_region_is_followed(
    server: Server, tmp_path: Path, answer: str
) -> None:
    proxy, _ = fetched(
        server,
        lambda r: None if "/eu-central-1/" in r.headers["authorization"] else answer,
        "d/",
        tmp_path / "out",
    )
    last = proxy.requests[-1]
    assert "/eu-central-1/s3/" in last.headers["authorization"]


def test_credentials_that_expire_are_renewed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile whose file is written anew meanwhile, as tools for single sign-on do it."""
    profile = tmp_path / "credentials"

    def write(access: str) -> None:
        secret = CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
        profile.write_text(
            f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n"
        )

    write("old-access-key")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    with proxying(
        server.url, lambda r: "expired" if "old-access-key" in r.headers["authorization"] else None
    ) as proxy:
        origin = open_origin("s3://b", {"AWS_ENDPOINT_URL": proxy.url}, "eu-west-1")
        with pytest.raises(DataError, match="s3://b/d/00 cannot be downloaded: ExpiredToken"):
            origin.fetch([(blobs("d/00")[0], str(tmp_path / "out"))])
        write(CREDENTIALS["AWS_ACCESS_KEY_ID"])
        origin.fetch([(blobs("d/00")[0], str(tmp_path / "out"))])
        origin.close()
    assert (tmp_path / "out").read_bytes() == SMALL["d/00"]


def test_credentials_that_expire_in_the_middle_are_renewed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "credentials"
    secret = CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
    text = f"[default]\naws_access_key_id = {{}}\naws_secret_access_key = {secret}\n"
    text += "aws_session_token = {}\n"
    profile.write_text(text.format(CREDENTIALS["AWS_ACCESS_KEY_ID"], "old"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    lock, answered = threading.Lock(), 0

    def plan(request: Request) -> str | None:
        """The old token is good for 10 objects; by then a new one is there."""
        nonlocal answered
        if request.headers.get("x-amz-security-token") != "old" or not request.is_object:
            return None
        with lock:
            answered += 1
            if answered == 10:
                profile.write_text(text.format(CREDENTIALS["AWS_ACCESS_KEY_ID"], "new"))
            return "expired" if answered > 10 else None

    with proxying(server.url, plan) as proxy:
        origin = open_origin("s3://b", {"AWS_ENDPOINT_URL": proxy.url}, "eu-west-1")
        origin.fetch((blob, str(tmp_path / "out" / blob.key)) for blob in blobs("d/"))
        origin.close()
        assert proxy.seen("expired")
        assert proxy.sent_bytes < 1.2 * sum(map(len, SMALL.values()))
    assert {key: (tmp_path / "out" / key).read_bytes() for key in SMALL} == SMALL


# --- what ends it


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (
            always("short", only="05"),
            "d/05 cannot be downloaded: it has 5002 bytes now, 10005 were",
        ),
        (always("gone", only="05"), "d/05 does not exist"),
        (always("denied", only="05"), "d/05 cannot be downloaded: access is denied"),
        (always("expired", only="05"), "d/05 cannot be downloaded: ExpiredToken"),
        (always("busy", only="05"), "d/05 cannot be downloaded: SlowDown: of a test (3 attempts)"),
        (
            always("mute", only="05"),
            "d/05 cannot be downloaded: nothing moved for 1 s (3 attempts)",
        ),
    ],
)
def test_a_download_that_cannot_be_completed_names_the_object(
    server: Server, tmp_path: Path, plan: Plan, why: str
) -> None:
    assert why in refused(server, plan, "d/", tmp_path / "out", AWS_MAX_ATTEMPTS="3")


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("changed", "s3://b/large cannot be downloaded: it has changed meanwhile"),
        ("gone", "s3://b/large does not exist"),
    ],
)
def test_an_object_that_changes_between_its_parts(
    server: Server, tmp_path: Path, fault: str, why: str
) -> None:
    def plan(request: Request) -> str | None:
        return fault if "bytes=16777216-" in request.headers.get("range", "") else None

    assert refused(server, plan, "large", tmp_path / "out") == why
    assert not (tmp_path / "out/large").exists()


def read(origin: Origin, blob: Blob, *part: int) -> bytes:
    """Return an object, or a range of it, read in order as a pipe is fed."""
    view, found = memoryview(bytearray(1 << 16)), bytearray()
    with origin.open(blob, *part) as body:
        while count := body.readinto(view):
            found += view[:count]
    return bytes(found)


def test_what_is_left_of_an_object_is_asked_for_in_the_same_version_only(server: Server) -> None:
    """A connection is cut, and the object is another one when it is asked for the rest."""
    faults = {1: "cut", 2: "changed"}
    with proxying(server.url, lambda r: faults.get(r.number) if r.is_object else None) as proxy:
        origin = origin_at(proxy.url)
        with pytest.raises(DataError, match="s3://b/d/05 cannot be downloaded: the connection"):
            read(origin, blobs("d/05")[0])
        origin.close()
    _, second = (r.headers for r in proxy.requests if r.is_object)
    half = len(SMALL["d/05"]) // 2
    assert second["range"] == f"bytes={half}-{len(SMALL['d/05']) - 1}"


def test_ranges_that_are_read_one_by_one_are_of_the_same_version(server: Server) -> None:
    (blob,) = blobs("large")
    with proxying(server.url, lambda r: "changed" if r.number == 3 else None) as proxy:
        origin = origin_at(proxy.url)
        assert read(origin, blob, 0, 1000) == LARGE[:1000]
        assert read(origin, blob, 1000, 1000) == LARGE[1000:2000]
        with pytest.raises(DataError, match="s3://b/large cannot be downloaded: it has changed"):
            read(origin, blob, 2000, 1000)
        # Who lists it anew takes it for what it is then.
        listed = Blob(uri=blob.uri, key=blob.key, size_bytes=blob.size_bytes, etag="another")
        assert read(origin, listed, 2000, 1000) == LARGE[2000:3000]
        origin.close()
    asked = [request.headers for request in proxy.requests if request.is_object]
    assert ["if-match" in headers for headers in asked] == [False, True, True, False]


def test_no_object_costs_the_whole_job_an_endless_time(server: Server, tmp_path: Path) -> None:
    """A store that always closes half-way makes progress, but not for ever."""
    why = refused(server, always("cut", only="d/05"), "d/05", tmp_path / "out")
    assert "s3://b/d/05 cannot be downloaded: the connection was closed" in why


def test_a_stop_is_obeyed_while_nothing_comes(server: Server, tmp_path: Path) -> None:
    asked = threading.Event()
    with proxying(server.url, always("mute")) as proxy:
        origin = open_origin("s3://b", {**CREDENTIALS, "S3_ENDPOINT_URL": proxy.url}, "eu-west-1")
        errors: list[BaseException] = []

        def fetch() -> None:
            try:
                wanted = [(blob, str(tmp_path / blob.key)) for blob in blobs("d/")]
                origin.fetch(wanted, stopped=asked.is_set)
            except DataError as error:
                errors.append(error)

        thread = threading.Thread(target=fetch)
        thread.start()
        eventually(lambda: proxy.seen("mute") > 3, "requests")
        asked.set()
        thread.join(20)
        origin.close()
    assert "a stop was asked for" in str(errors[0])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- disks, and the end of the process

CHILD = """
import sys
from sm_runtime.storage import Blob, open_origin
url, target, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
environ = {"AWS_ACCESS_KEY_ID": "testing-access-key",
           "AWS_SECRET_ACCESS_KEY": "testing-secret-key", "S3_ENDPOINT_URL": url}
origin = open_origin("s3://b", environ, "eu-west-1")
origin.fetch([(Blob(uri="s3://b/large", key="large", size_bytes=size), target)])
"""


def child(url: str, target: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    command = (*prefix, sys.executable, "-c", CHILD, url, str(target), str(len(LARGE)))
    return subprocess.Popen(command, cwd="/", stderr=subprocess.PIPE)


def test_a_kill_leaves_no_final_name_and_the_next_attempt_completes_it(
    server: Server, tmp_path: Path
) -> None:
    target = tmp_path / "out" / "large"
    with proxying(server.url, every(3, "stall")) as proxy:
        with child(proxy.url, target) as process:
            eventually(lambda: proxy.sent_bytes > len(LARGE) // 2, "half of it")
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert [path.name for path in target.parent.iterdir()] == ["large.sm-runtime.part"]
    with child(server.url, target) as process:
        assert process.wait(60) == 0
    assert target.read_bytes() == LARGE
    assert [path.name for path in target.parent.iterdir()] == ["large"]


def test_a_file_system_that_is_full(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "out" / "large"
    with child(server.url, target, ("prlimit", f"--fsize={9 << 20}")) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"s3://b/large cannot be written to {target}: File too large" in said.decode()
    assert not list(target.parent.iterdir())


def test_a_disk_that_is_full(server: Server, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", disk], check=True)
    try:
        why = refused(server, lambda _: None, "large", disk)
        assert f"s3://b/large cannot be written to {disk}/large: No space left on device" in why
        assert f"({len(LARGE)} bytes needed, " in why
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)
