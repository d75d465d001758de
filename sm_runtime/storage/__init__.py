"""Where artifacts go: one small interface over the kinds of places."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from sm_runtime.errors import ConfigError


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

    def stream(self, key: str) -> AbstractContextManager[Sink]:
        """Write one file: it replaces what was there when the block ends without an error."""

    def tree(self, key: str) -> AbstractContextManager[Tree]:
        """Write a folder of files: as a whole it replaces what was there, when the block ends."""


def open_store(uri: str, *parts: str, outside: Sequence[str] = ()) -> Store:
    """Return the store at ``uri`` (``OutputDataConfig.S3OutputPath``), ``parts`` deeper.

    Raises ConfigError where ``uri`` cannot be written to by this version, or where the store and
    one of the local folders ``outside`` would hold each other.
    """
    scheme = uri.partition(":")[0].lower()
    if scheme == "file":
        from sm_runtime.storage.local import LocalStore

        return LocalStore.at(uri, parts, outside)
    if scheme == "s3":
        raise ConfigError(
            f"OutputDataConfig.S3OutputPath: {uri!r} is in object storage, which this version"
            " cannot write to; use file:///path"
        )
    raise ConfigError(f"OutputDataConfig.S3OutputPath: {uri!r} is no file:// or s3:// URI")
