"""Objects are written: whole, or in parts that are sent while the rest is still being made."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from queue import Empty, Full, Queue
from typing import Any

from sm_runtime.job.errors import DataError
from sm_runtime.storage.s3.connection import Bucket, Connection
from sm_runtime.storage.s3.failures import DAMAGED, Refused, cause_of
from sm_runtime.storage.threads import TICK_SECONDS, Stopped

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
_MOST_PARTS = 9_000  # S3 takes 10,000
_FLYING_BYTES = 64 << 20
_AT_ONCE = 6
_PIECE_BYTES = 1 << 20
_PIECES = 4
_GIVE_UP_SECONDS = 0.75
_ABORT_SECONDS = 2.0
_SKEW = timedelta(minutes=5)
_TOKEN = "sm-runtime-upload"
"""The metadata of an object in parts that says by which upload it was made."""


class Target:
    """Sends requests that change one bucket. Raises DataError, or Stopped."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection, self.name = connection, name

    def uri(self, key: str) -> str:
        """Return the URI of a key."""
        return f"s3://{self.name}/{key}"

    def put(self, key: str, body: bytes, stopped: Callable[[], bool]) -> None:
        """Write an object with one request; a body that was damaged on its way is sent again."""

        def work(bucket: Bucket) -> None:
            if bucket.names(key):
                import obstore

                obstore.put(bucket.store, key, body, use_multipart=False)
            else:
                extras = self.connection.extras(writes=True)
                bucket.client.put_object(Bucket=self.name, Key=key, Body=body, **extras)

        again_if(DAMAGED, lambda: self._ask(key, "uploaded", work, stopped))

    def delete(self, keys: list[str], stopped: Callable[[], bool]) -> None:
        """Remove objects, at most 1,000; those that are not there are no error."""
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def work(bucket: Bucket) -> None:
            extras = self.connection.extras()
            if len(keys) == 1:
                bucket.client.delete_object(Bucket=self.name, Key=keys[0], **extras)
                return
            answer = bucket.client.delete_objects(Bucket=self.name, Delete=wanted, **extras)
            for error in answer.get("Errors", ()):
                said = f"{error.get('Code')}: {error.get('Message')}"
                raise DataError(f"{self.uri(error.get('Key'))} cannot be deleted: {said}")

        self._ask(keys[0], "deleted", work, stopped)

    def head(self, key: str, stopped: Callable[[], bool] = bool) -> dict[str, Any] | None:
        """Return what is known of an object; None: there is none."""
        extras = self.connection.extras(reads=True)

        def work(bucket: Bucket) -> dict[str, Any]:
            answer: dict[str, Any] = bucket.client.head_object(Bucket=self.name, Key=key, **extras)
            return answer

        try:
            found: dict[str, Any] = self._ask(key, "downloaded", work, stopped)
            return found
        except Refused as error:
            if error.cause.is_absent:
                return None
            raise

    def abort(self, key: str, since: datetime) -> None:
        """Give up the uploads of ``key`` that were begun after ``since``: parts are paid for."""
        until = time.monotonic() + _ABORT_SECONDS

        def work(bucket: Bucket) -> None:
            answer = bucket.client.list_multipart_uploads(Bucket=self.name, Prefix=key)
            for upload in answer.get("Uploads", ()):
                if upload["Key"] == key and upload["Initiated"] >= since - _SKEW:
                    bucket.client.abort_multipart_upload(
                        Bucket=self.name, Key=key, UploadId=upload["UploadId"]
                    )

        try:
            self._ask(key, "uploaded", work, lambda: time.monotonic() > until)
        except Exception as error:  # must not hide what went wrong
            why = "no answer in time" if isinstance(error, Stopped) else error
            log.warning("%s: parts of a failed upload may be left: %s", self.uri(key), why)

    def _ask(
        self, key: str, verb: str, work: Callable[[Bucket], Any], stopped: Callable[[], bool]
    ) -> Any:
        connection = self.connection
        return connection.call(
            lambda: connection.ask(self.name, self.uri(key), verb, work), stopped
        )


