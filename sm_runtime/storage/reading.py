"""One object, read from the network in order, whatever happens to the connections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from sm_runtime.job.errors import DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.client import Broken, Client, Question, Refusal
from sm_runtime.storage.http import Response, content_range
from sm_runtime.storage.signing import encoded_path

_ALWAYS = {"x-amz-checksum-mode": "ENABLED"}
_SKIP_BYTES = 1 << 18
_VERSIONS = 4096
"""How many objects are remembered: more than are ever read at once in ranges."""


class Version:
    """What all requests for one object must agree on: its size and its tag."""

    def __init__(self, uri: str, size_bytes: int | None) -> None:
        self.uri, self.size_bytes = uri, size_bytes
        self.etag: str | None = None
        self._lock = threading.Lock()

    def check(self, size_bytes: int | None, etag: str | None) -> None:
        """Take note of what an answer says; raise DataError where another one said otherwise."""
        with self._lock:
            if size_bytes is not None:
                if self.size_bytes is None:
                    self.size_bytes = size_bytes
                if self.size_bytes != size_bytes:
                    raise DataError(
                        f"{self.uri} cannot be downloaded: it has {size_bytes} bytes now,"
                        f" {self.size_bytes} were expected"
                    )
            if etag is not None:
                if self.etag is None:
                    self.etag = etag
                if self.etag != etag:
                    raise DataError(f"{self.uri} cannot be downloaded: it has changed meanwhile")


class Versions:
    """What the requests for ranges of one object, each by itself, must agree on.

    The tag of a listing is not asked for in the first of them: not every store has the same one
    there. An object that was listed anew is another one.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, str | None], Version] = {}
        self._lock = threading.Lock()

    def of(self, blob: Blob) -> Version:
        """Return the version of an object that its other ranges have, too."""
        name = blob.uri, blob.size_bytes, blob.etag
        with self._lock:
            version = self._known.pop(name, None) or Version(blob.uri, blob.size_bytes)
            self._known[name] = version  # the last one, now
            if len(self._known) > _VERSIONS:
                del self._known[next(iter(self._known))]
        return version


class Reader:
    """The bytes of an object from ``start`` to ``end`` (None: to its end).

    A connection that breaks is resumed from the last byte, if the object is still the same.
    """

    def __init__(
        self, client: Client, bucket: str, key: str, version: Version, *, start: int = 0,
        end: int | None = None, stopped: Callable[[], bool] = lambda: False, moves: bool = False,
    ) -> None:  # fmt: skip
        self._client, self.bucket, self._path = client, bucket, encoded_path(key)
        self.version, self.position, self.end = version, start, end
        self.headers: dict[str, str] = {}
        """Of the last answer."""
        self.is_ranged = True
        """Whether the server sends parts of objects."""
        self._stopped, self._moves = stopped, moves
        self._attempts = client.attempts(version.uri, "downloaded", stopped)
        self._question: Question | None = None
        self._response: Response | None = None
        self._began = start  # the position when the request was sent
        self._asks_range = False

    def ask(self) -> bool:
        """Have the request sent, so that the answer is under way when ``open`` waits for it.

        Where that fails, which the result tells, it is as if it had not been tried.
        """
        try:
            self._question = self._request()
        except Broken:
            return False
        return True

    @property
    def fileno(self) -> int:
        """The descriptor on which an answer is awaited, -1 where none is."""
        return self._question.fileno if self._question else -1

    def open(self) -> None:
        """Have the headers of an answer; ``readinto`` does that too."""
        while self._response is None:
            question, self._question = self._question, None
            try:
                self._response = self._answer(question or self._request())
            except (Broken, Refusal) as error:
                self._attempts.failed(error)

    def readinto(self, view: memoryview, /) -> int:
        """Fill the start of ``view``; return how many bytes, 0 at the end."""
        while True:
            last = self.end if self.end is not None else self.version.size_bytes
            if self._response is None:
                if last is not None and self.position >= max(last, 1):
                    return 0
                self.open()
            end = self.end if self.end is not None else self.version.size_bytes
            if end is not None and (left := end - self.position) < len(view):
                view = view[:left]
            if not view or self._response is None:
                self.close()
                return 0
            try:
                count = self._response.readinto(view)
                if count:
                    self.position += count
                    return count
                if end is None:
                    return 0
                raise Broken(f"the body ended {left} bytes early")
            except Broken as error:
                self._broke(error)

    def retry(self, error: Broken) -> None:
        """Start once more from the beginning: what came was wrong."""
        self.position = 0
        self._broke(error)

    def close(self) -> None:
        """Give the connection back, if the body was read to its end."""
        response, self._response = self._response, None
        question, self._question = self._question, None
        if response is not None:
            with response:
                pass
        elif question is not None:
            question.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _broke(self, error: Broken) -> None:
        received = self.position - self._began
        self.close()
        wanted = (self.end or self.version.size_bytes or self.position) - self._began
        self._attempts.failed(error, max(received, 0), max(wanted, 1))

    def _request(self) -> Question:
        first, version = self.position, self.version
        self._began = first
        headers = _ALWAYS.copy()
        if self.end is not None and not (first == 0 and self.end == version.size_bytes):
            headers["range"] = f"bytes={first}-{self.end - 1}"
        elif first:
            headers["range"] = f"bytes={first}-"
        self._asks_range = "range" in headers
        if version.etag:
            headers["if-match"] = f'"{version.etag}"'
        return self._client.ask(
            "GET", self.bucket, self._path,
            headers=headers, stopped=self._stopped, moves=self._moves,
        )  # fmt: skip

    def _answer(self, question: Question) -> Response:
        response, first, version = question.answer(), self._began, self.version
        try:
            self.headers = response.headers
            # Some stores send a part with status 200: the header tells, not the status.
            found = content_range(response.headers)
            etag = response.headers.get("etag", "").removeprefix("W/").strip('"') or None
            version.check(found[1] if found else response.length, etag)
            if found and found[0] != first:
                raise Broken(f"the server sent the bytes from {found[0]} on, not from {first}")
            self.is_ranged = found is not None or not self._asks_range
            if not found and first:
                self._skip(response, first)
            return response
        except BaseException as error:
            with response:
                raise error

    def _skip(self, response: Response, count: int) -> None:
        """Read what is there already from a server that does not send parts."""
        view = memoryview(bytearray(min(count, _SKIP_BYTES)))
        while count:
            skipped = response.readinto(view[: min(count, len(view))])
            if not skipped:
                raise Broken(f"the body ended {count} bytes early")
            count -= skipped
