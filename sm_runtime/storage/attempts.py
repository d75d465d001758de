"""What to do when a request fails: wait and try once more, or say why not."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from sm_runtime.job.errors import DataError
from sm_runtime.storage.line import Broken, Stopped
from sm_runtime.storage.signing import Keys

log = logging.getLogger(__name__)

ATTEMPTS = 8
_JOB_RETRIES = 500
_FIRST_DELAY_SECONDS = 0.1
_MAX_DELAY_SECONDS = 10.0
_PROGRESS_BYTES = 2 << 20
PASSING = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling",
            "ThrottlingException", "RequestLimitExceeded", "OperationAborted",
            "BadDigest")  # fmt: skip
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken")


class Refusal(Exception):
    """A server answered that it will not; ``passing`` tells whether it may change its mind."""

    def __init__(self, status: int, code: str, message: str, region: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.status, self.code, self.message, self.region = status, code, message, region
        self.keys: Keys | None = None
        """The credentials that the server refused."""
        self.told = False
        """Whether the server said with it what will pass: another region, another time."""
        self.passing = status in (500, 502, 503, 504, 429, 408) or code in PASSING


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
    end of the job's budget. ``renew`` looks for newer credentials; see ``Client.attempts``.
    """

    def __init__(
        self,
        budget: Budget,
        renew: Callable[[Keys | None], bool],
        uri: str,
        verb: str,
        stopped: Callable[[], bool],
        limit: int,
    ) -> None:
        self._budget, self._renew = budget, renew
        self._uri, self._verb, self._stopped, self._limit = uri, verb, stopped, limit
        self._failures = 0
        self._renewed = False

    def failed(self, error: Broken | Refusal, received: int = 0, wanted: int = 1) -> None:
        """Wait until the next attempt; raise DataError where there is none.

        ``received`` of the ``wanted`` bytes came before it failed: enough is as good as a success.
        """
        if isinstance(error, Refusal) and not error.passing:
            expired = error.code in _EXPIRED or (error.status == 403 and not error.message)
            if expired and not self._renewed and self._renew(error.keys):
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
        if not self._budget.spend():
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
