"""What a download does with servers that no store's program can be made to be: a few lines each."""

from __future__ import annotations

import calendar
import contextlib
import email.utils
import hashlib
import os
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
from sm_runtime.storage.attempts import Attempts, Budget
from sm_runtime.storage.exchange import CROWDED_SECONDS
from sm_runtime.storage.line import Broken
from sm_runtime.storage.s3 import S3Origin
from tests.s3 import CREDENTIALS

COMPLETE = b"<CompleteMultipartUploadResult><Key>k</Key></CompleteMultipartUploadResult>"
Handler = Callable[["Asked"], bool | None]
"""Answers; False: the connection is closed then."""


class Asked:
    """A request; ``turn`` counts those of its connection, ``number`` all, from 1."""

    def __init__(self, line: socket.socket, head: str, turn: int, number: int) -> None:
        first, *lines = head.split("\r\n")
        self.line, self.turn, self.number = line, turn, number
        self.method, target, _ = first.split(" ")
        self.query = {
            name: values[0]
            for name, values in parse_qs(urlsplit(target).query, keep_blank_values=True).items()
        }
        self.headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }

    @property
    def age_seconds(self) -> float:
        """How long ago it was signed."""
        signed = time.strptime(self.headers["x-amz-date"], "%Y%m%dT%H%M%SZ")
        return time.time() - calendar.timegm(signed)

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
                if answer(asked) is False:
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


@pytest.mark.parametrize("workers", [2, 9])
def test_a_server_with_room_for_few_connections_is_not_waited_for(
    tmp_path: Path, workers: int
) -> None:
    """It serves a connection until that is closed; a stalled one would be given up much later."""

    def answer(asked: Asked) -> None:
        asked.reply(200, b"x" * 1000)

    with serving(answer, workers) as server:
        fetch(server.origin, tmp_path, blobs(200))
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {1000}
    assert len(os.listdir(tmp_path)) == 200


def test_a_part_that_is_long_in_being_stored_is_sent_once() -> None:
    """Other connections have nothing to do meanwhile; a store may fail for two of one part."""
    parts: list[str] = []

    def answer(asked: Asked) -> None:
        if "uploads" in asked.query:
            asked.reply(200, b"<R><UploadId>u</UploadId></R>")
        elif asked.method == "PUT":
            parts.append(asked.query["partNumber"])
            if asked.turn == 1:  # on a connection of its own; that of the first part is free again
                time.sleep(2 * CROWDED_SECONDS)
            asked.reply(200, etag='"e"')
        else:
            asked.reply(200, COMPLETE)

    with serving(answer) as server:
        store = open_store("s3://b", environ=server.environ, region="us-east-1")
        with contextlib.closing(store), store.stream("k") as sink:
            for _ in range(4):
                sink.write(bytes(8 << 20))
    assert sorted(parts) == ["1", "2", "3", "4"]


def test_an_upload_whose_end_was_done_though_the_answer_was_lost_is_complete() -> None:
    done: list[int] = []

    def answer(asked: Asked) -> bool | None:
        if "uploads" in asked.query:
            asked.reply(200, b"<R><UploadId>u</UploadId></R>")
        elif asked.method == "PUT":
            asked.reply(200, etag='"e"')
        elif asked.method == "HEAD":
            asked.reply(200, bytes(17 << 20)) if done else asked.reply(404)
        elif asked.method == "POST":
            done.append(asked.number)
            if len(done) == 1:
                return False
            asked.reply(404, b"<Error><Code>NoSuchUpload</Code><Message>m</Message></Error>")
        else:
            asked.reply(204)
        return None

    with serving(answer) as server:
        store = open_store("s3://b", environ=server.environ, region="us-east-1")
        with contextlib.closing(store), store.stream("k") as sink:
            sink.write(bytes(17 << 20))
    assert len(done) == 2


def ends_with(answers: list[bytes], held_bytes: int | None = None) -> tuple[Handler, list[str]]:
    """Answer completions with these documents, the last again and again; list what was asked.

    ``held_bytes``: the size of the object that is there already.
    """
    asked_for: list[str] = []

    def answer(asked: Asked) -> None:
        asked_for.append(asked.method)
        if "uploads" in asked.query:
            asked.reply(200, b"<R><UploadId>u</UploadId></R>")
        elif asked.method == "PUT":
            asked.reply(200, etag='"e"')
        elif asked.method == "HEAD":
            asked.reply(404) if held_bytes is None else asked.reply(200, bytes(held_bytes))
        elif asked.method == "POST":
            document = answers.pop(0) if len(answers) > 1 else answers[0]
            asked.reply(404 if b"NoSuchUpload" in document else 200, document)
        else:
            asked.reply(204)

    return answer, asked_for


ALIEN = {"empty": b"", "a page of a proxy": b"<html><body>Sign in</body></html>", "blanks": b"  \n"}
NO_UPLOAD = b"<Error><Code>NoSuchUpload</Code><Message>m</Message></Error>"


