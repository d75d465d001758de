"""What a download does with servers that no store's program can be made to be: a few lines each."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from sm_runtime.job.errors import DataError
from sm_runtime.storage import Blob, open_origin, open_store
from sm_runtime.storage.s3 import S3Origin
from tests.s3 import CREDENTIALS

COMPLETE = (
    b"<CompleteMultipartUploadResult><Key>k</Key><ETag>e</ETag></CompleteMultipartUploadResult>"
)
BEGUN = (
    b"<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><UploadId>u</UploadId>"
    b"</InitiateMultipartUploadResult>"
)
TOKEN = "x-amz-meta-sm-runtime-upload"
Handler = Callable[["Asked"], bool | None]
"""Answers; False: the connection is closed then."""


class Asked:
    """A request; ``turn`` counts those of its connection, ``number`` all, from 1."""

    def __init__(self, line: socket.socket, head: str, turn: int, number: int) -> None:
        first, *lines = head.split("\r\n")
        self.line, self.turn, self.number = line, turn, number
        self.method, target, _ = first.split(" ")
        self.is_of_bucket = urlsplit(target).path == "/b"
        self.query = {
            name: values[0]
            for name, values in parse_qs(urlsplit(target).query, keep_blank_values=True).items()
        }
        self.headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send an answer."""
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
        self.line.sendall(head.encode() + (b"" if self.method == "HEAD" else body))


class Served(NamedTuple):
    """A server: what reads from it, and how it is reached."""

    origin: S3Origin
    environ: dict[str, str]


