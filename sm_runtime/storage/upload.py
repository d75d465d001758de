"""Objects sent to S3: whole, or in parts that are sent while the rest is still being made."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping

from sm_runtime.storage.client import Broken, Client, Refusal, between, encoded_query
from sm_runtime.storage.crew import Crew
from sm_runtime.storage.signing import encoded_path

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
_PARTS = 1000  # of the first size; then the size doubles, so that 10,000 suffice for 8 TiB
_FLYING_BYTES = 64 << 20
_ABORT_SECONDS = 2.0
THREADS = 6


class Bucket:
    """Sends requests that change one bucket. Raises DataError."""

    def __init__(self, client: Client, name: str, kms_key: str | None) -> None:
        self.client, self.name = client, name
        self._new = {}
        if kms_key:
            self._new = {
                "x-amz-server-side-encryption": "aws:kms",
                "x-amz-server-side-encryption-aws-kms-key-id": kms_key,
            }

    def uri(self, key: str) -> str:
        """Return the URI of a key."""
        return f"s3://{self.name}/{key}"

    def put(self, key: str, body: bytes | memoryview, stopped: Callable[[], bool]) -> None:
        """Write an object with one request."""
        self._send("PUT", key, (), body, stopped=stopped, headers=self._new)

    def create(self, key: str) -> str:
        """Begin an upload in parts; return its name."""

        def check(_: Mapping[str, str], text: str) -> None:
            if not between(text, "UploadId"):
                raise Broken("the server's answer names no upload")

        query = (("uploads", ""),)
        _, text = self._send("POST", key, query, headers=self._new, check=check)
        return between(text, "UploadId")

    def part(
        self, key: str, upload: str, number: int, body: bytes | memoryview,
        stopped: Callable[[], bool],
    ) -> str:  # fmt: skip
        """Send one part; return its tag."""
        query = (("partNumber", str(number)), ("uploadId", upload))

        def check(headers: Mapping[str, str], _: str) -> None:
            if not headers.get("etag"):
                raise Broken("the server's answer has no ETag")

        headers, _ = self._send("PUT", key, query, body, stopped=stopped, check=check)
        return headers["etag"]

    def complete(self, key: str, upload: str, tags: Mapping[int, str], size_bytes: int) -> None:
        """Make the parts an object, which has ``size_bytes`` then."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{tags[number]}</ETag></Part>"
            for number in sorted(tags)
        )
        body = (
            '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"{parts}</CompleteMultipartUpload>"
        )
        query = (("uploadId", upload),)

        def check(_: Mapping[str, str], text: str) -> None:
            # Status 200 comes before the work is done: only the document says that it is.
            if "CompleteMultipartUploadResult" not in text:
                raise Broken("the server's answer does not say that the object is complete")

        # Not on a kept connection: were it closed just now, it would be sent twice, unseen here.
        self._send(
            "POST", key, query, body.encode(),
            found_after=lambda: self._size_bytes(key) == size_bytes, fresh=True, check=check,
        )  # fmt: skip

    def abort(self, key: str, upload: str) -> None:
        """Give up an upload: its parts would be paid for. Not at the price of a long wait."""
        until = time.monotonic() + _ABORT_SECONDS
        query = (("uploadId", upload),)
        self._send("DELETE", key, query, limit=2, stopped=lambda: time.monotonic() > until)

    def delete(self, key: str, stopped: Callable[[], bool] = lambda: False) -> None:
        """Remove an object, if it is there."""
        self._send("DELETE", key, (), verb="deleted", stopped=stopped)

    def has(self, key: str) -> bool:
        """Return whether there is an object."""
        return self._size_bytes(key) is not None

    def _size_bytes(self, key: str) -> int | None:
        """Return the size of an object, -1 where the server tells none; None: it is not there."""
        attempts = self.client.attempts(self.uri(key), "downloaded")
        while True:
            try:
                with self.client.request("HEAD", self.name, encoded_path(key)) as answer:
                    size = answer.headers.get("content-length", "")
                    return int(size) if size.isdecimal() else -1
            except (Broken, Refusal) as error:
                if isinstance(error, Refusal) and error.status == 404:
                    return None
                attempts.failed(error)

    def _send(
        self,
        method: str,
        key: str,
        query: tuple[tuple[str, str], ...],
        body: bytes | memoryview = b"",
        *,
        verb: str = "uploaded",
        headers: Mapping[str, str] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        found_after: Callable[[], bool] = lambda: False,
        limit: int | None = None,
        fresh: bool = False,
        check: Callable[[Mapping[str, str], str], None] = lambda headers, text: None,
    ) -> tuple[dict[str, str], str]:
        """Return the headers and the text of the answer.

        ``found_after`` tells whether an attempt whose answer was lost has done it all the same;
        ``check`` raises Broken where an answer is none of S3's.
        """
        attempts = self.client.attempts(self.uri(key), verb, stopped, limit)
        sent = dict(headers or {})
        if body:
            # The server compares it, so that nothing damaged is stored.
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            sent["content-md5"] = b64encode(digest).decode()
        failures = 0
        while True:
            try:
                with self.client.request(
                    method, self.name, encoded_path(key),
                    query=encoded_query(query), headers=sent, body=body,
                    stopped=stopped, fresh=fresh,
                ) as answer:  # fmt: skip
                    text = answer.read().decode("utf-8", "replace")
                if "<Error>" in text:  # CompleteMultipartUpload fails with status 200
                    raise Refusal(answer.status, between(text, "Code"), between(text, "Message"))
                check(answer.headers, text)
                return answer.headers, text
            except (Broken, Refusal) as error:
                lost = failures and isinstance(error, Refusal) and error.code == "NoSuchUpload"
                if lost and found_after():
                    return {}, ""
                attempts.failed(error)
                failures += 1


