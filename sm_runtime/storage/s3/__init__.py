"""Objects of S3, and of what speaks its protocol: ``S3Origin`` to read, ``S3Store`` to write.

obstore moves the bytes; botocore knows who we are and where buckets are, lists them, and reads what
obstore cannot name. None of it is imported, and no request is sent, before something is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from sm_runtime.job import location
from sm_runtime.job.errors import CodeError, ConfigError, DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.s3.connection import PAGE, Bucket, Connection
from sm_runtime.storage.s3.failures import (
    DAMAGED,
    ELSEWHERE,
    EXPIRED,
    Cause,
    Refused,
    missing,
    stop_is_an_error,
)
from sm_runtime.storage.s3.transfer import Body, Fetch, Source
from sm_runtime.storage.s3.upload import PART_BYTES, Target, Upload, again_if, pieces
from sm_runtime.storage.threads import Stopped, Workers
from sm_runtime.storage.writing import Room

__all__ = [
    "S3Origin", "S3Store", "download", "missing", "parse", "problems", "read", "split",
]  # fmt: skip

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

log = logging.getLogger(__name__)

_OTHER_ANSWERS = 3

_THREADS = 6
_WAITING = 2
"""How many short objects, of a part at most, wait for a thread."""
_DELETED_AT_ONCE = 1000


class S3Origin:
    """Buckets of one endpoint; see ``Origin``."""

    def __init__(
        self, uri: str, environ: Mapping[str, str], region: str, *, stall_seconds: float = 30
    ) -> None:
        self._connection = Connection(uri, environ, region, stall_seconds=stall_seconds)
        self.source = Source(self._connection)

    def list(self, uri: str, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[Blob]:
        """Yield the objects whose key begins with that of ``uri``; see ``Origin``."""
        bucket, prefix = split(uri)
        with stop_is_an_error(uri):
            for page in _pages(self._connection, bucket, prefix, stopped):
                yield from page

    def stat(self, uri: str, *, stopped: Callable[[], bool] = lambda: False) -> Blob:
        """Return the one object at ``uri``."""
        bucket, key = _split_object(uri)
        with stop_is_an_error(uri):
            found = Target(self._connection, bucket).head(key, stopped)
        if found is None:
            raise DataError(f"{uri} does not exist")
        etag = found.get("ETag", "").removeprefix("W/").strip('"')
        return Blob(uri=uri, key=key, size_bytes=found["ContentLength"], etag=etag or None)

    @contextlib.contextmanager
    def open(
        self,
        blob: Blob,
        offset_bytes: int = 0,
        length_bytes: int | None = None,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Body]:
        """Read an object, or a range of it; see ``Origin``."""
        end = blob.size_bytes
        if length_bytes is not None:
            end = min(end, offset_bytes + length_bytes)
        with stop_is_an_error(blob.uri):
            yield Body(self.source.pieces(blob, offset_bytes, end, stopped))

    def fetch(
        self,
        wanted: Iterable[tuple[Blob, str]],
        *,
        progress: Callable[[int], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Download each object to its path; see ``Origin``."""
        with stop_is_an_error("the objects"):
            Fetch(self.source, progress, stopped).run(wanted)

    def close(self) -> None:
        """End the threads."""
        self._connection.close()


