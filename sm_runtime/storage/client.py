"""Requests to S3, signed, and followed to the right region."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping

from sm_runtime.storage.access import Access, Door
from sm_runtime.storage.attempts import ATTEMPTS, PASSING, Attempts, Budget, Refusal
from sm_runtime.storage.exchange import Exchange
from sm_runtime.storage.http import Pool, Response
from sm_runtime.storage.line import Broken, Lost
from sm_runtime.storage.signing import UNSIGNED, Keys, encoded_query, form, stamp


def _never() -> bool:
    return False


class Client:
    """Sends requests to buckets; used by any thread."""

    def __init__(self, access: Access, environ: Mapping[str, str], stall_seconds: float) -> None:
        self._access, self._stall_seconds = access, stall_seconds
        self._pool: Pool | None = None
        self._lock = threading.Lock()
        self._clock_seconds = 0.0  # what the servers' clock is ahead of ours
        self.budget = Budget()
        named = environ.get("AWS_MAX_ATTEMPTS", "")
        self._limit = max(int(named), 1) if named.isdecimal() else ATTEMPTS

    def attempts(
        self, uri: str, verb: str, stopped: Callable[[], bool] = _never, limit: int | None = None
    ) -> Attempts:
        """Return the attempts to have ``uri`` ``downloaded``, ``uploaded``, ``listed`` ..."""
        return Attempts(self.budget, self.renew, uri, verb, stopped, limit or self._limit)

    def request(
        self,
        method: str,
        bucket: str,
        path: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        stopped: Callable[[], bool] = _never,
        fresh: bool = False,
    ) -> Response:
        """Return the answer to one request, which has been followed to the right region.

        ``path`` and ``query`` are encoded. Raises Refusal where the server refuses, Broken where
        the connection breaks, and Stopped.
        """
        return self.ask(
            method, bucket, path,
            query=query, headers=headers, body=body, stopped=stopped, fresh=fresh,
        ).answer()  # fmt: skip

    def ask(
        self,
        method: str,
        bucket: str,
        path: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        stopped: Callable[[], bool] = _never,
        fresh: bool = False,
        moves: bool = False,
    ) -> Question:
        """Send a request, and do not wait for its answer. Raises Broken and Stopped.

        ``fresh`` and ``moves``: see ``Exchange``.
        """
        door, keys, clock = self._access.door(bucket), self._access.keys(), self._clock_seconds
        head = self._head(door, keys, method, path, query, headers or {}, len(body), clock)
        exchange = Exchange(
            self._connections(), door.place, head, body, stopped, fresh=fresh, moves=moves
        )

        def again(*, fresh: bool = False) -> Question:
            return self.ask(
                method, bucket, path,
                query=query, headers=headers, body=body, stopped=stopped, fresh=fresh,
                moves=moves,
            )  # fmt: skip

        return Question(self, bucket, door, keys, clock, exchange, again)

    @property
    def is_crowded(self) -> bool:
        """Whether the server has no room for more connections: nothing is asked for ahead then."""
        return self._connections().is_crowded

    def has_idle(self, bucket: str) -> bool:
        """Return whether a connection waits for a request."""
        return self._connections().has_idle(self._access.door(bucket).place)

    def refusal(self, response: Response, question: Question) -> Refusal:
        """Return why a request was refused."""
        error = self._read(response)
        error.keys = question.keys
        if error.region and error.region != question.door.region:
            # as another thread may know already
            self._access.moved(question.bucket, error.region)
            error.told = True
        elif error.code == "RequestTimeTooSkewed":
            error.told = self._set_clock(response, question.clock_seconds)
        elif error.keys is None and error.code not in _PUBLIC:
            error.code = "NoCredentials"
        return error

    def renew(self, refused: Keys | None) -> bool:
        """Look for newer credentials than those that were refused; return whether there are any."""
        return self._access.keys() != refused or self._access.renew(refused)

    def close(self) -> None:
        """Close the connections."""
        if self._pool:
            self._pool.close()

    def _connections(self) -> Pool:
        if self._pool is None:
            with self._lock:
                self._pool = self._pool or Pool(self._stall_seconds, self._access.authorities())
        return self._pool

    def _head(
        self, door: Door, keys: Keys | None, method: str, path: str, query: str,
        headers: Mapping[str, str], length: int, clock_seconds: float,
    ) -> bytes:  # fmt: skip
        whole = door.path + path
        signed, plain = [("host", door.host)], ""
        for name, value in headers.items():
            if name.startswith("x-amz-"):
                signed.append((name, value))
            else:
                plain += f"{name}: {value}\r\n"
        if length or method in ("PUT", "POST"):
            plain += f"content-length: {length}\r\n"
        if keys:
            now = stamp(time.time() + clock_seconds)
            signed += (("x-amz-date", now), ("x-amz-content-sha256", UNSIGNED))
            if keys.token:
                signed.append(("x-amz-security-token", keys.token))
            known = form(keys.access, keys.secret, door.region, tuple(signed))
            proof = known.authorization(method, whole, query)
            plain = f"{known.lines}{plain}authorization: {proof}\r\n"
        else:
            plain += "".join(f"{name}: {value}\r\n" for name, value in signed)
        target = f"{whole}?{query}" if query else whole
        return (
            f"{method} {target} HTTP/1.1\r\n{plain}"
            "accept-encoding: identity\r\nuser-agent: sm-runtime\r\n\r\n"
        ).encode("utf-8", "surrogateescape")

    def _read(self, response: Response) -> Refusal:
        with response:
            text = response.read().decode("utf-8", "replace")
        headers = response.headers
        code = between(text, "Code") or _CODES.get(response.status, str(response.status))
        region = ""
        if response.status in (301, 307, 400):
            region = headers.get("x-amz-bucket-region", "") or between(text, "Region")
        return Refusal(response.status, code, " ".join(between(text, "Message").split()), region)

    def _set_clock(self, response: Response, before: float) -> bool:
        """Take the server's time; return whether it is another than the request had."""
        from email.utils import parsedate_to_datetime

        try:
            named = parsedate_to_datetime(response.headers.get("date", "")).timestamp()
        except ValueError:
            return False
        self._clock_seconds = named - time.time()
        return abs(before - self._clock_seconds) > 60


