"""The answers of ListObjectsV2, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from urllib.parse import unquote_plus
from xml.etree.ElementTree import XML, Element, ParseError

from sm_runtime.job.errors import DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.client import Broken, Client, Question, Refusal, encoded_query


def pages(
    client: Client, bucket: str, prefix: str, stopped: Callable[[], bool]
) -> Iterator[list[Blob]]:
    """Yield the objects below a prefix, up to 1,000 at a time. Raises DataError.

    From the second page on, the next one is asked for before one is handed over.
    """
    listing = _Listing(client, bucket, prefix, stopped)
    try:
        while listing.is_going_on:
            yield listing.page()
    finally:
        listing.close()


class _Listing:
    """The pages of one prefix."""

    def __init__(
        self, client: Client, bucket: str, prefix: str, stopped: Callable[[], bool]
    ) -> None:
        self._client, self._bucket, self._stopped = client, bucket, stopped
        self._uri = f"s3://{bucket}/{prefix}"
        self._query = {"list-type": "2", "prefix": prefix, "encoding-type": "url"}
        self._question: Question | None = None
        self._is_long = False
        """Whether a second page was wanted: then all of them probably are."""
        self.is_going_on = True

    def page(self) -> list[Blob]:
        """Return the objects of one page."""
        root = self._answer()
        space = root.tag.partition("ListBucketResult")[0]  # of the names, in braces
        is_encoded = root.findtext(f"{space}EncodingType") == "url"
        blobs = _blobs(root.findall(f"{space}Contents"), space, self._bucket, is_encoded)
        self.is_going_on = root.findtext(f"{space}IsTruncated") == "true"
        if self.is_going_on:
            name, value = "continuation-token", root.findtext(f"{space}NextContinuationToken")
            if blobs and not value:
                name, value = "start-after", blobs[-1].key
            if not value or value == self._query.get(name):
                raise DataError(f"{self._uri} cannot be listed: the server repeats itself")
            self._query[name] = value
            if self._is_long:
                with suppress(Broken):  # who needs the answer will ask once more
                    self._question = self._ask()
            self._is_long = True
        return blobs

    def close(self) -> None:
        """Give up the page that nobody waits for."""
        if self._question:
            self._question.close()

    def _ask(self) -> Question:
        query = encoded_query(self._query.items())
        return self._client.ask("GET", self._bucket, "", query=query, stopped=self._stopped)

    def _answer(self) -> Element:
        attempts = self._client.attempts(self._uri, "listed", self._stopped)
        while True:
            early, self._question = self._question, None
            try:
                with (early or self._ask()).answer() as response:
                    root = XML(response.read())
                if root.tag.endswith("ListBucketResult"):
                    return root
                raise Broken(f"a listing that is a {root.tag}")
            except ParseError as error:
                attempts.failed(Broken(f"a listing that is no XML: {error}"))
            except (Broken, Refusal) as error:
                # Who was long in coming back for the next page may find it gone.
                if not early or isinstance(error, Refusal):
                    attempts.failed(error)


def _blobs(entries: Iterable[Element], space: str, bucket: str, is_encoded: bool) -> list[Blob]:
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