class S3Store:
    """Objects below a prefix; see ``Store``.

    An object is replaced as a whole once all of it has arrived. A tree cannot be: each of its files
    replaces its own, and what only an earlier attempt wrote is deleted at the end, so that a reader
    may see files of both until then. Whether a file is executable is lost.
    """

    def __init__(
        self, target: Target, prefix: str, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._target, self._prefix, self._stopped = target, prefix, stopped

    @classmethod
    def at(
        cls, uri: str, parts: Sequence[str], environ: Mapping[str, str], region: str,
        kms_key: str | None, *, stall_seconds: float = 30,
        stopped: Callable[[], bool] = lambda: False,
    ) -> S3Store:  # fmt: skip
        """Return the store at an ``s3:`` URI; see ``open_store``."""
        try:
            name, prefix = split(uri)
            connection = Connection(
                uri, environ, region, stall_seconds=stall_seconds, kms_key=kms_key
            )
        except DataError as error:
            raise ConfigError(f"OutputDataConfig.S3OutputPath: {error}") from error
        folders = [part for part in (prefix.rstrip("/"), *parts) if part]
        return cls(Target(connection, name), "".join(f"{name}/" for name in folders), stopped)

    def locate(self, key: str) -> str:
        """Return the URI of ``key``."""
        return self._target.uri(self._prefix + key)

    def exists(self, key: str) -> bool:
        """Return whether there is an object ``key``, or any below it."""
        with _errors():
            whole = self._prefix + key
            if self._target.head(whole, self._stopped) is not None:
                return True
            return any(self._pages(whole + "/"))

    @contextlib.contextmanager
    def stream(self, key: str, most_bytes: int = 0) -> Iterator[Upload]:
        """Write the object ``key``; see ``Store``. Parts are sent while the block goes on."""
        upload = Upload(self._target, self._prefix + key, self._stopped, most_bytes)
        with _errors():
            try:
                yield upload
                upload.finish()
            finally:
                upload.abort()

    @contextlib.contextmanager
    def tree(self, key: str) -> Iterator[_Tree]:
        """Write the objects below ``key``; see ``Store``."""
        prefix = f"{self._prefix}{key}/"
        with _errors():
            with Workers(_THREADS, self._stopped, waiting=_WAITING) as workers:
                tree = _Tree(self, f"{key}/", workers)
                yield tree
            left: list[str] = []
            for blob in self._of_an_earlier_attempt(prefix):
                if blob.key[len(prefix) :] not in tree.names:
                    left.append(blob.key)
                if len(left) == _DELETED_AT_ONCE:
                    self._target.delete(left, self._stopped)
                    left = []
            if left:
                self._target.delete(left, self._stopped)

    def put(self, key: str, source: int, size_bytes: int) -> None:
        """Copy a file to ``key``; see ``Store``."""
        if self.copy(key, source, size_bytes) != size_bytes:
            raise OSError(errno.EIO, "the file has become shorter while it was read")

    def delete(self, key: str) -> None:
        """Remove the object ``key``; see ``Store``."""
        with _errors():
            self._target.delete([self._prefix + key], self._stopped)

    def copy(self, key: str, source: int, size_bytes: int) -> int:
        """Copy a file; return how many bytes it had: the object is written if none is missing."""
        copied = 0

        def send() -> None:
            nonlocal copied
            copied = 0
            upload = Upload(self._target, self._prefix + key, self._stopped, size_bytes)
            try:
                for piece in pieces(source, size_bytes):
                    upload.write(piece)
                    copied += len(piece)
                if copied == size_bytes:
                    upload.finish()
            finally:
                upload.abort()

        with _errors():
            again_if(DAMAGED | EXPIRED | ELSEWHERE, send)
        return copied

    def close(self) -> None:
        """End the threads."""
        self._target.connection.close()

    def send(self, key: str, body: bytes, stopped: Callable[[], bool]) -> None:
        """Write a short object."""
        self._target.put(self._prefix + key, body, stopped)

    def _of_an_earlier_attempt(self, prefix: str) -> Iterator[Blob]:
        """Yield what is below ``prefix``, nothing where that may not be listed: all is saved."""
        try:
            yield from self._blobs(prefix)
        except Refused as error:
            if error.cause.code != "AccessDenied":
                raise
            log.warning("files of an earlier attempt may still be there: %s", error)

    def _pages(self, prefix: str) -> Iterator[Sequence[Blob]]:
        return _pages(self._target.connection, self._target.name, prefix, self._stopped)

    def _blobs(self, prefix: str) -> Iterator[Blob]:
        for page in self._pages(prefix):
            yield from page


class _Tree:
    """Objects below a prefix, written side by side."""

    def __init__(self, store: S3Store, prefix: str, workers: Workers) -> None:
        self._store, self._prefix, self._workers = store, prefix, workers
        self.names: set[str] = set()

    def add(self, name: str, source: int, size_bytes: int, *, executable: bool) -> int:
        """Copy a file; a short one is on its way when this returns."""
        self.names.add(name)
        key = self._prefix + name
        if size_bytes > PART_BYTES:
            return self._store.copy(key, source, size_bytes)
        body = b"".join(pieces(source, size_bytes))
        if len(body) == size_bytes:
            with _errors():
                workers = self._workers
                workers.submit(partial(self._store.send, key, body, workers.is_stopped))
        return len(body)


def _pages(
    connection: Connection, name: str, prefix: str, stopped: Callable[[], bool]
) -> Iterator[list[Blob]]:
    """Yield the objects whose key begins with ``prefix``, a page at a time. Raises DataError.

    botocore asks for a page, which the standard library's parser reads: botocore's own takes 70 ms
    for 1,000 keys, this one 5. obstore's listing is not that of S3: it compares whole parts of
    paths, and fails for keys that it cannot name.
    """
    uri = f"s3://{name}/{prefix}"
    wanted: dict[str, Any] = {"Bucket": name, "Prefix": prefix, "EncodingType": "url"}
    wanted |= connection.extras()

    def page() -> bytes:
        return connection.ask(name, uri, "listed", lambda bucket: _page(bucket, wanted))

    while True:
        root = connection.call(lambda: _page_or_error(page, connection, uri), stopped)
        space = root.tag.partition("ListBucketResult")[0]  # of the names, in braces
        is_encoded = root.findtext(f"{space}EncodingType") == "url"
        blobs = _entries(root.iterfind(f"{space}Contents"), space, name, is_encoded)
        is_truncated = root.findtext(f"{space}IsTruncated") == "true"
        token = root.findtext(f"{space}NextContinuationToken")
        last = blobs[-1].key if blobs else None
        del root
        yield blobs
        if not is_truncated:
            return
        # Not every store has tokens.
        option, value = ("ContinuationToken", token) if token else ("StartAfter", last)
        if not value or value == wanted.get(option):
            raise DataError(f"{uri} cannot be listed: the server repeats itself")
        wanted[option] = value


def _page_or_error(page: Callable[[], bytes], connection: Connection, uri: str) -> Element:
    """Return a page; what is none, as of a proxy that wants a password, is asked for again."""
    from xml.etree.ElementTree import XML, ParseError

    why = ""
    for _ in range(_OTHER_ANSWERS):
        try:
            root = XML(page())
            if root.tag.endswith("ListBucketResult"):
                return root
            why = f"a listing that is a {root.tag}"
        except ParseError as error:
            why = f"a listing that is no XML: {error}"
    raise connection.refusal(uri, "listed", Cause("", why, _OTHER_ANSWERS))


def _page(bucket: Bucket, wanted: dict[str, Any]) -> bytes:
    """Return one page, as ``Connection`` has kept it."""
    answer = bucket.client.list_objects_v2(**wanted)
    document: bytes = answer["ResponseMetadata"]["HTTPHeaders"][PAGE]
    return document


def _entries(entries: Iterable[Element], space: str, bucket: str, is_encoded: bool) -> list[Blob]:
    names = f"{space}Key", f"{space}Size", f"{space}ETag"
    head, found = f"s3://{bucket}/", []
    for entry in entries:
        key, size, tag = (entry.findtext(name, "") for name in names)
        if is_encoded and ("%" in key or "+" in key):
            key = unquote_plus(key, errors="surrogateescape")
        if not key or not size.isdecimal():
            raise DataError(f"s3://{bucket} cannot be listed: an entry without a key or a size")
        etag = tag.strip('"') or None
        found.append(Blob(uri=head + key, key=key, size_bytes=int(size), etag=etag))
    return found


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn our errors into those that a store raises."""
    try:
        yield
    except DataError as error:
        raise OSError(errno.EIO, str(error)) from error
    except Stopped:
        raise OSError(errno.ECANCELED, "a stop left no time for it") from None


def split(uri: str) -> tuple[str, str]:
    """Return the bucket and the key or prefix, which may be empty. Raises DataError."""
    try:
        found = location.parse(uri)
    except ValueError as error:
        raise DataError(str(error)) from None
    if not found.bucket:
        raise DataError(f"{uri!r} names no bucket: write s3://bucket/key")
    return found.bucket, found.path


def _split_object(uri: str) -> tuple[str, str]:
    bucket, key = split(uri)
    if not key:
        raise DataError(f"{uri!r} names no object: write s3://bucket/key")
    return bucket, key


def read(uri: str, environ: Mapping[str, str], region: str, max_bytes: int) -> bytes:
    """Return a small object, such as a request. Raises DataError, also where it is larger."""
    with contextlib.closing(S3Origin(uri, environ, region)) as origin:
        blob = origin.stat(uri)
        _check_size(blob, max_bytes, "that it may have")
        data = bytearray(blob.size_bytes)
        with origin.open(blob) as body, memoryview(data) as view:
            filled = 0
            while count := body.readinto(view[filled:]):
                filled += count
    return bytes(data)


def download(
    uri: str,
    path: str,
    environ: Mapping[str, str],
    region: str,
    max_bytes: int,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Write the object ``uri`` to the file ``path``, which is there only when it is complete.

    ``environ`` may name an endpoint: ``S3_ENDPOINT_URL``, as for the SageMaker training toolkit, or
    one of boto3's own variables; without a ``region`` boto3's own rules find one. The credentials
    are those that boto3 finds. Raises CodeError, also for an object of more than ``max_bytes`` or
    than there is room for, and when ``stopped`` says so.
    """
    try:
        parse(uri)
        with contextlib.closing(S3Origin(uri, environ, region)) as origin, stop_is_an_error(uri):
            blob = origin.stat(uri, stopped=stopped)
            _check_size(blob, max_bytes, "that SM_RUNTIME_CODE_MAX_BYTES allows")
            room = Room(os.path.dirname(path))
            room.take(blob.size_bytes)
            room.check(uri)
            Fetch(origin.source, lambda _: None, stopped).run([(blob, path)])
    except DataError as error:
        raise CodeError(str(error)) from error
    log.info("downloaded %s (%d bytes)", uri, blob.size_bytes)


def _check_size(blob: Blob, max_bytes: int, allowed: str) -> None:
    if blob.size_bytes > max_bytes:
        raise DataError(
            f"{blob.uri} has {blob.size_bytes} bytes, more than the {max_bytes} bytes {allowed}"
        )


def problems(uri: str) -> list[str]:
    """Return the problems of ``uri`` that are found without a request."""
    try:
        parse(uri)
    except CodeError as error:
        return [str(error)]
    return [why] if (why := missing(uri)) else []


def parse(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of an ``s3://`` URI that names a file, or raise CodeError."""
    try:
        bucket, key = split(uri)
    except DataError as error:
        raise CodeError(str(error)) from error
    if key.rpartition("/")[2] in ("", ".", ".."):
        raise CodeError(f"{uri!r} names no object: write s3://bucket/key")
    return bucket, key
