"""Objects of S3, and of what speaks its protocol, for reading."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from sm_runtime.job.errors import CodeError, DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.access import Access, needs_boto3
from sm_runtime.storage.client import Broken, Client, Refusal
from sm_runtime.storage.crew import Crew
from sm_runtime.storage.fetching import THREADS, Fetch
from sm_runtime.storage.line import Stopped
from sm_runtime.storage.listing import pages
from sm_runtime.storage.reading import Reader, Version, Versions
from sm_runtime.storage.room import Room
from sm_runtime.storage.signing import encoded_path

log = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 20


class S3Origin:
    """Buckets of one endpoint; see ``Origin``."""

    def __init__(
        self, uri: str, environ: Mapping[str, str], region: str, *, stall_seconds: float = 30
    ) -> None:
        self._client = Client(Access(uri, environ, region), environ, stall_seconds)
        self._versions = Versions()

    def list(self, uri: str, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[Blob]:
        """Yield the objects whose key begins with that of ``uri``; see ``Origin``."""
        bucket, prefix = split(uri)
        with _stop_is_an_error(uri):
            for page in pages(self._client, bucket, prefix, stopped):
                yield from page

    def stat(self, uri: str) -> Blob:
        """Return the one object at ``uri``."""
        bucket, key = _split_object(uri)
        attempts = self._client.attempts(uri, "downloaded")
        while True:
            try:
                with self._client.request("HEAD", bucket, encoded_path(key)) as answer:
                    etag = answer.headers.get("etag", "").removeprefix("W/").strip('"')
                    size = answer.headers.get("content-length", "")
                    if not size.isdecimal():
                        raise DataError(f"{uri} cannot be downloaded: the server tells no size")
                    return Blob(uri=uri, key=key, size_bytes=int(size), etag=etag or None)
            except (Broken, Refusal) as error:
                attempts.failed(error)

    @contextlib.contextmanager
    def open(
        self,
        blob: Blob,
        offset_bytes: int = 0,
        length_bytes: int | None = None,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Reader]:
        """Read an object, or a range of it; see ``Origin``."""
        end = None if length_bytes is None else offset_bytes + length_bytes
        is_whole = not offset_bytes and end in (None, blob.size_bytes)
        version = Version(blob.uri, blob.size_bytes) if is_whole else self._versions.of(blob)
        reader = Reader(
            self._client, bucket_of(blob), blob.key, version, start=offset_bytes, end=end,
            stopped=stopped,
        )  # fmt: skip
        with _stop_is_an_error(blob.uri), reader:
            yield reader

    def fetch(
        self,
        wanted: Iterable[tuple[Blob, str]],
        *,
        progress: Callable[[int], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Download each object to its path; see ``Origin``."""
        with _stop_is_an_error("the objects"):
            Fetch(self._client, Crew(THREADS, stopped), progress, bucket_of).run(wanted)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


@contextlib.contextmanager
def _stop_is_an_error(what: str) -> Iterator[None]:
    try:
        yield
    except Stopped:
        raise DataError(f"{what} cannot be downloaded: a stop was asked for") from None


def bucket_of(blob: Blob) -> str:
    """Return the bucket that holds an object."""
    return blob.uri[5 : len(blob.uri) - len(blob.key) - 1]


def split(uri: str) -> tuple[str, str]:
    """Return the bucket and the key or prefix, which may be empty. Raises DataError.

    A key is taken literally: in S3, '%' and '?' are characters like any other.
    """
    bucket, _, key = uri[5:].partition("/")
    if "@" in bucket:
        # Not shown: before the '@' there may be a secret.
        raise DataError("an s3:// URI holds no credentials: write s3://bucket/key")
    if not bucket or not uri[:5].lower() == "s3://" or "\0" in key:
        raise DataError(f"{uri!r} names no bucket: write s3://bucket/key")
    return bucket, key


def _split_object(uri: str) -> tuple[str, str]:
    bucket, key = split(uri)
    if not key:
        raise DataError(f"{uri!r} names no object: write s3://bucket/key")
    return bucket, key


def read(uri: str, environ: Mapping[str, str], region: str, max_bytes: int) -> bytes:
    """Return a small object, such as a request. Raises DataError, also where it is larger."""
    data = bytearray()
    with contextlib.closing(S3Origin(uri, environ, region)) as origin:
        _copy(origin, uri, max_bytes, "", data.extend)
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
    are those that boto3 finds. No thread is started: this process has yet to fork. Raises
    CodeError, also for an object of more than ``max_bytes`` or than there is room for, and when
    ``stopped`` says so.
    """
    part = path + ".part"
    option = "SM_RUNTIME_CODE_MAX_BYTES"
    try:
        parse(uri)
        with (
            contextlib.closing(S3Origin(uri, environ, region)) as origin,
            open(part, "wb") as file,
            _stop_is_an_error(uri),
        ):
            folder = os.path.dirname(path)
            size = _copy(origin, uri, max_bytes, option, file.write, folder, stopped)
        os.rename(part, path)
    except DataError as error:
        raise CodeError(str(error)) from error
    except OSError as error:
        raise CodeError(f"{uri} cannot be downloaded: {' '.join(str(error).split())}") from error
    log.info("downloaded %s (%d bytes)", uri, size)


def _copy(
    origin: S3Origin,
    uri: str,
    max_bytes: int,
    option: str,
    write: Callable[[memoryview], object],
    folder: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Hand an object of unknown size on; return how many bytes it has.

    ``folder``: where it is written to, if there has to be room for it.
    """
    bucket, key = _split_object(uri)
    version = Version(uri, None)
    view = memoryview(bytearray(_BUFFER_BYTES))
    with Reader(origin._client, bucket, key, version, stopped=stopped) as body:
        body.open()
        if folder is not None and (version.size_bytes or 0) <= max_bytes:
            room = Room(folder)
            room.take(version.size_bytes or 0)
            room.check(uri)
        while True:
            size = max(version.size_bytes or 0, body.position)
            if size > max_bytes:
                allowed = f"that {option} allows" if option else "that it may have"
                raise DataError(
                    f"{uri} has {size} bytes, more than the {max_bytes} bytes {allowed}"
                )
            count = body.readinto(view)
            if not count:
                return body.position
            write(view[:count])


def problems(uri: str) -> list[str]:
    """Return what can be said against ``uri`` without a request."""
    from importlib.util import find_spec

    try:
        parse(uri)
    except CodeError as error:
        return [str(error)]
    return [] if find_spec("boto3") else [needs_boto3(uri)]


def parse(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of an ``s3://`` URI that names a file, or raise CodeError."""
    try:
        bucket, key = split(uri)
    except DataError as error:
        raise CodeError(str(error)) from error
    if key.rpartition("/")[2] in ("", ".", ".."):
        raise CodeError(f"{uri!r} names no object: write s3://bucket/key")
    return bucket, key
