"""What obstore and botocore raise, as one sentence: the object, the cause, what to do."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from importlib.util import find_spec

from sm_runtime.job.errors import DataError
from sm_runtime.storage.threads import Stopped

EXPIRED = frozenset(
    ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken")
)
ELSEWHERE = frozenset(
    ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
)
"""Codes with which a server says that a bucket is in another region."""
DAMAGED = frozenset(("BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest"))
NO_RANGES = "NoRanges"
UNNAMED = "Unnamed"
"""Of a key that obstore cannot name."""
CA_AS_SERVER = "CaUsedAsEndEntity"
_CODE, _MESSAGE = re.compile(r"<Code>([^<]*)</Code>"), re.compile(r"<Message>([^<]*)</Message>")
_STATUS, _RETRIES = re.compile(r"status code: (\d{3})"), re.compile(r"after (\d+) retries")
_ORIGIN = re.compile(r"Error performing \w+ (https?://[^/\s]+)")
_MEANT = {"301": "PermanentRedirect", "403": "AccessDenied", "404": "NoSuchKey",
          "412": "PreconditionFailed", "401": "AccessDenied"}  # fmt: skip
_NEEDED = {
    "downloaded": "s3:GetObject is needed, and without s3:ListBucket an object that is missing is"
    " denied too",
    "listed": "s3:ListBucket is needed",
    "uploaded": "s3:PutObject and s3:AbortMultipartUpload are needed, with a KmsKeyId"
    " kms:GenerateDataKey and kms:Decrypt too",
    "deleted": "s3:DeleteObject is needed",
}


@dataclass(frozen=True)
class Cause:
    """Why a request failed: the error code of S3, where a server answered, and the message."""

    code: str = ""
    message: str = ""
    attempts: int = 1

    @property
    def is_absent(self) -> bool:
        """Whether there is no such object."""
        return self.code == "NoSuchKey"


CHANGED = Cause("PreconditionFailed")


class Refused(DataError):
    """A request that failed for good; ``cause`` says why."""

    def __init__(self, text: str, cause: Cause) -> None:
        super().__init__(text)
        self.cause = cause


def cause_of(error: BaseException) -> Cause:
    """Return why a library's request failed."""
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:
        found = response["Error"]
        code = str(found.get("Code", ""))
        message = "" if code.isdecimal() else str(found.get("Message", ""))
        retries = response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
        return Cause(_MEANT.get(code, code), " ".join(message.split()), retries + 1)
    if not type(error).__module__.startswith("obstore") and not _ORIGIN.search(str(error)):
        return Cause("", _line(error))
    return _of_obstore(str(error))


def _of_obstore(text: str) -> Cause:
    said, _, debug = text.partition("\n\nDebug source:")
    retries = _RETRIES.search(said)
    attempts = int(retries[1]) + 1 if retries else 1
    code, message = _CODE.search(said), _MESSAGE.search(said)
    if code:
        told = " ".join(unescape(message[1]).split()) if message else ""
        return Cause(unescape(code[1]), told, attempts)
    if status := _STATUS.search(said):
        return Cause(_MEANT.get(status[1], f"status {status[1]}"), "", attempts)
    if "non-partial response" in said or "Content-Range header not present" in said:
        return Cause(NO_RANGES, "the server does not send ranges of objects", attempts)
    if "redirect without LOCATION" in said:
        return Cause("PermanentRedirect", "the bucket is in another region", attempts)
    if "nvalid multipart response" in said or "ompleteMultipart" in said:
        return Cause("", "the server's answer does not say that the object is complete", attempts)
    if "ETag Header missing" in said:
        return Cause("", "the server's answer has no ETag", attempts)
    if "credential provider: " in said:
        return Cause("", "no credentials: " + said.partition("credential provider: ")[2], attempts)
    return Cause(*_of_connection(said, debug), attempts)


def _of_connection(said: str, debug: str) -> tuple[str, str]:
    """Return the code and the message where there was no answer: Rust's debug text has the why."""
    found = _ORIGIN.search(said)
    where = found[1] if found else "the endpoint"
    failed = f"Could not connect to the endpoint URL {where}"
    if CA_AS_SERVER in debug:
        return CA_AS_SERVER, f"{failed}: its certificate is that of a CA, not of a server"
    if "NotValidForName" in debug:
        host = where.partition("://")[2].rpartition(":")[0] or where
        return "", f"{failed}: certificate verify failed: it is not valid for {host!r}"
    if "InvalidCertificate" in debug:
        return "", f"{failed}: certificate verify failed, see AWS_CA_BUNDLE"
    if "kind: Connect," in debug:
        told = re.findall(r'message: "([^"]*)"', debug)
        if "TimedOut" in debug or not told:
            told = ["timed out" if "TimedOut" in debug else "connection failed"]
        if "unsuccessful tunnel" in debug or "tunnel error" in debug or "Proxy" in debug:
            told = ["the proxy refuses to connect"]
        return "", f"{failed}: {told[-1]}"
    if "TimedOut" in debug or "kind: Timeout" in debug:
        return "Stalled", ""
    if "IncompleteMessage" in debug or "kind: Decode" in debug or "UnexpectedEof" in debug:
        return "", "the connection was closed early"
    told = re.findall(r'message: "([^"]*)"', debug)
    return "", told[-1] if told else " ".join(said.split())[:300]


def refusal(uri: str, verb: str, cause: Cause, stall_seconds: float = 0) -> Refused:
    """Return the error about ``uri`` that cannot be ``downloaded``, ``uploaded``, ``listed``."""
    code, message = cause.code, cause.message
    text = f"{uri} cannot be {verb}: "
    if code == "NoSuchBucket":
        text += f"there is no bucket {uri.split('/')[2]}"
    elif cause.is_absent:
        text = f"{uri} does not exist"
    elif code == "PreconditionFailed":
        text += "it has changed meanwhile"
    elif code == "NoCredentials":
        text = (
            f"{uri} cannot be {verb} without credentials: set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, or give the container a role"
        )
    elif code == "AccessDenied":
        said = f" ({message})" if message else ""
        text += f"access is denied{said}; {_NEEDED.get(verb, '')}"
    else:
        if code == "Stalled":
            message = f"nothing moved for {stall_seconds:g} s"
            code = ""
        text += ": ".join(part for part in (code, message) if part)
        text += f" ({cause.attempts} attempts)" if cause.attempts > 1 else ""
    return Refused(text, cause)


def missing(uri: str) -> str | None:
    """Return what to do where a library is missing for ``uri``: a command for a shell."""
    names = [name for name in ("boto3", "obstore") if find_spec(name) is None]
    if not names:
        return None
    python = shlex.quote(sys.executable or "python3")
    are = "which are" if len(names) > 1 else "which is"
    return (
        f"{uri} needs {' and '.join(names)}, {are} not installed:"
        f" {python} -m pip install {' '.join(names)}"
    )


@contextmanager
def stop_is_an_error(what: str) -> Iterator[None]:
    """Turn a stop, and what only this package knows, into the DataError of storage's interface."""
    try:
        yield
    except Refused as error:
        raise DataError(str(error)) from error
    except Stopped:
        raise DataError(f"{what} cannot be downloaded: a stop was asked for") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
