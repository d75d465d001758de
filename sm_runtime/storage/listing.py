"""The answers of ListObjectsV2, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import unquote_plus
from xml.parsers import expat

from sm_runtime.errors import DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.client import Broken, Client, Refusal, encoded_query


class _Page:
    """What one answer says; its text is not kept."""

    def __init__(self) -> None:
        self.contents: list[dict[str, str]] = []
        self.facts: dict[str, str] = {}
        self._open: list[str] = []
        self._text: list[str] = []
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text.append

    def feed(self, data: bytes, is_last: bool) -> None:
        try:
            self._parser.Parse(data, is_last)
        except expat.ExpatError as error:
            raise Broken(f"a listing that is no XML: {error}") from error

    def _start(self, name: str, _: dict[str, str]) -> None:
        self._open.append(name)
        self._text.clear()
        if name == "Contents":
            self.contents.append({})

    def _end(self, name: str) -> None:
        self._open.pop()
        depth = len(self._open)
        if depth == 2 and self._open[1] == "Contents":
            self.contents[-1][name] = "".join(self._text)
        elif depth == 1:
            self.facts[name] = "".join(self._text)
        self._text.clear()


def pages(
    client: Client, bucket: str, prefix: str, stopped: Callable[[], bool]
) -> Iterator[list[Blob]]:
    """Yield the objects below a prefix, up to 1,000 at a time. Raises DataError."""
    uri = f"s3://{bucket}/{prefix}"
    query = {"list-type": "2", "prefix": prefix, "encoding-type": "url"}
    while True:
        page = _page(client, uri, bucket, encoded_query(query.items()), stopped)
        is_encoded = page.facts.get("EncodingType") == "url"
        blobs = [_blob(bucket, entry, is_encoded) for entry in page.contents]
        yield blobs
        if page.facts.get("IsTruncated") != "true":
            return
        token = page.facts.get("NextContinuationToken")
        if token and token != query.get("continuation-token"):
            query["continuation-token"] = token
        elif blobs and not token:
            query["start-after"] = blobs[-1].key
        else:
            raise DataError(f"{uri} cannot be listed: the server repeats itself")


def _page(client: Client, uri: str, bucket: str, query: str, stopped: Callable[[], bool]) -> _Page:
    attempts = client.attempts(uri, "listed", stopped)
    view = memoryview(bytearray(1 << 16))
    while True:
        page = _Page()
        try:
            with client.request("GET", bucket, "", query=query, stopped=stopped) as response:
                while count := response.readinto(view):
                    page.feed(bytes(view[:count]), False)
            page.feed(b"", True)
            return page
        except (Broken, Refusal) as error:
            attempts.failed(error)


def _blob(bucket: str, entry: dict[str, str], is_encoded: bool) -> Blob:
    key = entry.get("Key", "")
    if is_encoded and ("%" in key or "+" in key):
        key = unquote_plus(key, errors="surrogateescape")
    size = entry.get("Size", "")
    if not key or not size.isdecimal():
        raise DataError(f"s3://{bucket} cannot be listed: an entry without a key or a size")
    etag = entry.get("ETag", "").strip('"') or None
    return Blob(uri=f"s3://{bucket}/{key}", key=key, size_bytes=int(size), etag=etag)
