"""Signatures of requests: AWS Signature Version 4 for S3.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import quote

from sm_runtime.frozen import dataclass

UNSIGNED = "UNSIGNED-PAYLOAD"
"""Bodies are covered by their own checksum; see the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Credentials, as they are now."""

    access: str
    secret: str
    token: str | None = None


def encoded_path(path: str) -> str:
    """Return ``path`` as it is both sent and signed: S3 alone encodes it once."""
    return quote(path.encode("utf-8", "surrogateescape"), safe="/-_.~")


def encoded_query(items: Iterable[tuple[str, str]]) -> str:
    """Return the query in the order and spelling that is signed."""
    pairs = sorted((_encoded(name), _encoded(value)) for name, value in items)
    return "&".join(f"{name}={value}" for name, value in pairs)


def stamp(seconds: float) -> str:
    """Return a time as signatures spell it, in UTC."""
    return _stamp(int(seconds))


def authorization(
    keys: Keys, region: str, method: str, path: str, query: str, headers: dict[str, str]
) -> str:
    """Return the header ``Authorization``: signs all of ``headers``, whose names are lower case.

    Among them are ``host``, ``x-amz-date`` and ``x-amz-content-sha256``.
    """
    names = sorted(headers)
    signed = ";".join(names)
    lines = "".join(f"{name}:{headers[name]}\n" for name in names)
    canonical = "\n".join((method, path, query, lines, signed, headers["x-amz-content-sha256"]))
    moment = headers["x-amz-date"]
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"
    key = _signing_key(keys.secret, moment[:8], region)
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    return (
        f"AWS4-HMAC-SHA256 Credential={keys.access}/{scope},"
        f"SignedHeaders={signed},Signature={signature}"
    )


def _encoded(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"), safe="-_.~")


@lru_cache(2)
def _stamp(seconds: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


@lru_cache(8)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
