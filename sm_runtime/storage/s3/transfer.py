"""Objects are read: many at once into files, or one in order into memory.

obstore moves the bytes, one request for a small object and one for each range of a large one. boto3
reads what obstore cannot name, and ranges of a store that answers them with status 200.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sm_runtime.job.errors import DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.s3.connection import Bucket, Connection
from sm_runtime.storage.s3.failures import CHANGED, NO_RANGES, UNNAMED, Cause, Refused, cause_of
from sm_runtime.storage.threads import TICK_SECONDS, Stopped, Workers
from sm_runtime.storage.writing import new_file, not_written, part_of, replaced

if TYPE_CHECKING:
    from obstore import Bytes

    Buffer = Bytes | bytes

log = logging.getLogger(__name__)

THREADS = 16
RANGE_BYTES = 8 << 20
"""What is larger is read in ranges of so many bytes."""
_RANGES_AT_ONCE = 8
"""Each is in memory as a whole."""
_TOGETHER = 8
"""How many small objects a thread is given at once."""
_PIECE_BYTES = 1 << 20
_STREAM_ATTEMPTS = 8
_VERSIONS = 4096
"""How many objects are remembered: more than are ever read at once in ranges."""


class Versions:
    """The tags of objects whose ranges are asked for one by one: all are of the same version.

    The tag of the listing is not asked for: not every store has the same one there.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, str | None], str] = {}
        self._lock = threading.Lock()

    def of(self, blob: Blob) -> str | None:
        """Return the tag that an earlier answer had."""
        name = blob.uri, blob.size_bytes, blob.etag
        with self._lock:
            etag = self._known.pop(name, None)
            if etag is not None:
                self._known[name] = etag  # the last one, now
        return etag

    def learn(self, blob: Blob, etag: str | None) -> None:
        """Take note of the tag of an answer; raise Refused where the first one had another.

        Ranges that were asked for side by side may all have been so before the first answer, and
        not every store knows If-Match.
        """
        if not etag:
            return
        with self._lock:
            first = self._known.setdefault((blob.uri, blob.size_bytes, blob.etag), etag)
            if len(self._known) > _VERSIONS:
                del self._known[next(iter(self._known))]
        if first != etag:
            raise Refused(f"{blob.uri} cannot be downloaded: it has changed meanwhile", CHANGED)


