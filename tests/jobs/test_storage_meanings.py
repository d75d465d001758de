"""What S3 means by keys, who pays, whose keys encrypt, and credentials that end: with moto."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from sm_runtime.job.errors import DataError
from sm_runtime.storage import Blob, Origin, open_origin, open_store
from sm_runtime.storage.s3 import connection
from tests.faults import Proxy, always, proxying
from tests.harness import eventually
from tests.httpd import Answers, answering
from tests.s3 import CREDENTIALS, Server, free_port, serving, serving_by_rclone

PLAIN = [
    "p/train",
    "p/train-0.csv",
    "p/train/x",
    "p/trainer/z",
    "p/%41 b+c",
    "p/é#?&=\\~:[]{}|^`<>",
]
ODD = ["p/a//b", "p/./x", "p/../y", "p/tab\there", "/p", "p/m/", "p//"]
LARGE = os.urandom((20 << 20) + 3)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The URL of a server of moto's, with a bucket."""
    port = free_port()
    program = str(Path(sys.executable).parent / "moto_server")
    command = (program, "-H", "127.0.0.1", "-p", str(port))
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            client = of_boto3(url)
            eventually(lambda: _is_made(client), "moto", 60)
            for key in (*PLAIN, *ODD):
                client.put_object(Bucket="bucket", Key=key, Body=key.encode())
            client.put_object(Bucket="bucket", Key="large//x", Body=LARGE)
            yield url
        finally:
            process.terminate()


def _is_made(client: Any) -> bool:
    with contextlib.suppress(Exception):
        client.create_bucket(Bucket="bucket")
        return True
    return False


def of_boto3(url: str) -> Any:
    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1",
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip


@pytest.fixture
def origin(moto: str) -> Iterator[Origin]:
    environ = {**CREDENTIALS, "S3_ENDPOINT_URL": moto}
    with contextlib.closing(open_origin("s3://bucket", environ, "us-east-1")) as found:
        yield found


def content(origin: Origin, blob: Blob, *part: int) -> bytes:
    view, found = memoryview(bytearray(100_000)), bytearray()
    with origin.open(blob, *part) as body:
        while count := body.readinto(view):
            found += view[:count]
    return bytes(found)


@pytest.mark.parametrize("prefix", ["", "p/tr", "p/train", "p/train/", "p/m/", "p/a//", "none"])
def test_a_prefix_is_a_string(origin: Origin, prefix: str) -> None:
    found = [blob.key for blob in origin.list(f"s3://bucket/{prefix}")]
    every = sorted([*PLAIN, *ODD, "large//x"], key=str.encode)
    assert found == [key for key in every if key.startswith(prefix)]


@pytest.mark.parametrize("key", [*PLAIN, *ODD])
def test_any_key_is_read(origin: Origin, tmp_path: Path, key: str) -> None:
    blob = origin.stat(f"s3://bucket/{key}")
    assert content(origin, blob) == key.encode()
    assert content(origin, blob, 1, 1) == key.encode()[1:2]
    origin.fetch([(blob, str(tmp_path / "file"))])
    assert (tmp_path / "file").read_bytes() == key.encode()


def test_a_large_object_with_an_odd_key_is_read(origin: Origin, tmp_path: Path) -> None:
    blob = origin.stat("s3://bucket/large//x")
    origin.fetch([(blob, str(tmp_path / "file"))])
    assert (tmp_path / "file").read_bytes() == LARGE
    assert content(origin, blob, 5 << 20, 9 << 20) == LARGE[5 << 20 : 14 << 20]


