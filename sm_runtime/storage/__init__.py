"""Where data comes from and artifacts go: small interfaces over the kinds of places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from sm_runtime.job.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One object of a bucket, or one file, that can be read."""

    uri: str
    """``s3://bucket/key`` with the key taken literally, or ``file:///path`` percent-encoded."""
    key: str
    """The whole key in its bucket, or the absolute path."""
    size_bytes: int
    etag: str | None = None
    """What the store says identifies this version of the content, without quotes."""


class Body(Protocol):
    """The bytes of one object, in order."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of ``buffer``; return how many bytes, 0 at the end of the object.

        A cut or stalled connection is resumed from the last byte within the retry budget. Raises
        DataError naming the object when that is spent or the object changed meanwhile.
        """


class Origin(Protocol):
    """A place that data is read from: a bucket, or the local file system.

    All methods may be called from several threads, and raise DataError naming the object.
    """

    def list(self, uri: str, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[Blob]:
        """Yield the objects whose key begins with that of ``uri``, in the order of their keys.

        Pages are fetched as they are consumed (one ahead at most): memory stays bounded.
        """

    def stat(self, uri: str) -> Blob:
        """Return the one object at ``uri``."""

    def open(
        self,
        blob: Blob,
        offset_bytes: int = 0,
        length_bytes: int | None = None,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> AbstractContextManager[Body]:
        """Read an object from ``offset_bytes`` on, ``length_bytes`` of it; None: to its end.

        A large object is read by several callers at once, each a range of it.
        """

    def fetch(
        self,
        wanted: Iterable[tuple[Blob, str]],
        *,
        progress: Callable[[int], None] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Download each object to its path, many at once and large ones in parallel ranges.

        ``wanted`` is consumed as needed. Folders are made. Nothing is under a path before it is
        complete (``<name>.sm-runtime.part`` beside it is removed at a failure); sizes are verified,
        and an object that changes meanwhile is an error. ``progress`` is told each number of bytes
        as they arrive, from any thread. Raises DataError at the first object that fails, or within
        a second when ``stopped`` says so.
        """

    def close(self) -> None:
        """Close the connections."""


class Sink(Protocol):
    """Where the bytes of one file go."""

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        """Take all of ``data``, which the caller may reuse at once; raise OSError if it cannot."""


class Tree(Protocol):
    """Where the files of one folder go."""

    def add(self, name: str, source: int, size_bytes: int, *, executable: bool) -> int:
        """Copy a file from the descriptor ``source``; return how many bytes there were."""


class Store(Protocol):
    """A folder of a file system, or a prefix of an object store.

    A key is relative, with ``/`` between its parts. Nothing is visible under a key before it is
    complete, and what a failure leaves behind is removed. All methods may raise OSError.
    """

    def locate(self, key: str) -> str:
        """Return the URI of ``key``."""

    def exists(self, key: str) -> bool:
        """Return whether there is something under ``key``."""

    def stream(self, key: str, most_bytes: int = 0) -> AbstractContextManager[Sink]:
        """Write one file: it replaces what was there when the block ends without an error.

        ``most_bytes`` is what it may have at most, where that is known: S3 takes 10,000 parts.
        """

    def tree(self, key: str) -> AbstractContextManager[Tree]:
        """Write a folder of files: as a whole it replaces what was there, when the block ends.

        An object store knows no folders: there each file replaces its own as soon as it is
        complete, and what only an earlier attempt wrote is deleted when the block ends.
        """

    def put(self, key: str, source: int, size_bytes: int) -> None:
        """Copy the first ``size_bytes`` of the file ``source`` (a descriptor) to ``key``.

        It replaces what was there once it is complete. May be called from several threads; the
        descriptor is read by position. OSError where the file has become shorter.
        """

    def delete(self, key: str) -> None:
        """Remove the file ``key``; one that is not there is no error."""

    def close(self) -> None:
        """Close the connections."""


def open_origin(
    uri: str, environ: Mapping[str, str], region: str, *, stall_seconds: float = 30
) -> Origin:
    """Return the place of the source ``uri``: ``s3://...`` or ``file:///...``.

    Credentials, region and endpoint follow boto3's rules with ``environ``; ``region`` (the job's)
    may be empty. A connection on which nothing moves for ``stall_seconds`` is given up, and what is
    missing asked for once more. No request is sent here. Raises DataError where ``uri`` names no
    such place, or boto3 or obstore is missing for it.
    """
    scheme = uri.partition(":")[0].lower()
    if scheme == "file":
        from sm_runtime.storage.files import FileOrigin

        return FileOrigin()
    if scheme == "s3":
        from sm_runtime.storage.s3 import S3Origin

        return S3Origin(uri, environ, region, stall_seconds=stall_seconds)
    raise DataError(f"{uri!r} is no s3:// or file:// URI")


def open_store(
    uri: str,
    *parts: str,
    outside: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    region: str = "",
    kms_key: str | None = None,
    stall_seconds: float = 30,
    stopped: Callable[[], bool] = lambda: False,
) -> Store:
    """Return the store at ``uri`` (``OutputDataConfig.S3OutputPath``), ``parts`` deeper.

    ``environ``, ``region`` and ``stall_seconds`` are those of ``open_origin``; objects are
    encrypted with ``kms_key`` if there is one (an object store's). When ``stopped`` says so, what
    is under way to an object store ends as an OSError. No request is sent here. Raises ConfigError
    where ``uri`` cannot be written to, or where the store and one of the local folders ``outside``
    would hold each other.
    """
    scheme = uri.partition(":")[0].lower()
    if scheme == "file":
        from sm_runtime.storage.files import LocalStore

        return LocalStore.at(uri, parts, outside)
    if scheme == "s3":
        from sm_runtime.storage.s3 import S3Store

        return S3Store.at(
            uri, parts, environ or {}, region, kms_key, stall_seconds=stall_seconds, stopped=stopped
        )
    raise ConfigError(f"OutputDataConfig.S3OutputPath: {uri!r} is no file:// or s3:// URI")
