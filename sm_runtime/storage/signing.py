"""Signatures of requests: AWS Signature Version 4 for S3.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

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


class Form:
    """What requests have in common that differ only in method, path and query.

    ``headers`` are all that are signed, names in lower case; among them are ``host``,
    ``x-amz-date`` and ``x-amz-content-sha256``.
    """

    def __init__(
        self, access: str, secret: str, region: str, headers: tuple[tuple[str, str], ...]
    ) -> None:
        found = dict(headers)
        moment, names = found["x-amz-date"], sorted(found)
        signed = ";".join(names)
        lines = "".join(f"{name}:{found[name]}\n" for name in names)
        scope = f"{moment[:8]}/{region}/s3/aws4_request"
        self._canonical = f"{lines}\n{signed}\n{found['x-amz-content-sha256']}"
        self._text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n"
        self._key = _signing_key(secret, moment[:8], region)
        self._proof = (
            f"AWS4-HMAC-SHA256 Credential={access}/{scope},SignedHeaders={signed},Signature="
        )
        self.lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        """The headers, as they are sent."""

    def authorization(self, method: str, path: str, query: str) -> str:
        """Return the header ``Authorization`` of one request."""
        canonical = f"{method}\n{path}\n{query}\n{self._canonical}"
        digest = hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest()
        text = (self._text + digest).encode()
        return self._proof + hmac.digest(self._key, text, "sha256").hex()


form = lru_cache(64)(Form)
"""The same, kept: many requests of the same second have the same."""


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