@pytest.mark.parametrize("document", ALIEN.values(), ids=ALIEN)
def test_only_what_the_server_says_to_be_complete_is_saved(document: bytes) -> None:
    answer, asked_for = ends_with([document])
    with serving(answer) as server:
        environ = {**server.environ, "AWS_MAX_ATTEMPTS": "2"}
        store = open_store("s3://b", environ=environ, region="us-east-1")
        with (
            contextlib.closing(store),
            pytest.raises(OSError, match="does not say that the object is complete"),
            store.stream("k") as sink,
        ):
            sink.write(bytes(9 << 20))
    assert asked_for[-1] == "DELETE"


@pytest.mark.parametrize("document", ALIEN.values(), ids=ALIEN)
def test_a_completion_that_was_answered_with_something_else_is_asked_for_again(
    document: bytes,
) -> None:
    answer, asked_for = ends_with([document, COMPLETE])
    with serving(answer) as server:
        store = open_store("s3://b", environ=server.environ, region="us-east-1")
        with contextlib.closing(store), store.stream("k") as sink:
            sink.write(bytes(9 << 20))
    assert asked_for.count("POST") == 3 and "DELETE" not in asked_for


@pytest.mark.parametrize(("held_bytes", "is_saved"), [(9 << 20, True), (5, False), (None, False)])
def test_an_object_of_an_earlier_attempt_is_not_taken_for_the_one_that_was_sent(
    held_bytes: int | None, is_saved: bool
) -> None:
    answer, _ = ends_with([b"", NO_UPLOAD], held_bytes)
    with serving(answer) as server:
        store = open_store("s3://b", environ=server.environ, region="us-east-1")
        expected = contextlib.nullcontext() if is_saved else pytest.raises(OSError, match="NoSuch")
        with contextlib.closing(store), expected, store.stream("k") as sink:
            sink.write(bytes(9 << 20))


@pytest.mark.parametrize("missing", ["UploadId", "ETag"])
def test_answers_to_an_upload_that_are_not_of_a_store_fail_it(missing: str) -> None:
    def answer(asked: Asked) -> None:
        if "uploads" in asked.query:
            asked.reply(200, b"" if missing == "UploadId" else b"<R><UploadId>u</UploadId></R>")
        elif asked.method == "DELETE":
            asked.reply(204)
        else:
            asked.reply(200, b"<html></html>")

    with serving(answer) as server:
        environ = {**server.environ, "AWS_MAX_ATTEMPTS": "2"}
        store = open_store("s3://b", environ=environ, region="us-east-1")
        with (
            contextlib.closing(store),
            pytest.raises(OSError, match=r"the server's answer (names no upload|has no ETag)"),
            store.stream("k") as sink,
        ):
            sink.write(bytes(9 << 20))


def test_a_body_that_was_damaged_on_its_way_is_sent_again() -> None:
    digests: list[str] = []

    def answer(asked: Asked) -> None:
        digests.append(asked.headers["content-md5"])
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


def test_what_is_long_in_being_stored_is_given_up_and_not_sent_twice_unseen() -> None:
    puts: list[int] = []

    def answer(asked: Asked) -> None:
        puts.append(asked.turn)
        if len(puts) == 2:
            time.sleep(4)
        asked.reply(200, etag='"e"')

    with serving(answer) as server, open("/dev/zero", "rb") as source:
        environ = {**server.environ, "AWS_MAX_ATTEMPTS": "1"}
        store = open_store("s3://b", environ=environ, region="us-east-1", stall_seconds=1)
        with contextlib.closing(store):
            store.put("first", source.fileno(), 10)
            with pytest.raises(OSError, match="nothing moved for 1 s"):
                store.put("second", source.fileno(), 10)
    assert puts == [1, 2]


def test_a_range_whose_first_byte_is_late_is_asked_for_once(tmp_path: Path) -> None:
    content = os.urandom(20 << 20)
    asked_for: list[str] = []

    def answer(asked: Asked) -> None:
        named = asked.headers["range"]
        asked_for.append(named)
        first, last = (int(number) for number in named.removeprefix("bytes=").split("-"))
        if first > 10 << 20:
            time.sleep(2 * CROWDED_SECONDS)
        span = f"bytes {first}-{last}/{len(content)}"
        asked.reply(206, content[first : last + 1], content_range=span)

    with serving(answer) as server:
        fetch(server.origin, tmp_path, blobs(1, len(content)))
    assert (tmp_path / "k0").read_bytes() == content
    assert len(asked_for) == len(set(asked_for)) == 3