@pytest.mark.parametrize("prefix", ["out", "out//deep"])
@pytest.mark.parametrize("size", [10, len(LARGE)])
@pytest.mark.parametrize("name", ["plain", "ü %41", "a\ttab"])
def test_any_name_is_written(moto: str, tmp_path: Path, prefix: str, size: int, name: str) -> None:
    (tmp_path / "source").write_bytes(LARGE[:size])
    environ = {**CREDENTIALS, "S3_ENDPOINT_URL": moto}
    store = open_store(f"s3://bucket/{prefix}", environ=environ, region="us-east-1")
    with contextlib.closing(store), open(tmp_path / "source", "rb") as source:
        store.put(name, source.fileno(), size)
        with store.stream(f"{name}.tar") as sink:
            sink.write(LARGE[:size])
        client = of_boto3(moto)
        for key in (name, f"{name}.tar"):
            found = client.get_object(Bucket="bucket", Key=f"{prefix}/{key}")["Body"].read()
            assert found == LARGE[:size]
            store.delete(key)
        assert "Contents" not in client.list_objects_v2(Bucket="bucket", Prefix=prefix)
    assert "Uploads" not in client.list_multipart_uploads(Bucket="bucket")


# --- what is said with a request


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "s3/buckets") as found:
        found.put("s3://b/in/small", b"small")
        found.put("s3://b/in/odd", b"odd")
        yield found


def use(proxy: Proxy, tmp_path: Path, *, kms_key: str | None = None, **more: str) -> None:
    """Read and write small and large objects with these variables."""
    environ = {**CREDENTIALS, "S3_ENDPOINT_URL": proxy.url, **more}
    origin = open_origin("s3://b", environ, "us-east-1")
    store = open_store("s3://b/out", environ=environ, region="us-east-1", kms_key=kms_key)
    with contextlib.closing(origin), contextlib.closing(store):
        for blob in origin.list("s3://b/in/"):
            origin.fetch([(origin.stat(blob.uri), str(tmp_path / "file"))])
        for size in (10, 9 << 20):
            with store.stream(f"of-{size}") as sink:
                sink.write(bytes(size))


def test_the_requester_pays(server: Server, tmp_path: Path) -> None:
    with proxying(server.url, lambda _: None) as proxy:
        use(proxy, tmp_path, AWS_REQUEST_PAYER="requester")
    silent = [r for r in proxy.requests if "x-amz-request-payer" not in r.headers]
    assert {(r.method, r.path) for r in silent} <= {("HEAD", "/b")}


def test_a_key_of_the_customer_encrypts(server: Server, tmp_path: Path) -> None:
    key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
    name = "x-amz-server-side-encryption-customer-"
    with proxying(server.url, lambda _: None) as proxy:
        use(proxy, tmp_path, AWS_SSE_CUSTOMER_KEY_BASE64=key)
    of_objects = [r for r in proxy.requests if r.path.count("/") > 1]
    of_objects = [r for r in of_objects if "uploadId" not in r.query or r.method == "PUT"]
    assert of_objects
    for one in of_objects:
        assert one.headers[name + "key"] == key, one
        assert one.headers[name + "algorithm"] == "AES256"


def test_a_key_of_kms_may_be_used_by_the_bucket(server: Server, tmp_path: Path) -> None:
    name = "x-amz-server-side-encryption"
    with proxying(server.url, lambda _: None) as proxy:
        use(proxy, tmp_path, kms_key="a-key", AWS_SSE_BUCKET_KEY_ENABLED="true")
    begun = [r for r in proxy.requests if r.method in ("PUT", "POST") and "uploadId" not in r.query]
    assert len(begun) == 2
    for one in begun:
        assert (one.headers[name], one.headers[f"{name}-aws-kms-key-id"]) == ("aws:kms", "a-key")
        assert one.headers[f"{name}-bucket-key-enabled"] == "true"


# --- who asks


class Instance(Answers):
    """What hands a container the credentials of its role, which are good for seconds."""

    handed_out: list[str]
    lives_seconds: float

    def do_GET(self) -> None:
        ends = time.time() + self.lives_seconds
        self.handed_out.append(str(ends))
        stamp = datetime.datetime.fromtimestamp(ends, datetime.timezone.utc)
        self.say(
            json.dumps({
                "AccessKeyId": CREDENTIALS["AWS_ACCESS_KEY_ID"],
                "SecretAccessKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
                "Token": f"until-{ends}",
                "Expiration": stamp.strftime("%Y-%m-%dT%H:%M:%SZ"),
            })
        )  # fmt: skip