class Question:
    """A request that was sent."""

    def __init__(
        self, client: Client, bucket: str, door: Door, keys: Keys | None, clock_seconds: float,
        exchange: Exchange, again: Callable[..., Question],
    ) -> None:  # fmt: skip
        self._client, self.bucket, self.door, self.keys = client, bucket, door, keys
        self.clock_seconds, self._exchange, self._again = clock_seconds, exchange, again

    def answer(self, hops: int = 3) -> Response:
        """Wait for the answer; see ``Client.request``."""
        try:
            response = self._exchange.answer()
        except Lost as lost:  # and signed anew: it may have been long ago
            return self._again(fresh=not lost.kept).answer(hops)
        if response.status < 300:
            self._client.budget.earn()
            return response
        error = self._client.refusal(response, self)
        if not error.told or not hops:
            raise error
        return self._again().answer(hops - 1)

    @property
    def fileno(self) -> int:
        """The descriptor of the connection on which the answer will come."""
        return self._exchange.fileno

    def close(self) -> None:
        """Give up an answer that nobody waits for."""
        self._exchange.close()


_CODES = {
    301: "PermanentRedirect",
    403: "AccessDenied",
    404: "NoSuchKey",
    412: "PreconditionFailed",
}
_PUBLIC = ("NoSuchKey", "NoSuchBucket", "PreconditionFailed", "InvalidRange", *PASSING)


def between(text: str, name: str) -> str:
    """Return what the first element ``name`` of a short answer holds."""
    from html import unescape

    found = re.search(f"<{name}>([^<]*)</{name}>", text)
    return unescape(found[1]).strip() if found else ""


__all__ = ["Attempts", "Broken", "Client", "Question", "Refusal", "between", "encoded_query"]