def test_the_clock_of_a_server_is_taken_by_all_that_was_asked_for(tmp_path: Path) -> None:
    def answer(asked: Asked) -> None:
        if abs(asked.age_seconds + 3600) > 900:
            text = b"<Error><Code>RequestTimeTooSkewed</Code><Message>m</Message></Error>"
            date = email.utils.formatdate(time.time() + 3600, usegmt=True)
            asked.reply(403, text, date=date)
        else:
            asked.reply(200, b"x" * 1000)

    with serving(answer) as server:
        fetch(server.origin, tmp_path, blobs(40))
    assert len(os.listdir(tmp_path)) == 40


def test_a_page_that_was_asked_for_long_ago_is_asked_for_anew() -> None:
    """The server closes a kept connection, and refuses what was signed too long ago."""

    def answer(asked: Asked) -> bool | None:
        if asked.turn == 2:
            return False
        if asked.age_seconds > 2:
            text = b"<Error><Code>RequestTimeTooSkewed</Code><Message>m</Message></Error>"
            asked.reply(403, text, date=email.utils.formatdate(usegmt=True))
        else:
            number = int(asked.query.get("continuation-token", "0"))
            asked.reply(200, page(number, more=number < 3))
        return None

    found = []
    with serving(answer) as server:
        for blob in server.origin.list("s3://b/"):
            found.append(blob.key)
            time.sleep(3.1)
    assert found == ["k0", "k1", "k2", "k3"]


def test_a_server_that_repeats_its_listing_is_an_error() -> None:
    with (
        serving(lambda asked: asked.reply(200, page(0, more=True, token=False))) as server,
        pytest.raises(DataError, match="the server repeats itself"),
    ):
        list(server.origin.list("s3://b/"))


@pytest.mark.parametrize("text", [b"<Error><Code>Odd</Code></Error>", b"<html></html>", b""])
def test_what_is_no_listing_is_not_an_empty_one(
    text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(asked: Asked) -> None:
        asked.reply(200, text)

    monkeypatch.setattr(Attempts, "_wait", lambda *_: None)
    with serving(answer) as server, pytest.raises(DataError, match="cannot be listed: a listing"):
        list(server.origin.list("s3://b/"))


def drip(asked: Asked) -> None:
    asked.line.sendall(b"HTTP/1.1 200 X\r\ncontent-length: 100000\r\n\r\n")
    while True:
        asked.line.sendall(b" ")
        time.sleep(0.1)


def drip_head(asked: Asked) -> None:
    asked.line.sendall(b"HTTP/1.1 200 X\r\nA: ")
    while True:
        asked.line.sendall(b"a")
        time.sleep(0.1)


def pour(asked: Asked) -> None:
    """All of the object, though a part was asked for."""
    asked.line.sendall(b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n" % (1 << 40))
    while True:
        asked.line.sendall(b"a" * 65536)


@pytest.mark.parametrize(
    "way, answer", [("list", drip), ("list", drip_head), ("open", drip_head), ("open", pour)]
)
def test_a_stop_is_seen_whatever_comes(way: str, answer: Handler) -> None:
    begun = threading.Event()

    def answering(asked: Asked) -> bool | None:
        begun.set()
        return answer(asked)

    with serving(answering) as server, pytest.raises(DataError, match="a stop was asked for"):
        if way == "list":
            list(server.origin.list("s3://b/", stopped=begun.is_set))
        else:
            [blob] = blobs(1, 1 << 40)
            with server.origin.open(blob, 1 << 39, 1000, stopped=begun.is_set) as body:
                body.readinto(memoryview(bytearray(1000)))


def test_a_second_copy_is_compared_with_its_own_checksum(tmp_path: Path) -> None:
    """The first is cut and its rest damaged: the answer for the rest names no whole."""
    good = b"x" * 1000
    tag = f'"{hashlib.md5(good).hexdigest()}"'

    def answer(asked: Asked) -> bool | None:
        if asked.number == 1:
            head = f"HTTP/1.1 200 X\r\ncontent-length: 1000\r\netag: {tag}\r\n\r\n"
            asked.line.sendall(head.encode() + good[:500])
            return False
        if "range" in asked.headers:
            asked.reply(206, b"y" * 500, etag=tag, content_range="bytes 500-999/1000")
        else:
            asked.reply(200, good if asked.number > 4 else b"%1000d" % asked.number, etag=tag)
        return None

    with serving(answer) as server:
        fetch(server.origin, tmp_path, blobs(1))
    assert (tmp_path / "k0").read_bytes() == good


def test_a_line_that_is_cut_again_and_again_does_not_end_a_large_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Attempts, "_wait", lambda *_: None)
    attempts = Attempts(Budget(), lambda _: False, "s3://b/k", "downloaded", lambda: False, 8)
    for _ in range(20):
        attempts.failed(Broken("cut"), received=3 << 20, wanted=64 << 20)
    with pytest.raises(DataError, match="8 attempts"):
        for _ in range(8):
            attempts.failed(Broken("cut"), received=1 << 20, wanted=64 << 20)
