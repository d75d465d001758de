"""What a server says of an object's content, compared with what came."""

from __future__ import annotations

import hashlib
from zlib import crc32


class Checksum:
    """A checksum that grows with the bytes, beside what a server said about it."""

    def __init__(self, said: str, kind: str) -> None:
        self._said, self._kind = said, kind
        self._crc = 0
        self._hash = hashlib.new(kind, usedforsecurity=False) if kind not in ("crc32", "") else None

    def update(self, view: memoryview) -> None:
        """Take note of some bytes."""
        if self._hash:
            self._hash.update(view)
        elif self._kind:
            self._crc = crc32(view, self._crc)

    def digest(self) -> str:
        """Return it in hexadecimal digits."""
        return self._hash.hexdigest() if self._hash else f"{self._crc:08x}"

    def holds(self) -> bool:
        """Return whether it is what the server said, if it said anything."""
        return not self._kind or self.digest() == self._said


def checksum(headers: dict[str, str]) -> Checksum:
    """Return what can be compared for a whole object, the cheapest first.

    The tag of an object that was uploaded in one part is its MD5, unless KMS encrypts it.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
    """
    from base64 import b64decode

    if "content-range" in headers:
        return Checksum("", "")
    for kind in ("crc32", "sha256", "sha1"):
        said = headers.get(f"x-amz-checksum-{kind}", "")
        if said and "-" not in said:  # else of the parts, not of the whole
            return Checksum(b64decode(said).hex(), kind)
    etag = headers.get("etag", "").strip('"')
    kept = headers.get("x-amz-server-side-encryption", "")
    own = "x-amz-server-side-encryption-customer-algorithm" in headers
    if len(etag) == 32 and not own and not kept.startswith("aws:kms"):
        return Checksum(etag.lower(), "md5")
    return Checksum("", "")