class Source:
    """Reads objects of a connection's buckets. Raises DataError."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.versions = Versions()
        self._rangeless: set[str] = set()

    def whole(self, blob: Blob) -> Any:
        """Return all of a small object."""

        def work(bucket: Bucket) -> Any:
            if not bucket.names(blob.key):
                return b"".join(self.stream(bucket, blob, 0, blob.size_bytes))
            import obstore

            return obstore.get(bucket.store, blob.key).bytes()

        try:
            data = self.ask(blob, work)
        except Refused as error:
            if error.cause.code != NO_RANGES:
                raise
            data = self.ask(blob, work)  # it was cut, and cannot be resumed
        if len(data) != blob.size_bytes:
            raise _resized(blob, len(data))
        return data

    def range(self, blob: Blob, start: int, end: int) -> Any:
        """Return obstore's answer for the bytes from ``start`` to ``end`` of an object."""
        import obstore

        known = self.versions.of(blob)

        def work(bucket: Bucket) -> Any:
            if not bucket.names(blob.key):
                raise Refused(f"{blob.uri} cannot be named", Cause(UNNAMED))
            options: dict[str, Any] = {"range": (start, end)}
            if known:
                options["if_match"] = known
            answer = obstore.get(bucket.store, blob.key, options=options)  # type: ignore[arg-type]
            meta = answer.meta
            if meta["size"] != blob.size_bytes:
                raise _resized(blob, meta["size"])
            self.versions.learn(blob, meta["e_tag"])
            return answer

        return self.ask(blob, work)

    def read(self, blob: Blob, start: int, end: int) -> Any:
        """Return the bytes from ``start`` to ``end`` of an object."""
        answer = self.range(blob, start, end)
        with self.connection.errors(blob.uri, "downloaded"):
            return answer.bytes()

    def pieces(
        self, blob: Blob, start: int, end: int, stopped: Callable[[], bool]
    ) -> Iterator[Any]:
        """Yield the bytes from ``start`` to ``end`` of an object, in order."""
        call, position, name = self.connection.call, start, bucket_of(blob)
        if blob.size_bytes <= RANGE_BYTES and (start, end) == (0, blob.size_bytes):
            yield call(lambda: self.whole(blob), stopped)
            return
        while position < end and name not in self._rangeless:
            last = min(position + RANGE_BYTES, end)
            try:
                yield call(partial(self.read, blob, position, last), stopped)
            except Refused as error:
                if error.cause.code not in (NO_RANGES, UNNAMED):
                    raise
                if error.cause.code == NO_RANGES:
                    self._rangeless.add(name)
                break
            position = last
        if position < end:
            bucket: Bucket = call(lambda: self.ask(blob, lambda found: found), stopped)
            coming = self.stream(bucket, blob, position, end)
            while (piece := call(lambda: self._next(blob, coming), stopped)) is not None:
                yield piece

    def poured(self, blob: Blob) -> Iterator[Any]:
        """Yield a large object that is read with one request: its store sends no ranges."""
        import obstore

        def work(bucket: Bucket) -> Iterator[Any]:
            if not bucket.names(blob.key):
                return self.stream(bucket, blob, 0, blob.size_bytes)
            answer = obstore.get(bucket.store, blob.key)
            if answer.meta["size"] != blob.size_bytes:
                raise _resized(blob, answer.meta["size"])
            return iter(answer.stream(min_chunk_size=_PIECE_BYTES))

        return self.each(blob, self.ask(blob, work))

    def each(self, blob: Blob, coming: Iterator[Any]) -> Iterator[Any]:
        """Yield what comes of an object."""
        while (piece := self._next(blob, coming)) is not None:
            yield piece

    def _next(self, blob: Blob, coming: Iterator[Any]) -> Any:
        with self.connection.errors(blob.uri, "downloaded"):
            return next(coming, None)

    def stream(self, bucket: Bucket, blob: Blob, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to ``end`` of an object, as boto3 reads them.

        What is cut is asked for from the last byte on.
        """
        position, failures, body = start, 0, None
        while position < end:
            try:
                if body is None:
                    body = self._body(bucket, blob, position, end)
                piece = body.read(min(_PIECE_BYTES, end - position))
                if not piece:
                    raise ConnectionError(f"the body ended {end - position} bytes early")
            except (DataError, Stopped):
                raise
            except Exception as error:
                failures += 1
                if failures >= _STREAM_ATTEMPTS or cause_of(error).code:
                    raise
                log.info("%s: %s; once more", blob.uri, error)
                body = None
                continue
            position += len(piece)
            yield piece

    def _body(self, bucket: Bucket, blob: Blob, start: int, end: int) -> Any:
        extras = self.connection.extras(reads=True)
        if known := self.versions.of(blob):
            extras["IfMatch"] = known
        if (start, end) != (0, blob.size_bytes):
            extras["Range"] = f"bytes={start}-{end - 1}"
        answer = bucket.client.get_object(Bucket=bucket.name, Key=blob.key, **extras)
        named = answer.get("ContentRange", "")
        size = named.rpartition("/")[2] if named else str(answer["ContentLength"])
        if size.isdecimal() and int(size) != blob.size_bytes:
            raise _resized(blob, int(size))
        self.versions.learn(blob, answer.get("ETag"))
        if "Range" in extras and not named:
            skip = start
            while skip:
                skip -= len(answer["Body"].read(min(skip, _PIECE_BYTES)) or _ended())
        return answer["Body"]

    def ask(self, blob: Blob, work: Callable[[Bucket], Any]) -> Any:
        """Do ``work`` with the bucket of an object; see ``Connection.ask``."""
        return self.connection.ask(bucket_of(blob), blob.uri, "downloaded", work)


class Body:
    """The bytes of one object in order; see ``storage.Body``."""

    def __init__(self, pieces: Iterator[Any]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of ``buffer``; return how many bytes, 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece).cast("B")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class Fetch:
    """One call of ``Origin.fetch``."""

    def __init__(
        self, source: Source, progress: Callable[[int], None], stopped: Callable[[], bool]
    ) -> None:
        self._source, self._progress = source, progress
        self._workers = Workers(THREADS, stopped)
        self._ranges = threading.BoundedSemaphore(_RANGES_AT_ONCE)
        self._folders: set[str] = set()
        self._unfinished: set[_File] = set()

    def run(self, wanted: Iterable[tuple[Blob, str]]) -> None:
        """Have all downloaded, or raise."""
        try:
            with self._workers as workers:
                few: list[tuple[Blob, str]] = []
                for blob, path in wanted:
                    if blob.size_bytes > RANGE_BYTES:
                        for work in self._parts(blob, path):
                            workers.submit(work)
                        continue
                    few.append((blob, path))
                    if len(few) == _TOGETHER or blob.size_bytes > _PIECE_BYTES:
                        workers.submit(partial(self._few, few))
                        few = []
                if few:
                    workers.submit(partial(self._few, few))
        finally:
            for file in list(self._unfinished):
                file.discard()

    def _few(self, few: Sequence[tuple[Blob, str]]) -> None:
        for blob, path in few:
            self._workers.check()
            data = self._source.whole(blob)
            self._workers.check()  # this thread may have been left behind
            with _errors_named(blob, path):
                self._make_folder(path)
                with replaced(path) as descriptor:
                    _write(descriptor, data, 0)
            self._progress(blob.size_bytes)

    def _parts(self, blob: Blob, path: str) -> Iterator[Callable[[], None]]:
        """Yield the work for a large object."""
        with _errors_named(blob, path):
            self._make_folder(path)
            file = _File(blob, path, self._unfinished)
        for start in range(0, blob.size_bytes, RANGE_BYTES):
            yield partial(self._part, file, start, min(start + RANGE_BYTES, blob.size_bytes))

    def _part(self, file: _File, start: int, end: int) -> None:
        """Download a range; the first tells of which version the others have to be."""
        blob = file.blob
        while start and not file.is_known.wait(TICK_SECONDS):
            self._workers.check()
        if file.is_poured:
            return
        with self._ranges:
            self._workers.check()
            try:
                answer = self._source.range(blob, start, end)
            except Refused as error:
                if start or error.cause.code not in (NO_RANGES, UNNAMED):
                    raise
                self._pour(file)
                return
            file.is_known.set()
            # In pieces: as a whole it would be in memory twice.
            for piece in self._source.each(blob, iter(answer.stream(min_chunk_size=_PIECE_BYTES))):
                self._workers.check()
                self._filled(file, piece, start)
                start += len(piece)
        if start != end:
            raise _resized(blob, start)

    def _pour(self, file: _File) -> None:
        """Download all of a large object with one request."""
        file.is_poured = True
        file.is_known.set()
        position = 0
        for piece in self._source.poured(file.blob):
            self._workers.check()
            self._filled(file, piece, position)
            position += len(piece)
        if position != file.blob.size_bytes:
            raise _resized(file.blob, position)

    def _filled(self, file: _File, data: Buffer, start: int) -> None:
        with _errors_named(file.blob, file.path):
            file.write(data, start)
        self._progress(len(data))

    def _make_folder(self, path: str) -> None:
        folder = os.path.dirname(path)
        if folder not in self._folders:
            os.makedirs(folder or ".", exist_ok=True)
            self._folders.add(folder)


class _File:
    """A file whose parts arrive in any order; it has its name when all are there."""

    def __init__(self, blob: Blob, path: str, unfinished: set[_File]) -> None:
        self.blob, self.path, self._unfinished = blob, path, unfinished
        self.is_known, self.is_poured = threading.Event(), False
        self._part, self._missing = part_of(path), blob.size_bytes
        self._lock, self._writers, self._is_over = threading.Lock(), 0, False
        self._descriptor = new_file(self._part)
        unfinished.add(self)

    def write(self, data: Buffer, start: int) -> None:
        """Write a part; the last one gives the file its name."""
        with self._lock:
            if self._is_over:
                raise Stopped  # this thread was left behind
            self._writers += 1
        written = 0
        try:
            _write(self._descriptor, data, start)
            written = len(data)
        finally:
            with self._lock:
                self._writers -= 1
                self._missing -= written
                is_last = not self._missing
                if self._is_over and not self._writers:
                    os.close(self._descriptor)
        if is_last:
            self._close()
            os.rename(self._part, self.path)

    def discard(self) -> None:
        """Remove what is not complete."""
        self._close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._part)

    def _close(self) -> None:
        with self._lock:
            if not self._is_over and not self._writers:
                os.close(self._descriptor)
            self._is_over = True
        self._unfinished.discard(self)


def bucket_of(blob: Blob) -> str:
    """Return the bucket that holds an object."""
    return blob.uri[5 : len(blob.uri) - len(blob.key) - 1]


def _resized(blob: Blob, size_bytes: int) -> DataError:
    return DataError(
        f"{blob.uri} cannot be downloaded: it has {size_bytes} bytes now, {blob.size_bytes} were"
        " expected"
    )


@contextlib.contextmanager
def _errors_named(blob: Blob, path: str) -> Iterator[None]:
    """Turn what the file system says into a sentence with the object, the path and the space."""
    try:
        yield
    except OSError as error:
        raise not_written(blob, path, error) from error


def _write(descriptor: int, data: Buffer, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _ended() -> bytes:
    raise ConnectionError("the body ended early")
