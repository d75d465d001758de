"""Reading from, and writing to, a real S3 server and the local file system."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sm_runtime.job.errors import ConfigError, DataError
from sm_runtime.storage import Blob, Origin, Store, open_origin, open_store
from tests.faults import Plan, Proxy, Request, proxying
from tests.harness import Base
from tests.s3 import CREDENTIALS, Server, serving

NAMES = ["a b+c", "x&y<z>", "100%3F?#", "ü/ß", "'\"", "empty", "~._-", "k=v;*,!()@:$[]{}^|`"]
LARGE = os.urandom((20 << 20) + 7)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "buckets") as found:
        for name in NAMES:
            found.put(f"s3://b/odd/{name}", b"" if name == "empty" else name.encode() * 9)
        for number in range(1500):
            found.put(f"s3://b/many/{number:04d}", b"%d" % number)
        found.put("s3://b/large", LARGE)
        found.put("s3://b/other", b"other")
        yield found


def environ_of(url: str) -> dict[str, str]:
    return {**CREDENTIALS, "S3_ENDPOINT_URL": url, "HOME": "/nonexistent"}


@pytest.fixture
def origin(server: Server) -> Iterator[Origin]:
    with contextlib.closing(open_origin("s3://b", environ_of(server.url), "eu-west-1")) as found:
        yield found


@pytest.fixture
def local(server: Server) -> Iterator[Origin]:
    with contextlib.closing(open_origin(f"file://{server.folder}", {}, "")) as found:
        yield found


def content(origin: Origin, blob: Blob, offset: int = 0) -> bytes:
    view, found = memoryview(bytearray(100_000)), bytearray()
    with origin.open(blob, offset) as body:
        while count := body.readinto(view):
            found += view[:count]
    return bytes(found)


# --- reading


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_all_objects_below_a_prefix_are_copied_under_their_names(
    server: Server, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    origin = request.getfixturevalue("origin" if kind == "s3" else "local")
    uri = "s3://b/odd/" if kind == "s3" else f"file://{server.folder}/b/odd/"
    blobs = list(origin.list(uri))
    told: list[int] = []
    origin.fetch(
        ((blob, str(tmp_path / blob.key.rpartition("odd/")[2])) for blob in blobs),
        progress=told.append,
    )
    assert [blob.key.rpartition("odd/")[2] for blob in blobs] == sorted(NAMES)
    for name in NAMES:
        expected = (server.folder / "b/odd" / name).read_bytes()
        assert (tmp_path / name).read_bytes() == expected
    assert sum(told) == sum(blob.size_bytes for blob in blobs)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(found) == len(NAMES)


def test_a_listing_goes_on_after_a_page(origin: Origin) -> None:
    keys = [blob.key for blob in origin.list("s3://b/many/")]
    assert keys == [f"many/{number:04d}" for number in range(1500)]


@pytest.mark.parametrize(
    ("prefix", "count"), [("many/000", 10), ("o", len(NAMES) + 1), ("none", 0), ("", 1510)]
)
def test_a_prefix_is_a_string_and_no_folder(origin: Origin, prefix: str, count: int) -> None:
    assert len(list(origin.list(f"s3://b/{prefix}"))) == count


@pytest.mark.parametrize(("path", "count"), [("odd", len(NAMES)), ("other", 1), ("none", 0)])
def test_a_path_is_a_file_or_folder(server: Server, local: Origin, path: str, count: int) -> None:
    assert len(list(local.list(f"file://{server.folder}/b/{path}"))) == count


@pytest.mark.parametrize("name", [*NAMES, "../large"])
@pytest.mark.parametrize("offset", [0, 5])
def test_an_object_is_read_from_an_offset(
    server: Server, origin: Origin, local: Origin, name: str, offset: int
) -> None:
    path = Path(os.path.normpath(server.folder / "b/odd" / name))
    remote = origin.stat(f"s3://b/{path.relative_to(server.folder / 'b')}")
    beside = next(iter(local.list(path.as_uri())))
    expected = path.read_bytes()
    assert remote.size_bytes == beside.size_bytes == len(expected)
    assert content(origin, remote, offset) == expected[offset:]
    assert content(local, beside, offset) == expected[offset:]


def test_a_large_object_is_fetched_in_ranges(server: Server, tmp_path: Path) -> None:
    with proxying(server.url, lambda _: None) as proxy:
        origin = open_origin("s3://b", environ_of(proxy.url), "")
        origin.fetch([(origin.stat("s3://b/large"), str(tmp_path / "large"))])
        origin.close()
    ranges = sorted(r.headers["range"] for r in proxy.requests if "range" in r.headers)
    assert ranges == ["bytes=0-8388607", "bytes=16777216-20971526", "bytes=8388608-16777215"]
    assert (tmp_path / "large").read_bytes() == LARGE


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("s3://b/none", "s3://b/none does not exist"),
        ("file:///none", "file:///none does not exist"),
        ("file:///", "file:/// is not a file"),
        ("s3://b", "'s3://b' names no object"),
        ("s3://key:secret@b/k", "an s3:// URI holds no credentials"),
    ],
)
def test_what_is_not_there_is_named(server: Server, uri: str, why: str) -> None:
    with (
        contextlib.closing(open_origin(uri, environ_of(server.url), "")) as origin,
        pytest.raises(DataError) as caught,
    ):
        origin.stat(uri)
    assert why in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_bucket_that_is_missing(origin: Origin) -> None:
    with pytest.raises(DataError, match="s3://none/x cannot be listed: there is no bucket none"):
        list(origin.list("s3://none/x"))


@pytest.mark.parametrize("uri", ["https://x/y", "/a/path", "gs://b/k", ""])
def test_a_source_that_is_neither(uri: str) -> None:
    with pytest.raises(DataError, match="is no s3:// or file:// URI"):
        open_origin(uri, {}, "")


def test_a_file_that_shrinks_while_it_is_read(local: Origin, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"x" * 100)
    blob = local.stat(path.as_uri())
    path.write_bytes(b"x" * 50)
    with pytest.raises(DataError, match="has changed while it was read"):
        local.fetch([(blob, str(tmp_path / "target"))])
    assert [one.name for one in tmp_path.iterdir()] == ["source"]


def test_a_folder_that_a_link_puts_into_itself(local: Origin, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/loop").symlink_to(tmp_path)
    with pytest.raises(DataError, match="holds itself: a symbolic link leads back to it"):
        list(local.list(tmp_path.as_uri()))


# --- the request of a job


def test_a_request_may_be_in_object_storage(server: Server, base: Base) -> None:
    server.put("s3://b/jobs/a job.json", b'{"TrainingJobName": "from-afar"}')
    base.write("code/train.py", "import os; print(os.environ['SM_TRAINING_ENV'])")
    base.hyperparameters(sagemaker_program='"train.py"')
    result = base.run(SM_RUNTIME_JOB="s3://b/jobs/a job.json", **environ_of(server.url))
    assert json.loads(result.out)["job_name"] == "from-afar", result.log


def test_a_request_that_is_not_there(server: Server, base: Base) -> None:
    result = base.run(SM_RUNTIME_JOB="s3://b/none.json", **environ_of(server.url))
    assert result.status == 1
    assert "environment: SM_RUNTIME_JOB: s3://b/none.json does not exist" in base.failure()


# --- writing


@pytest.fixture
def store(server: Server, tmp_path: Path) -> Iterator[Store]:
    """A store in a bucket of its own."""
    (server.folder / tmp_path.name).mkdir()
    uri = f"s3://{tmp_path.name}/out/"
    found = open_store(uri, "job", "output", environ=environ_of(server.url))
    with contextlib.closing(found):
        yield found


def stored(server: Server, tmp_path: Path) -> dict[str, bytes]:
    root = server.folder / tmp_path.name / "out/job/output"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("size", [0, 1, 8 << 20, (8 << 20) + 1, 20 << 20])
def test_a_stream_becomes_one_object(
    server: Server, store: Store, tmp_path: Path, size: int
) -> None:
    data = os.urandom(size)
    with store.stream("model.tar.gz") as sink:
        for start in range(0, size, 300_000):
            sink.write(data[start : start + 300_000])
        assert not store.exists("model.tar.gz")
    assert stored(server, tmp_path) == {"model.tar.gz": data}
    assert store.exists("model.tar.gz")
    assert store.locate("model.tar.gz") == f"s3://{tmp_path.name}/out/job/output/model.tar.gz"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stream_that_fails_leaves_no_object_and_no_parts(
    server: Server, tmp_path: Path, error: type[BaseException]
) -> None:
    (server.folder / tmp_path.name).mkdir()
    with proxying(server.url, lambda _: None) as proxy:
        store = open_store(f"s3://{tmp_path.name}/out/job/output", environ=environ_of(proxy.url))
        with pytest.raises(error), store.stream("key") as sink:
            for _ in range(40):
                sink.write(bytes(1 << 20))
            raise error
        store.close()
    assert not stored(server, tmp_path)
    uploads = [r for r in proxy.requests if r.method == "POST" and "uploads" in r.query]
    aborted = [r for r in proxy.requests if r.method == "DELETE" and "uploadId" in r.query]
    assert (len(uploads), len(aborted)) == (1, 1)


def test_a_tree_replaces_that_of_an_earlier_attempt(
    server: Server, store: Store, tmp_path: Path
) -> None:
    for names in (["old", "both", "sub/old"], ["both", "sub/new", "big"]):
        with store.tree("model") as tree:
            for name in names:
                source = tmp_path / "source"
                source.write_bytes(LARGE if name == "big" else f"{name} {names}".encode())
                with open(source, "rb") as file:
                    size = source.stat().st_size
                    assert tree.add(name, file.fileno(), size, executable=False) == size
    found = stored(server, tmp_path)
    assert sorted(found) == ["model/big", "model/both", "model/sub/new"]
    assert found["model/big"] == LARGE
    assert found["model/both"] == b"both ['both', 'sub/new', 'big']"
    assert store.exists("model")
    assert not store.exists("mode")


@pytest.mark.parametrize("size", [10, len(LARGE)])
def test_a_file_is_put_and_deleted(server: Server, store: Store, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(LARGE[:size])
    with open(source, "rb") as file:
        store.put("a b/ü", file.fileno(), size)
        with pytest.raises(OSError, match="the file has become shorter"):
            store.put("other", file.fileno(), size + 1)
    assert stored(server, tmp_path) == {"a b/ü": LARGE[:size]}
    store.delete("a b/ü")
    store.delete("never/was")
    assert not stored(server, tmp_path)


def faulty(server: Server, tmp_path: Path, plan: Plan) -> tuple[Proxy, OSError | None]:
    """Write 20 MiB through a proxy; return what it saw, and why it failed."""
    (server.folder / tmp_path.name).mkdir()
    failure = None
    with proxying(server.url, plan) as proxy:
        store = open_store(
            f"s3://{tmp_path.name}/out/job/output",
            environ={**environ_of(proxy.url), "AWS_MAX_ATTEMPTS": "4"},
            kms_key="a-key",
        )
        try:
            with store.stream("key") as sink:
                sink.write(LARGE)
        except OSError as error:
            failure = error
        store.close()
    return proxy, failure


def test_uploads_are_tried_once_more_and_encrypted(server: Server, tmp_path: Path) -> None:
    proxy, failure = faulty(
        server,
        tmp_path,
        lambda r: "busy" if r.method in ("PUT", "POST") and r.number % 2 else None,
    )
    assert failure is None
    assert stored(server, tmp_path) == {"key": LARGE}
    assert proxy.seen("busy") > 2
    (begun,) = (r for r in proxy.requests if r.query == "uploads=" and r.number == 2)
    assert begun.headers["x-amz-server-side-encryption"] == "aws:kms"
    assert begun.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "a-key"


def test_an_upload_that_fails_names_the_object(server: Server, tmp_path: Path) -> None:
    def plan(request: Request) -> str | None:
        return "denied" if "partNumber=2" in request.query else None

    proxy, failure = faulty(server, tmp_path, plan)
    assert f"s3://{tmp_path.name}/out/job/output/key cannot be uploaded: access is" in str(failure)
    assert not stored(server, tmp_path)
    assert [r for r in proxy.requests if r.method == "DELETE"]


def test_a_destination_that_is_no_bucket() -> None:
    with pytest.raises(
        ConfigError, match=r"OutputDataConfig.S3OutputPath: 's3://' names no bucket"
    ):
        open_store("s3://")