class Upload:
    """One object that is sent while it is made; ``most_bytes`` is what it may have at most.

    The writer only fills a queue: a thread of its own is what waits in the library, and is left
    behind if it does not come back when the upload is given up.
    """

    def __init__(
        self, target: Target, key: str, stopped: Callable[[], bool], most_bytes: int = 0
    ) -> None:
        self._target, self._key, self._stopped = target, key, stopped
        self._part_bytes = max(PART_BYTES, -(-most_bytes // _MOST_PARTS))
        self._buffer = bytearray()
        self._queue: Queue[bytes | None] = Queue(_PIECES)
        self._size_bytes = 0
        self._token = os.urandom(16).hex()
        self._begun: datetime | None = None
        self._is_given_up = self._is_all_sent = False
        self._error: BaseException | None = None
        self._done = threading.Event()

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take all of ``data``; what is more than a part is on its way."""
        view = memoryview(data).cast("B")
        self._size_bytes += len(view)
        for start in range(0, len(view), PART_BYTES):
            piece = view[start : start + PART_BYTES]
            if self._begun is None and len(self._buffer) + len(piece) <= PART_BYTES:
                self._buffer += piece
                continue
            self._begin()
            if self._buffer and len(piece) >= _PIECE_BYTES:
                self._flush()
            if len(piece) >= _PIECE_BYTES:
                self._enqueue(bytes(piece))
                continue
            self._buffer += piece
            if len(self._buffer) >= _PIECE_BYTES:
                self._flush()

    def finish(self) -> None:
        """Send what is left; the object is there when this returns."""
        if self._begun is None:
            self._target.put(self._key, bytes(self._buffer), self._stopped)
            return
        if self._buffer:
            self._flush()
        self._enqueue(None)
        while not self._done.wait(TICK_SECONDS):
            if self._stopped():
                raise Stopped
        self._check()
        self._begun = None

    def abort(self) -> None:
        """Remove the parts that were sent, if the object is not complete."""
        if self._begun is None:
            return
        self._is_given_up = True
        # The library aborts it whenever it fails; not while it waits for a server.
        if not (self._done.wait(_GIVE_UP_SECONDS) and _library_aborts()):
            self._target.abort(self._key, self._begun)
        self._begun = None

    def _begin(self) -> None:
        if self._begun is None:
            self._begun = datetime.now(timezone.utc)
            threading.Thread(target=self._run, name="s3-upload", daemon=True).start()

    def _flush(self) -> None:
        piece = bytes(self._buffer)
        self._buffer.clear()
        self._enqueue(piece)

    def _enqueue(self, piece: bytes | None) -> None:
        while True:
            self._check()
            if self._stopped():
                raise Stopped
            try:
                self._queue.put(piece, timeout=TICK_SECONDS)
            except Full:
                continue
            return

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        connection, uri = self._target.connection, self._target.uri(self._key)
        try:
            with connection.errors(uri, "uploaded"):
                bucket = connection.bucket(self._target.name)
                try:
                    self._send(bucket)
                except Exception as error:
                    if not (self._is_all_sent and self._is_complete()):
                        connection.mends(bucket, cause_of(error))  # for the next attempt
                        raise
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def _send(self, bucket: Bucket) -> None:
        if not bucket.names(self._key):
            self._send_by_boto3(bucket)
            return
        import obstore

        obstore.put(
            bucket.store,
            self._key,
            self._pieces(),
            chunk_size=self._part_bytes,
            max_concurrency=max(1, min(_AT_ONCE, _FLYING_BYTES // self._part_bytes - 2)),
            attributes={_TOKEN: self._token},
        )

    def _send_by_boto3(self, bucket: Bucket) -> None:
        from s3transfer.manager import TransferConfig, TransferManager

        extras = self._target.connection.extras(writes=True)
        config = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=self._part_bytes,
            max_request_concurrency=_AT_ONCE, max_in_memory_upload_chunks=_AT_ONCE,
        )  # fmt: skip
        with TransferManager(bucket.client, config) as manager:
            reader = _Reader(self._pieces())
            manager.upload(reader, bucket.name, self._key, extra_args=extras).result()

    def _pieces(self) -> Iterator[bytes]:
        """Yield what is written, until its end; raise Stopped, which aborts the upload."""
        while True:
            if self._is_given_up or self._stopped():
                raise Stopped
            try:
                piece = self._queue.get(timeout=TICK_SECONDS)
            except Empty:
                continue
            if piece is None:
                self._is_all_sent = True
                return
            yield piece

    def _is_complete(self) -> bool:
        """Return whether the server has the object, though its answer was lost or not its own.

        One of an earlier attempt, which may be as long, has another token.
        """
        try:
            found = self._target.head(self._key, self._stopped)
        except (DataError, Stopped):
            return False
        return (
            found is not None
            and found["Metadata"].get(_TOKEN) == self._token
            and found["ContentLength"] == self._size_bytes
        )


class _Reader:
    """What is written, as a file that is read in order."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int = -1) -> bytes:
        """Return the next ``size`` bytes, fewer at the end only."""
        found = [self._rest]
        length = len(self._rest)
        while size < 0 or length < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            found.append(piece)
            length += len(piece)
        data = b"".join(found)
        if size < 0:
            size = length
        self._rest = data[size:]
        return data[:size]


def again_if(codes: frozenset[str], work: Callable[[], None]) -> None:
    """Do ``work``, and once more if it is refused for one of ``codes``."""
    try:
        work()
    except Refused as error:
        if error.cause.code not in codes:
            raise
        log.info("%s; once more", error)
        work()


def pieces(source: int, size_bytes: int) -> Iterator[bytes]:
    """Yield what a file holds, at most ``size_bytes``."""
    position = 0
    while position < size_bytes:
        piece = os.pread(source, min(size_bytes - position, _PIECE_BYTES), position)
        if not piece:
            return
        position += len(piece)
        yield piece


def _library_aborts() -> bool:
    """Whether obstore aborts an upload that fails: not 0.11, the last one for Python 3.10."""
    from obstore import __version__

    return tuple(map(int, __version__.split(".")[:2])) >= (0, 12)
