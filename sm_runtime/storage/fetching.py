"""Many objects downloaded at once: small ones side by side, large ones in parallel ranges."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from zlib import crc32

from sm_runtime.errors import DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.client import Broken, Client
from sm_runtime.storage.crew import Crew
from sm_runtime.storage.reading import Reader, Version

log = logging.getLogger(__name__)

THREADS = 16
PART_BYTES = 8 << 20
_BUFFER_BYTES = 1 << 18
WRITERS = 2
"""How many threads write into one file at once: more wait for each other in the kernel."""
_LONGEST_NAME = 255
_SUFFIX = ".sm-runtime.part"


class Fetch:
    """One call of ``Origin.fetch`` for a bucket."""

    def __init__(
        self, client: Client, crew: Crew, progress: Callable[[int], None], bucket_of: Bucket
    ) -> None:
        self._client, self._crew, self._progress = client, crew, progress
        self._bucket_of = bucket_of
        self._local = threading.local()
        self._folders: set[str] = set()

    def run(self, wanted: Iterable[tuple[Blob, str]]) -> None:
        """Have all downloaded, or raise."""
        with contextlib.ExitStack() as undo, self._crew:
            self._undo = undo
            for blob, path in wanted:
                large = blob.size_bytes > PART_BYTES
                self._crew.submit(partial(self._large if large else self._small, blob, path))

    def _small(self, blob: Blob, path: str) -> None:
        """Download an object with one request and compare its checksum, if the server tells one."""
        view: memoryview = self._buffer()
        version = Version(blob.uri, blob.size_bytes)
        bucket = self._bucket_of(blob)
        doubted = ""
        with (
            _errors_named(blob, path),
            Reader(self._client, bucket, blob.key, version, stopped=self._crew.is_stopped) as body,
        ):
            body.open()
            with self._new(path) as (descriptor, complete):
                while True:
                    digest = self._copy(body, descriptor, view)
                    if digest == doubted or not digest:
                        break
                    # The same content twice, and not what the tag says: it is no checksum.
                    doubted = digest
                    self._progress(-body.position)
                    os.ftruncate(descriptor, 0)
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    body.retry(Broken("what came does not match its checksum"))
                complete()

    def _copy(self, body: Reader, descriptor: int, view: memoryview) -> str:
        """Write all of the body; return its digest where the server said another, or ``""``."""
        check = checksum(body.headers)
        filled = 0
        while count := body.readinto(view[filled:]):
            self._progress(count)
            filled += count
            if filled == len(view):
                _write(descriptor, view)
                check.update(view)
                filled = 0
        _write(descriptor, view[:filled])
        check.update(view[:filled])
        return "" if check.holds() else check.digest()

    def _large(self, blob: Blob, path: str) -> None:
        """Begin with the first range: its answer tells whether the server sends ranges at all."""
        version = Version(blob.uri, blob.size_bytes)
        bucket = self._bucket_of(blob)
        with _errors_named(blob, path):
            file = _LargeFile(self, blob, path)
            self._undo.callback(file.close)
            reader = Reader(
                self._client, bucket, blob.key, version,
                end=PART_BYTES, stopped=self._crew.is_stopped,
            )  # fmt: skip
            with reader as body:
                body.open()
                if body.is_ranged:
                    self._crew.extend(file.parts(version, bucket))
                else:
                    body.end = blob.size_bytes
                self.fill(file, body)

    def part(self, file: _LargeFile, version: Version, bucket: str, start: int) -> None:
        """Download one more range of a file."""
        blob = file.blob
        end = min(start + PART_BYTES, blob.size_bytes)
        with (
            _errors_named(blob, file.path),
            Reader(
                self._client, bucket, blob.key, version,
                start=start, end=end, stopped=self._crew.is_stopped,
            ) as body,
        ):  # fmt: skip
            self.fill(file, body)

    def fill(self, file: _LargeFile, body: Reader) -> None:
        """Write what ``body`` gives where it belongs."""
        view, begun = self._buffer(), body.position
        at = begun
        while count := body.readinto(view):
            with file.writing:
                _write_at(file.descriptor, view[:count], at)
            at += count
            self._progress(count)
        file.filled(at - begun)

    def _buffer(self) -> memoryview:
        view: memoryview | None = getattr(self._local, "view", None)
        if view is None:
            view = self._local.view = memoryview(bytearray(_BUFFER_BYTES))
        return view

    def make_folder(self, path: str) -> None:
        """Make the folder of ``path``, once."""
        folder = os.path.dirname(path)
        if folder not in self._folders:
            os.makedirs(folder or ".", exist_ok=True)
            self._folders.add(folder)

    @contextlib.contextmanager
    def _new(self, path: str) -> Iterator[tuple[int, Callable[[], None]]]:
        """Open what becomes ``path`` when it is said to be complete, and goes otherwise."""
        self.make_folder(path)
        part = part_of(path)
        descriptor = new_file(part)
        is_complete = False

        def complete() -> None:
            nonlocal is_complete
            os.rename(part, path)
            is_complete = True

        try:
            yield descriptor, complete
        finally:
            os.close(descriptor)
            if not is_complete:
                _remove(part)


Bucket = Callable[[Blob], str]


class _LargeFile:
    """A file whose parts arrive in any order."""

    def __init__(self, fetch: Fetch, blob: Blob, path: str) -> None:
        fetch.make_folder(path)
        self._fetch, self.blob, self.path = fetch, blob, path
        self._part = part_of(path)
        self._missing = blob.size_bytes
        self._lock = threading.Lock()
        self.writing = threading.Semaphore(WRITERS)
        self.descriptor = new_file(self._part)

    def parts(self, version: Version, bucket: str) -> Iterator[Callable[[], None]]:
        """Yield the work for all parts but the first."""
        for start in range(PART_BYTES, self.blob.size_bytes, PART_BYTES):
            yield partial(self._fetch.part, self, version, bucket, start)

    def filled(self, size_bytes: int) -> None:
        """Take note of what is there; the last one gives the file its name."""
        with self._lock:
            self._missing -= size_bytes
            if self._missing:
                return
            os.close(self.descriptor)
            self.descriptor = -1
        os.rename(self._part, self.path)

    def close(self) -> None:
        """Remove what is not complete."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            _remove(self._part)


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


def part_of(path: str) -> str:
    """Return the name that a file has until it is complete: none that a key is likely to have."""
    folder, name = os.path.split(path)
    if len(os.fsencode(name)) + len(_SUFFIX) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return os.path.join(folder, name + _SUFFIX)


def new_file(path: str) -> int:
    """Open an empty file, in the place of what an earlier attempt may have left."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o666)


@contextlib.contextmanager
def _errors_named(blob: Blob, path: str) -> Iterator[None]:
    """Turn what the file system says into a sentence with the object, the path and the space."""
    try:
        yield
    except OSError as error:
        raise not_written(blob, path, error) from error


def not_written(blob: Blob, path: str, error: OSError) -> DataError:
    """Return the sentence about a file that cannot be written."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = os.path.dirname(path) or "."
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            reason += f" ({blob.size_bytes} bytes needed, {found.f_bavail * found.f_frsize} free)"
    return DataError(f"{blob.uri} cannot be written to {path}: {reason}")


def _write(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]


def _write_at(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error.strerror)
