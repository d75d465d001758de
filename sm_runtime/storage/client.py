"""Requests to S3, signed and, where that can help, tried once more."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping

from sm_runtime.errors import DataError
from sm_runtime.storage.access import Access, Door
from sm_runtime.storage.http import Pool, Response
from sm_runtime.storage.line import Broken, Stopped
from sm_runtime.storage.signing import UNSIGNED, Keys, authorization, encoded_query, stamp

log = logging.getLogger(__name__)

_ATTEMPTS = 8
_JOB_RETRIES = 500
_FIRST_DELAY_SECONDS = 0.1
_MAX_DELAY_SECONDS = 10.0
_PROGRESS_BYTES = 8 << 20
_PASSING = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling",
            "ThrottlingException", "RequestLimitExceeded", "OperationAborted")  # fmt: skip
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken")


class Refusal(Exception):
    """A server answered that it will not; ``passing`` tells whether it may change its mind."""

    def __init__(self, status: int, code: str, message: str, region: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.status, self.code, self.message, self.region = status, code, message, region
        self.keys: Keys | None = None
        """The credentials that the server refused."""
        self.passing = status in (500, 502, 503, 504, 429, 408) or code in _PASSING


class Budget:
    """How often a job may try once more: what succeeds earns what fails."""

    def __init__(self) -> None:
        self._left = _JOB_RETRIES
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Take note of a success."""
        if self._left < _JOB_RETRIES:
            with self._lock:
                self._left = min(self._left + 1, _JOB_RETRIES)

    def spend(self) -> bool:
        """Take one; return whether there was one."""
        with self._lock:
            self._left -= 1
            return self._left >= 0


class Attempts:
    """The attempts to do one thing with one object.

    A failure that comes again and again without any progress in between ends it, and so does the
    end of the job's budget.
    """

    def __init__(
        self,
        client: Client,
        uri: str,
        verb: str,
        stopped: Callable[[], bool] = lambda: False,
        *,
        limit: int | None = None,
    ) -> None:
        self._client, self._uri, self._verb, self._stopped = client, uri, verb, stopped
        self._limit = limit or client.attempts
        self._failures = 0
        self._renewed = False

    def failed(self, error: Broken | Refusal, received: int = 0, wanted: int = 1) -> None:
        """Wait until the next attempt; raise DataError where there is none.

        ``received`` of the ``wanted`` bytes came before it failed: enough is as good as a success.
        """
        if isinstance(error, Refusal) and not error.passing:
            expired = error.code in _EXPIRED or (error.status == 403 and not error.message)
            if expired and not self._renewed and self._client.renew(error.keys):
                self._renewed = True
                return
            raise DataError(refusal(self._uri, self._verb, error)) from error
        if received and received >= min(_PROGRESS_BYTES, wanted // 4):
            self._failures = 0
            limit = max(self._limit, 2)
        else:
            limit = self._limit
        self._failures += 1
        if self._failures >= limit:
            tried = f" ({limit} attempts)" if limit > 1 else ""
            raise DataError(f"{self._uri} cannot be {self._verb}: {error}{tried}") from error
        if not self._client.budget.spend():
            raise DataError(
                f"{self._uri} cannot be {self._verb}: {error}; the whole job has tried"
                f" {_JOB_RETRIES} times once more than it succeeded"
            ) from error
        log.log(
            logging.INFO if self._failures < 3 else logging.WARNING,
            "%s: %s; once more", self._uri, error,
        )  # fmt: skip
        # All of it is random: many that failed together must not come back together.
        ceiling = min(_FIRST_DELAY_SECONDS * 2.0**self._failures, _MAX_DELAY_SECONDS)
        self._wait(random.uniform(0, ceiling))

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        bell = threading.Event()
        while (left := until - time.monotonic()) > 0:
            if self._stopped():
                raise Stopped
            bell.wait(min(left, 0.25))


class Client:
    """Sends requests to buckets; used by any thread."""

    def __init__(self, access: Access, environ: Mapping[str, str], stall_seconds: float) -> None:
        self._access, self._stall_seconds = access, stall_seconds
        self._pool: Pool | None = None
        self._lock = threading.Lock()
        self._clock_seconds = 0.0  # what the servers' clock is ahead of ours
        self.budget = Budget()
        named = environ.get("AWS_MAX_ATTEMPTS", "")
        self.attempts = max(int(named), 1) if named.isdecimal() else _ATTEMPTS

    def request(
        self,
        method: str,
        bucket: str,
        path: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        stopped: Callable[[], bool] = lambda: False,
    ) -> Response:
        """Return the answer to one request, which has been followed to the right region.

        ``path`` and ``query`` are encoded. Raises Refusal where the server refuses, Broken where
        the connection breaks, and Stopped.
        """
        for _ in range(4):
            door = self._access.door(bucket)
            keys = self._access.keys()
            head = self._head(door, keys, method, path, query, headers or {}, len(body))
            response = self._connections().exchange(door.place, head, body, stopped)
            if response.status < 300:
                self.budget.earn()
                return response
            error = self._refused(response)
            error.keys = keys
            if error.region and error.region != door.region:
                self._access.moved(bucket, error.region)  # as another thread may know already
                continue
            if error.code == "RequestTimeTooSkewed" and self._set_clock(response):
                continue
            if keys is None and error.code not in _PUBLIC:
                error.code = "NoCredentials"
            raise error
        raise error

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
        headers: Mapping[str, str], length: int,
    ) -> bytes:  # fmt: skip
        whole = door.path + path
        signed = {"host": door.host}
        plain = []
        for name, value in headers.items():
            if name.startswith("x-amz-"):
                signed[name] = value
            else:
                plain.append(f"{name}: {value}\r\n")
        if keys:
            signed["x-amz-date"] = stamp(time.time() + self._clock_seconds)
            signed["x-amz-content-sha256"] = UNSIGNED
            if keys.token:
                signed["x-amz-security-token"] = keys.token
            proof = authorization(keys, door.region, method, whole, query, signed)
            plain.append(f"authorization: {proof}\r\n")
        if length or method in ("PUT", "POST"):
            plain.append(f"content-length: {length}\r\n")
        target = f"{whole}?{query}" if query else whole
        lines = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
        return (
            f"{method} {target} HTTP/1.1\r\n{lines}{''.join(plain)}"
            "accept-encoding: identity\r\nuser-agent: sm-runtime\r\n\r\n"
        ).encode("utf-8", "surrogateescape")

    def _refused(self, response: Response) -> Refusal:
        with response:
            text = response.read().decode("utf-8", "replace")
        headers = response.headers
        code = between(text, "Code") or _CODES.get(response.status, str(response.status))
        region = ""
        if response.status in (301, 307, 400):
            region = headers.get("x-amz-bucket-region", "") or between(text, "Region")
        return Refusal(response.status, code, " ".join(between(text, "Message").split()), region)

    def _set_clock(self, response: Response) -> bool:
        from email.utils import parsedate_to_datetime

        try:
            named = parsedate_to_datetime(response.headers.get("date", "")).timestamp()
        except ValueError:
            return False
        before, self._clock_seconds = self._clock_seconds, named - time.time()
        return abs(before - self._clock_seconds) > 60