@contextlib.contextmanager
def a_role(monkeypatch: pytest.MonkeyPatch, lives_seconds: float) -> Iterator[list[str]]:
    handed_out: list[str] = []
    kind = type("Role", (Instance,), {"handed_out": handed_out, "lives_seconds": lives_seconds})
    with answering(kind) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/credentials")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        yield handed_out


@pytest.mark.parametrize("way", ["read", "write"])
def test_credentials_that_end_during_a_job_are_replaced(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Each is good for four seconds, and the store refuses it after that; a job takes nine."""
    # As if ten minutes were over sooner: obstore asks once more 300 s before these end.
    monkeypatch.setattr(connection, "_CREDENTIAL_SECONDS", 300.5)

    def plan(request: Any) -> str | None:
        token = request.headers.get("x-amz-security-token", "until-0")
        return "expired" if float(token.removeprefix("until-")) < time.time() else None

    with a_role(monkeypatch, 4) as handed_out, proxying(server.url, plan) as proxy:
        environ = {"S3_ENDPOINT_URL": proxy.url}
        until = time.monotonic() + 9
        if way == "write":
            store = open_store("s3://b", environ=environ, region="us-east-1")
            with contextlib.closing(store), store.stream("key") as sink:
                while time.monotonic() < until:
                    sink.write(bytes(1 << 20))
                    time.sleep(0.05)
        else:
            with contextlib.closing(open_origin("s3://b", environ, "us-east-1")) as origin:
                blob = origin.stat("s3://b/in/small")
                while time.monotonic() < until:
                    assert content(origin, blob) == b"small"
                    origin.fetch([(blob, str(tmp_path / "file"))])
                    time.sleep(0.1)
    assert len(handed_out) >= 3


def test_web_identity_is_boto3s(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token's file and the role are sent to STS; what it answers signs the requests."""
    answer = (
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
        f"<AccessKeyId>{CREDENTIALS['AWS_ACCESS_KEY_ID']}</AccessKeyId><SecretAccessKey>s"
        "</SecretAccessKey><SessionToken>of-sts</SessionToken><Expiration>2099-01-01T00:00:00Z"
        "</Expiration></Credentials></AssumeRoleWithWebIdentityResult>"
        "</AssumeRoleWithWebIdentityResponse>"
    )

    class Sts(Instance):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.say(answer)

    with answering(Sts) as url:
        token = server.folder.parent / "token"
        token.write_text("a-token")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/job")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        with (
            proxying(server.url, lambda _: None) as proxy,
            contextlib.closing(
                open_origin("s3://b", {"S3_ENDPOINT_URL": proxy.url}, "us-east-1")
            ) as origin,
        ):
            assert content(origin, origin.stat("s3://b/in/small")) == b"small"
    assert all(r.headers["x-amz-security-token"] == "of-sts" for r in proxy.requests)


@pytest.mark.parametrize("excepted", ["", "127.0.0.0/8", "127.0.0.1"])
def test_a_proxy_of_plain_http_is_asked_unless_a_network_is_excepted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, excepted: str
) -> None:
    """By boto3's requests and obstore's alike; the environment of the process has both."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", excepted)
    environ = {**os.environ, **CREDENTIALS, "S3_ENDPOINT_URL": server.url, "AWS_MAX_ATTEMPTS": "1"}
    blob = Blob(uri="s3://b/in/small", key="in/small", size_bytes=5)
    with contextlib.closing(open_origin("s3://b", environ, "us-east-1")) as origin:
        if excepted:
            origin.fetch([(blob, str(tmp_path / "file"))])
            assert list(origin.list("s3://b/in/"))
        else:
            with pytest.raises(DataError, match="proxy"):
                origin.fetch([(blob, str(tmp_path / "file"))])


# --- threads


CHILD = """
import signal, sys, time
from sm_runtime.storage import Blob, open_origin, open_store
url, way = sys.argv[1:]
environ = {"AWS_ACCESS_KEY_ID": "testing-access-key", "AWS_SECRET_ACCESS_KEY": "s",
           "S3_ENDPOINT_URL": url, "AWS_MAX_ATTEMPTS": "2"}