@contextlib.contextmanager
def serving(answer: Handler, workers: int = 128) -> Iterator[Served]:
    """Serve ``workers`` connections at once, each until it is closed; others wait."""
    numbers, lock = iter(range(1, 1 << 30)), threading.Lock()

    def serve(line: socket.socket) -> None:
        data, turn = b"", 0
        with contextlib.suppress(OSError), line:
            while True:
                while b"\r\n\r\n" not in data:
                    more = line.recv(1 << 16)
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                turn += 1
                with lock:
                    number = next(numbers)
                asked = Asked(line, head.decode("latin-1"), turn, number)
                left = int(asked.headers.get("content-length", "0")) - len(data)
                data = b""
                while left:
                    left -= len(line.recv(min(left, 1 << 16)))
                if asked.method == "HEAD" and asked.is_of_bucket:
                    asked.reply(200)  # is it there, and where?
                elif answer(asked) is False:
                    return

    def work() -> None:
        with contextlib.suppress(OSError):
            while True:
                serve(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        for _ in range(workers):
            threading.Thread(target=work, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environ = {**CREDENTIALS, "S3_ENDPOINT_URL": url, "HOME": "/nonexistent"}
        with contextlib.closing(
            open_origin("s3://b", environ, "us-east-1", stall_seconds=600)
        ) as origin:
            assert isinstance(origin, S3Origin)
            yield Served(origin, environ)
        listener.shutdown(socket.SHUT_RDWR)


def blobs(count: int, size_bytes: int = 1000) -> list[Blob]:
    return [Blob(uri=f"s3://b/k{i}", key=f"k{i}", size_bytes=size_bytes) for i in range(count)]


def fetch(origin: S3Origin, folder: Path, wanted: list[Blob]) -> None:
    origin.fetch((blob, str(folder / blob.key)) for blob in wanted)


def page(number: int, *, more: bool, token: bool = True) -> bytes:
    following = f"<NextContinuationToken>{number + 1}</NextContinuationToken>" if token else ""
    return (
        f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{following}"
        f"<Contents><Key>k{number}</Key><Size>1</Size></Contents></ListBucketResult>"
    ).encode()


def ends_with(
    answers: list[bytes], held_bytes: int | None = None, *, is_ours: bool = True
) -> tuple[Handler, list[str]]:
    """Answer completions with these documents, the last again and again; list what was asked.

    ``held_bytes``: the size of the object that is there then, whether it is ours or not.
    """
    asked_for: list[str] = []
    tokens: list[str] = ["of an earlier attempt"]

    def answer(asked: Asked) -> bool | None:
        asked_for.append(asked.method)
        if "uploads" in asked.query and asked.method == "POST":
            tokens[:] = [asked.headers[TOKEN]] if is_ours else tokens
            asked.reply(200, BEGUN)
        elif asked.method == "PUT":
            asked.reply(200, etag='"e"')
        elif asked.method == "HEAD":
            if held_bytes is None:
                asked.reply(404)
            else:
                asked.reply(200, bytes(held_bytes), **{TOKEN: tokens[0]})
        elif asked.method == "POST":
            document = answers.pop(0) if len(answers) > 1 else answers[0]
            if document == LOST:
                return False
            asked.reply(404 if b"NoSuchUpload" in document else 200, document)
        else:
            asked.reply(204)
        return None

    return answer, asked_for


LOST = b"lost"
ALIEN = {"empty": b"", "a page of a proxy": b"<html><body>Sign in</body></html>", "blanks": b"  \n"}
NO_UPLOAD = b"<Error><Code>NoSuchUpload</Code><Message>m</Message></Error>"


@pytest.mark.parametrize("document", ALIEN.values(), ids=ALIEN)
def test_only_what_the_server_says_to_be_complete_is_saved(document: bytes) -> None:
    answer, asked_for = ends_with([document])
    with serving(answer) as server:
        store = open_store("s3://b", environ=server.environ, region="us-east-1")
        with (
            contextlib.closing(store),
            pytest.raises(OSError, match="does not say that the object is complete"),
            store.stream("k") as sink,
        ):
            sink.write(bytes(9 << 20))
    assert "DELETE" in asked_for


@pytest.mark.parametrize(
    ("held_bytes", "is_ours", "is_saved"),
    [(9 << 20, True, True), (9 << 20, False, False), (5, True, False), (None, True, False)],
)
@pytest.mark.parametrize("answers", [[b""], [LOST, NO_UPLOAD]], ids=["alien", "lost"])
def test_an_upload_whose_end_was_done_though_the_answer_was_lost_is_complete(
    answers: list[bytes], held_bytes: int | None, is_ours: bool, is_saved: bool
) -> None:
    """An object of an earlier attempt, which may be as long, is not taken for it."""
    answer, _ = ends_with(answers, held_bytes, is_ours=is_ours)
    with serving(answer) as server:
        store = open_store("s3://b", environ=server.environ, region="us-east-1")
        why = "NoSuchUpload|does not say"
        expected = contextlib.nullcontext() if is_saved else pytest.raises(OSError, match=why)
        with contextlib.closing(store), expected, store.stream("k") as sink:
            sink.write(bytes(9 << 20))


@pytest.mark.parametrize("missing", ["UploadId", "ETag"])
def test_answers_to_an_upload_that_are_not_of_a_store_fail_it(missing: str) -> None:
    def answer(asked: Asked) -> None:
        if "uploads" in asked.query:
            asked.reply(200, b"" if missing == "UploadId" else BEGUN)
        elif asked.method == "DELETE":
            asked.reply(204)
        else:
            asked.reply(200, b"<html></html>")

    with serving(answer) as server:
        environ = {**server.environ, "AWS_MAX_ATTEMPTS": "2"}
        store = open_store("s3://b", environ=environ, region="us-east-1")
        with (
            contextlib.closing(store),
            pytest.raises(OSError, match=r"the server's answer (does not say|has no ETag)"),
            store.stream("k") as sink,
        ):
            sink.write(bytes(9 << 20))


def test_a_body_that_was_damaged_on_its_way_is_sent_again() -> None:
    digests: list[str] = []

    def answer(asked: Asked) -> None:
        digests.append(asked.headers["x-amz-content-sha256"])
        if len(digests) == 1:
            asked.reply(400, b"<Error><Code>BadDigest</Code><Message>m</Message></Error>")
        else:
            asked.reply(200, etag='"e"')

    with serving(answer) as server, open("/dev/zero", "rb") as source:
        store = open_store("s3://b", environ=server.environ, region="us-east-1")
        with contextlib.closing(store):
            store.put("k", source.fileno(), 10)
    assert len(digests) == 2 and len(set(digests)) == 1


def test_a_role_that_may_only_write_saves_files() -> None:
    """What an earlier attempt left cannot be looked for then; that is said, and no failure."""

    def answer(asked: Asked) -> None:
        if asked.method == "PUT":
            asked.reply(200, etag='"e"')
        else:
            asked.reply(403, b"<Error><Code>AccessDenied</Code><Message>m</Message></Error>")

    with serving(answer) as server, open("/dev/zero", "rb") as source:
        store = open_store("s3://b", environ=server.environ, region="us-east-1")
        with contextlib.closing(store), store.tree("model") as tree:
            assert tree.add("weights", source.fileno(), 10, executable=False) == 10


def test_what_is_long_in_being_stored_is_given_up() -> None:
    def answer(asked: Asked) -> None:
        time.sleep(3)
        asked.reply(200, etag='"e"')

    with serving(answer) as server, open("/dev/zero", "rb") as source:
        environ = {**server.environ, "AWS_MAX_ATTEMPTS": "1"}
        store = open_store("s3://b", environ=environ, region="us-east-1", stall_seconds=1)
        with (
            contextlib.closing(store),
            pytest.raises(OSError, match="nothing moved for 1 s"),
        ):
            store.put("k", source.fileno(), 10)


@pytest.mark.parametrize("size", [10, 40 << 20], ids=["one request", "parts"])
def test_a_stop_is_seen_within_a_second_while_an_upload_stalls(size: int) -> None:
    """The server says nothing to a body, for as long as the test lasts; parts are removed."""
    begun, aborted, ended = threading.Event(), threading.Event(), threading.Event()

    def answer(asked: Asked) -> None:
        if asked.method == "PUT":
            begun.set()
            ended.wait(60)
        elif asked.method == "POST":
            asked.reply(200, BEGUN)
        elif asked.method == "GET":
            upload = b"<Upload><Key>k</Key><UploadId>u</UploadId><Initiated>2099-01-01T00:00:00Z"
            document = (
                b"<ListMultipartUploadsResult>%s</Initiated></Upload></ListMultipartUploadsResult>"
            )
            asked.reply(200, document % upload)
        else:
            aborted.set()
            asked.reply(204)

    with serving(answer) as server:
        store = open_store(
            "s3://b", environ=server.environ, region="us-east-1", stopped=begun.is_set
        )
        with (
            contextlib.closing(store),
            pytest.raises(OSError, match="a stop left no time for it"),
            store.stream("k") as sink,
        ):
            for _ in range(0, size, 1 << 20):
                sink.write(bytes(min(size, 1 << 20)))
                began = time.monotonic()
            if size > 10:
                begun.wait(20)
                began = time.monotonic()
        assert time.monotonic() - began < 3
        assert aborted.is_set() == (size > 10)
        ended.set()


def test_a_server_that_repeats_its_listing_is_an_error() -> None:
    with (
        serving(lambda asked: asked.reply(200, page(0, more=True, token=False))) as server,
        pytest.raises(DataError, match="the server repeats itself"),
    ):
        list(server.origin.list("s3://b/"))


@pytest.mark.parametrize("text", [b"<Error><Code>Odd</Code></Error>", b"<html></html>", b""])
def test_what_is_no_listing_is_not_an_empty_one(text: bytes) -> None:
    def answer(asked: Asked) -> None:
        asked.reply(200, text)

    with serving(answer) as server, pytest.raises(DataError, match="cannot be listed: a listing"):
        list(server.origin.list("s3://b/"))


DRIPPED_BYTES = 100_000


def drip(asked: Asked) -> None:
    """Begin the right answer, and send its body a byte at a time."""
    head = f"200 X\r\ncontent-length: {DRIPPED_BYTES}"
    if wanted := asked.headers.get("range"):
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        size = last - first + 1
        head = f"206 X\r\ncontent-length: {size}\r\ncontent-range: bytes {first}-{last}/{1 << 40}"
    asked.line.sendall(f"HTTP/1.1 {head}\r\n\r\n".encode())
    while True:
        asked.line.sendall(b" ")
        time.sleep(0.1)


def drip_head(asked: Asked) -> None:
    asked.line.sendall(b"HTTP/1.1 200 X\r\nA: ")
    while True:
        asked.line.sendall(b"a")
        time.sleep(0.1)


@pytest.mark.parametrize(
    "way, answer",
    [("list", drip), ("list", drip_head), ("open", drip), ("open", drip_head), ("fetch", drip)],
)
def test_a_stop_is_seen_whatever_comes(way: str, answer: Handler, tmp_path: Path) -> None:
    begun = threading.Event()

    def answering(asked: Asked) -> bool | None:
        begun.set()
        return answer(asked)

    with serving(answering) as server, pytest.raises(DataError, match="a stop was asked for"):
        if way == "list":
            list(server.origin.list("s3://b/", stopped=begun.is_set))
        elif way == "fetch":
            wanted = [(blob, str(tmp_path / blob.key)) for blob in blobs(9, DRIPPED_BYTES)]
            server.origin.fetch(wanted, stopped=begun.is_set)
        else:
            [blob] = blobs(1, 1 << 40)
            with server.origin.open(blob, 1 << 39, 1000, stopped=begun.is_set) as body:
                body.readinto(memoryview(bytearray(1000)))
