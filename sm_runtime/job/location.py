"""Where data is: ``s3://bucket/key``, ``file:///path``; the only place that knows their forms.

A key is taken literally, as S3 does: ``%`` and ``?`` are characters like any other. A path in a
``file://`` URI is percent-encoded (RFC 8089).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from sm_runtime.job.dataclass import dataclass

_ENDPOINTS = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
S3 = "s3"
FILE = "file"


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed URI."""

    scheme: str
    """``s3`` or ``file``."""
    bucket: str
    """Empty for a path on this machine."""
    path: str
    """The key or prefix, which may be empty; or the absolute path, decoded."""


def scheme(uri: str) -> str:
    """Return the scheme of a URI in lower case; empty for a path."""
    before, colon, after = uri.partition(":")
    is_named = colon and (after.startswith("//") or before.lower() == FILE)
    return before.lower() if is_named else ""


def is_s3(uri: object) -> bool:
    """Whether this is an ``s3://`` URI."""
    return isinstance(uri, str) and scheme(uri) == S3


def is_file(uri: object) -> bool:
    """Whether this is a ``file://`` URI."""
    return isinstance(uri, str) and scheme(uri) == FILE


def file_uri(path: str) -> str:
    """Return the URI of an absolute path."""
    from urllib.parse import quote  # only jobs that have such a URI pay for it

    return "file://" + quote(os.fsencode(path))


def parse(uri: str) -> Location:
    """Return what ``uri`` names. Raises ValueError with a sentence about it."""
    kind, rest = scheme(uri), uri.partition(":")[2]
    if kind == S3:
        bucket, _, key = rest[2:].partition("/")
        if "@" in bucket:
            # Not shown: before the '@' there may be a secret.
            raise ValueError("an s3:// URI holds no credentials: write s3://bucket/key")
        if not bucket or "\0" in key:
            raise ValueError(f"{uri!r} names no bucket: write s3://bucket/key")
        return Location(kind, bucket, key)
    if kind != FILE:
        raise ValueError(f"{uri!r} is neither an s3:// nor a file:// URI")
    if rest.startswith("//"):
        host, slash, rest = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise ValueError(f"{uri!r} has the host {host!r}; file:///path has three slashes")
        rest = slash + rest
    from urllib.parse import unquote_to_bytes

    path = os.fsdecode(unquote_to_bytes(os.fsencode(rest)))
    if not path.startswith("/") or "\0" in path:
        raise ValueError(f"{uri!r} names no absolute path")
    return Location(kind, "", path)


def endpoint(environ: Mapping[str, str]) -> str | None:
    """Return the endpoint that is named; the toolkit's variable counts before those of AWS."""
    ignored = environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
    names = _ENDPOINTS[:1] if ignored else _ENDPOINTS
    return next((environ[name] for name in names if environ.get(name)), None)