_CODES = {
    301: "PermanentRedirect",
    403: "AccessDenied",
    404: "NoSuchKey",
    412: "PreconditionFailed",
}
_PUBLIC = ("NoSuchKey", "NoSuchBucket", "PreconditionFailed", "InvalidRange", *_PASSING)


def between(text: str, name: str) -> str:
    """Return what the first element ``name`` of a short answer holds."""
    from html import unescape

    found = re.search(f"<{name}>([^<]*)</{name}>", text)
    return unescape(found[1]).strip() if found else ""


def refusal(uri: str, verb: str, error: Refusal) -> str:
    """Return why the server refused, as a sentence."""
    code, message = error.code, error.message
    if code == "NoSuchBucket":
        return f"{uri} cannot be {verb}: there is no bucket {uri.split('/')[2]}"
    if code == "NoSuchKey":
        return f"{uri} does not exist"
    if code == "PreconditionFailed":
        return f"{uri} cannot be {verb}: it has changed meanwhile"
    if code == "NoCredentials":
        return (
            f"{uri} cannot be {verb} without credentials: set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, or give the container a role"
        )
    if code == "AccessDenied":
        said = f" ({message})" if message else ""
        return f"{uri} cannot be {verb}: access is denied{said}; {_NEEDED.get(verb, '')}"
    return f"{uri} cannot be {verb}: {error}"


_NEEDED = {
    "downloaded": "s3:GetObject is needed, and without s3:ListBucket an object that is missing is"
    " denied too",
    "listed": "s3:ListBucket is needed",
    "uploaded": "s3:PutObject and s3:AbortMultipartUpload are needed, with a KmsKeyId"
    " kms:GenerateDataKey and kms:Decrypt too",
    "deleted": "s3:DeleteObject is needed",
}

__all__ = ["Attempts", "Broken", "Client", "Refusal", "Stopped", "between", "encoded_query"]
