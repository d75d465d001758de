"""A prefix of a bucket as a store: ``s3://bucket/prefix``."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from sm_runtime.job.errors import ConfigError, DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.access import Access
from sm_runtime.storage.client import Client, Refusal
from sm_runtime.storage.crew import Crew
from sm_runtime.storage.line import Stopped
from sm_runtime.storage.listing import pages
from sm_runtime.storage.s3 import split
from sm_runtime.storage.upload import PART_BYTES, THREADS, Bucket, Load, Upload, pieces

log = logging.getLogger(__name__)


class S3Store:
    """Objects below a prefix; see ``Store``.

    An object is replaced as a whole once all of it has arrived. A tree cannot be: each of its files
    replaces its own, and what only an earlier attempt wrote is deleted at the end, so that a reader
    may see files of both until then. Whether a file is executable is lost.
    """

    def __init__(
        self, bucket: Bucket, prefix: str, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._bucket, self._prefix, self._stopped = bucket, prefix, stopped

    @classmethod
    def at(
        cls, uri: str, parts: Sequence[str], environ: Mapping[str, str], region: str,
        kms_key: str | None, *, stall_seconds: float = 30,
        stopped: Callable[[], bool] = lambda: False,
    ) -> S3Store:  # fmt: skip
        """Return the store at an ``s3:`` URI; see ``open_store``."""
        try:
            name, prefix = split(uri)
            client = Client(Access(uri, environ, region), environ, stall_seconds)
        except DataError as error:
            raise ConfigError(f"OutputDataConfig.S3OutputPath: {error}") from error
        folders = [part for part in (prefix.rstrip("/"), *parts) if part]
        return cls(
            Bucket(client, name, kms_key), "".join(f"{folder}/" for folder in folders), stopped
        )

    def locate(self, key: str) -> str:
        """Return the URI of ``key``."""
        return self._bucket.uri(self._prefix + key)

    def exists(self, key: str) -> bool:
        """Return whether there is an object ``key``, or any below it."""
        with _errors():
            whole = self._prefix + key
            return self._bucket.has(whole) or any(self._pages(whole + "/"))

    @contextlib.contextmanager
    def stream(self, key: str) -> Iterator[Upload]:
        """Write the object ``key``; see ``Store``. Parts are sent while the block goes on."""
        crew = Crew(THREADS, self._stopped)
        upload = Upload(self._bucket, self._prefix + key, crew)
        with _errors():
            try:
                with crew:
                    yield upload
                    upload.finish()
            finally:
                upload.abort()

    @contextlib.contextmanager
    def tree(self, key: str) -> Iterator[_Tree]:
        """Write the objects below ``key``; see ``Store``."""
        prefix = f"{self._prefix}{key}/"
        with _errors():
            with Crew(THREADS, self._stopped) as crew:
                tree = _Tree(self, f"{key}/", crew)
                yield tree
            with Crew(THREADS, self._stopped) as crew:
                for blob in self._of_an_earlier_attempt(prefix):
                    if blob.key[len(prefix) :] not in tree.names:
                        crew.submit(partial(self._bucket.delete, blob.key, crew.is_stopped))

    def put(self, key: str, source: int, size_bytes: int) -> None:
        """Copy a file to ``key``; see ``Store``."""
        if self.copy(key, source, size_bytes) != size_bytes:
            raise OSError(errno.EIO, "the file has become shorter while it was read")

    def delete(self, key: str) -> None:
        """Remove the object ``key``; see ``Store``."""
        with _errors():
            self._bucket.delete(self._prefix + key)

    def list(self) -> Iterator[Blob]:
        """Yield the objects of the store; see ``Store``."""
        with _errors():
            for blob in self._blobs(self._prefix):
                key = blob.key[len(self._prefix) :]
                yield Blob(uri=blob.uri, key=key, size_bytes=blob.size_bytes, etag=blob.etag)

    def copy(self, key: str, source: int, size_bytes: int) -> int:
        """Copy a file; return how many bytes it had: the object is written if none is missing."""
        whole = self._prefix + key
        with _errors():
            if size_bytes <= PART_BYTES:
                body = b"".join(pieces(source, size_bytes))
                if len(body) == size_bytes:
                    self._bucket.put(whole, body, self._stopped)
                return len(body)
            crew = Crew(THREADS, self._stopped)
            upload, copied = Upload(self._bucket, whole, crew), 0
            try:
                with crew:
                    for piece in pieces(source, size_bytes):
                        upload.write(piece)
                        copied += len(piece)
                    if copied == size_bytes:
                        upload.finish()
            finally:
                upload.abort()
            return copied

    def close(self) -> None:
        """Close the connections."""
        self._bucket.client.close()

    def send(self, key: str, body: bytes, crew: Crew) -> None:
        """Write a short object."""
        self._bucket.put(self._prefix + key, body, crew.is_stopped)

    def _of_an_earlier_attempt(self, prefix: str) -> Iterator[Blob]:
        """Yield what is below ``prefix``, nothing where that may not be listed: all is saved."""
        try:
            yield from self._blobs(prefix)
        except DataError as error:
            if not (isinstance(error.__cause__, Refusal) and error.__cause__.status == 403):
                raise
            log.warning("files of an earlier attempt may still be there: %s", error)

    def _pages(self, prefix: str) -> Iterator[Sequence[Blob]]:
        return pages(self._bucket.client, self._bucket.name, prefix, self._stopped)

    def _blobs(self, prefix: str) -> Iterator[Blob]:
        for page in self._pages(prefix):
            yield from page


class _Tree:
    """Objects below a prefix, written side by side."""

    def __init__(self, store: S3Store, prefix: str, crew: Crew) -> None:
        self._store, self._prefix, self._crew = store, prefix, crew
        self._load = Load(crew)
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
                self._load.submit(size_bytes, partial(self._store.send, key, body, self._crew))
        return len(body)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn our errors into those that a store raises."""
    try:
        yield
    except DataError as error:
        raise OSError(errno.EIO, str(error)) from error
    except Stopped:
        raise OSError(errno.ECANCELED, "a stop left no time for it") from None