class Load:
    """How many bytes are in memory on their way: adding to them waits for room."""

    def __init__(self, crew: Crew) -> None:
        self._crew, self._flying = crew, 0
        self._changed = threading.Condition()

    def submit(self, size_bytes: int, work: Callable[[], None]) -> None:
        """Have ``work``, which holds so many bytes, done as soon as there is room."""
        with self._changed:
            while self._flying and self._flying + size_bytes > _FLYING_BYTES:
                self._crew.check()
                self._changed.wait(0.25)
            self._flying += size_bytes

        def done() -> None:
            try:
                work()
            finally:
                with self._changed:
                    self._flying -= size_bytes
                    self._changed.notify()

        self._crew.submit(done)


class Upload:
    """One object that is sent while it is made. Raises DataError, or Stopped."""

    def __init__(self, bucket: Bucket, key: str, crew: Crew) -> None:
        self._bucket, self._key, self._crew = bucket, key, crew
        self._load = Load(crew)
        self._buffer = bytearray()
        self._size_bytes = 0
        self._number = 0
        self._name: str | None = None
        self._tags: dict[int, str] = {}

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take all of ``data``; whole parts are sent."""
        rest = memoryview(data).cast("B")
        self._size_bytes += len(rest)
        while rest:
            room = part_size(self._number + 1) - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]
            if len(self._buffer) == part_size(self._number + 1):
                self._send()

    def finish(self) -> None:
        """Send what is left; the object is there when this returns."""
        if self._name is None:
            self._bucket.put(self._key, memoryview(self._buffer), self._crew.is_stopped)
            return
        if self._buffer:
            self._send()
        self._crew.wait()
        self._bucket.complete(self._key, self._name, self._tags, self._size_bytes)
        self._name = None

    def abort(self) -> None:
        """Remove the parts that were sent, if the object is not complete."""
        if self._name is not None:
            try:
                self._bucket.abort(self._key, self._name)
            except Exception as error:  # must not hide what went wrong
                log.warning(
                    "%s: parts of a failed upload may be left: %s",
                    self._bucket.uri(self._key), error,
                )  # fmt: skip

    def _send(self) -> None:
        if self._name is None:
            self._name = self._bucket.create(self._key)
        self._number += 1
        name, number, body = self._name, self._number, self._buffer
        self._buffer = bytearray()

        def send() -> None:
            self._tags[number] = self._bucket.part(
                self._key, name, number, memoryview(body), self._crew.is_stopped
            )

        self._load.submit(len(body), send)


def part_size(number: int) -> int:
    """Return how many bytes the part with this number, from 1, has."""
    return PART_BYTES << ((number - 1) // _PARTS)


def pieces(source: int, size_bytes: int) -> Iterator[bytes]:
    """Yield what a file holds, at most ``size_bytes``."""
    position = 0
    while position < size_bytes:
        piece = os.pread(source, min(size_bytes - position, 1 << 20), position)
        if not piece:
            return
        position += len(piece)
        yield piece