began = 0.0
def told(*_):
    print(f"{time.monotonic() - began:.3f}", flush=True)
    import os
    os._exit(0)
signal.signal(signal.SIGALRM, told)
blob = Blob(uri="s3://b/in/small", key="in/small", size_bytes=5)
origin = open_origin("s3://b", environ, "us-east-1")
store = open_store("s3://b/out", environ=environ, region="us-east-1")
def use():
    if way == "open":
        with origin.open(blob) as body:
            body.readinto(memoryview(bytearray(9)))
    elif way == "fetch":
        origin.fetch([(blob, "/dev/null/x")])
    elif way == "put":
        with open("/dev/zero", "rb") as source:
            store.put("k", source.fileno(), 9)
    elif way == "stream":
        with store.stream("k") as sink:
            for _ in range(99):
                sink.write(bytes(1 << 20))
    else:
        getattr(origin, way)("s3://b/in/small") if way == "stat" else list(origin.list("s3://b/in/"))
signal.setitimer(signal.ITIMER_REAL, 2)
began = time.monotonic() + 2
use()
"""


@pytest.mark.parametrize("way", ["open", "fetch", "put", "stream", "stat", "list"])
def test_a_signal_is_handled_at_once_in_the_main_thread(server: Server, way: str) -> None:
    """The libraries wait for a server that says nothing, but never in the main thread."""

    def plan(request: Any) -> str | None:
        return None if request.method == "HEAD" and request.path == "/b" else "mute"

    with proxying(server.url, plan) as proxy:
        done = subprocess.run(
            (sys.executable, "-c", CHILD, proxy.url, way), stdout=subprocess.PIPE, check=True,
            timeout=60,
        )  # fmt: skip
    assert abs(float(done.stdout)) < 1


# --- a store that answers ranges with status 200


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_by_rclone(tmp_path_factory.mktemp("rclone") / "buckets") as found:
        found.put("s3://b/large", LARGE)
        found.put("s3://b/d/small", b"small")
        yield found


def test_rclones_server_is_a_store(rclone: Server, tmp_path: Path) -> None:
    environ = {**CREDENTIALS, "S3_ENDPOINT_URL": rclone.url}
    origin = open_origin("s3://b", environ, "us-east-1")
    store = open_store("s3://b/out", environ=environ, region="us-east-1")
    with contextlib.closing(origin), contextlib.closing(store):
        found = {blob.key: blob for blob in origin.list("s3://b/")}
        assert sorted(found) == ["d/small", "large"]
        origin.fetch((blob, str(tmp_path / blob.key)) for blob in found.values())
        assert (tmp_path / "large").read_bytes() == LARGE
        assert content(origin, found["large"], 9 << 20, 9 << 20) == LARGE[9 << 20 : 18 << 20]
        assert content(origin, found["large"]) == LARGE
        with store.stream("large") as sink:
            sink.write(LARGE)
        with open(tmp_path / "large", "rb") as source, store.tree("tree") as tree:
            tree.add("small", source.fileno(), 10, executable=False)
    assert (rclone.folder / "b/out/large").read_bytes() == LARGE
    assert (rclone.folder / "b/out/tree/small").read_bytes() == LARGE[:10]


def test_a_store_that_only_closes_is_named(server: Server, tmp_path: Path) -> None:
    with proxying(server.url, always("cut", only="small")) as proxy:
        environ = {**CREDENTIALS, "S3_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": "2"}
        with (
            contextlib.closing(open_origin("s3://b", environ, "us-east-1")) as origin,
            pytest.raises(DataError, match="s3://b/in/small cannot be downloaded: "),
        ):
            origin.fetch([(origin.stat("s3://b/in/small"), str(tmp_path / "file"))])
