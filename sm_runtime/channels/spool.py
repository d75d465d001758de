"""Keeps a listing of millions of objects in little memory: about 30 bytes for each."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from sm_runtime.storage import Blob

_BATCH = 2048
_FIELDS = 4


class Spool:
    """Objects in the order they came in, compressed; read as often as needed.

    A key and a URI hold no NUL: it stands between the fields.
    """

    def __init__(self) -> None:
        self._batches: list[bytes] = []
        self._fields: list[str] = []

    def add(self, blob: Blob) -> None:
        """Append an object."""
        head = blob.uri.removesuffix(blob.key)
        # A URI that does not end in its key, being percent-encoded, is kept as a whole.
        mark = "" if len(head) < len(blob.uri) else "="
        self._fields += (str(blob.size_bytes), blob.etag or "", mark + head, blob.key)
        if len(self._fields) >= _BATCH * _FIELDS:
            text = "\0".join(self._fields).encode("utf-8", "surrogatepass")
            self._batches.append(zlib.compress(text, 1))
            self._fields = []

    def __iter__(self) -> Iterator[Blob]:
        for batch in self._batches:
            yield from _blobs(zlib.decompress(batch).decode("utf-8", "surrogatepass").split("\0"))
        yield from _blobs(self._fields)


def _blobs(fields: list[str]) -> Iterator[Blob]:
    each = iter(fields)
    for size, etag, head, key in zip(each, each, each, each, strict=True):
        uri = head[1:] if head.startswith("=") else head + key
        yield Blob(uri=uri, key=key, size_bytes=int(size), etag=etag or None)
