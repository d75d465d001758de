"""Many objects downloaded at once: small ones side by side, large ones in parallel ranges."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from sm_runtime.storage import Blob
from sm_runtime.storage.checksums import checksum
from sm_runtime.storage.client import Broken, Client
from sm_runtime.storage.crew import Crew
from sm_runtime.storage.exchange import CROWDED_SECONDS
from sm_runtime.storage.line import TICK_SECONDS
from sm_runtime.storage.parts import new_file, not_written, part_of
from sm_runtime.storage.reading import Reader, Version

log = logging.getLogger(__name__)

THREADS = min(4 * max(len(os.sched_getaffinity(0)), 2), 16)
"""Where few CPUs are, more threads cost more than they bring."""
AHEAD = 8
"""How many short objects a thread has asked for at once; it waits for one after the other."""
_AHEAD_BYTES = 1 << 18
PART_BYTES = 8 << 20
"""What is larger is fetched in ranges of at least as much."""
_LARGEST_PART_BYTES = 64 << 20
_BUFFER_BYTES = 1 << 17
_PATIENCE_SECONDS = 10.0


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
            few: list[tuple[Blob, str]] = []
            size_bytes = 0
            for blob, path in wanted:
                if blob.size_bytes > PART_BYTES:
                    self._crew.submit(partial(self._large, blob, path))
                    continue
                few.append((blob, path))
                size_bytes += blob.size_bytes
                if len(few) == AHEAD or size_bytes >= _AHEAD_BYTES:
                    self._crew.submit(partial(self._few, few))
                    few, size_bytes = [], 0
            if few:
                self._crew.submit(partial(self._few, few))

    def _few(self, few: Sequence[tuple[Blob, str]]) -> None:
        """Download short objects: all are asked for before the first is waited for."""
        bodies = [
            Reader(
                self._client, self._bucket_of(blob), blob.key, Version(blob.uri, blob.size_bytes),
                stopped=self._crew.is_stopped, moves=True,
            )
            for blob, _ in few
        ]  # fmt: skip
        try:
            for body in bodies:
                if not body.ask() or self._client.is_crowded:
                    break
            left = dict(zip(bodies, few, strict=True))
            while left:
                for body in self._answered(list(left)):
                    blob, path = left.pop(body)
                    try:
                        self._small(body, path)
                    except OSError as error:
                        raise not_written(blob, path, error) from error
        finally:
            for body in bodies:
                body.close()

    def _answered(self, bodies: list[Reader]) -> list[Reader]:
        """Wait until some are answered; return these, or else the first.

        A server may have no room for all of our connections: those that it serves come first, and
        on these the others are asked for.
        """
        found, began, waited = select.poll(), time.monotonic(), 0.0
        asked = {body.fileno: body for body in bodies if body.fileno >= 0}
        for descriptor in asked:
            found.register(descriptor, select.POLLIN)
        while asked and waited < _PATIENCE_SECONDS and not self._crew.is_stopped():
            ready = found.poll(TICK_SECONDS * 1000)
            if ready:
                return [asked[descriptor] for descriptor, _ in ready]
            waited = time.monotonic() - began
            is_long = self._client.is_crowded or waited > CROWDED_SECONDS
            if is_long and self._client.has_idle(bodies[0].bucket):
                break
        return bodies[:1]

    def _small(self, body: Reader, path: str) -> None:
        """Write an object into a file and compare its checksum, if the server tells one."""
        self.make_folder(path)
        part, view, doubted = part_of(path), self._buffer(), ""
        descriptor = new_file(part)
        try:
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
            os.rename(part, path)
        except BaseException:
            _remove(part)
            raise
        finally:
            os.close(descriptor)

    def _copy(self, body: Reader, descriptor: int, view: memoryview) -> str:
        """Write all of the body; return its digest where the server said another, or ``""``."""
        body.open()
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
                end=file.part_bytes, stopped=self._crew.is_stopped,
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
        end = min(start + file.part_bytes, blob.size_bytes)
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


Bucket = Callable[[Blob], str]


class _LargeFile:
    """A file whose parts arrive in any order."""

    def __init__(self, fetch: Fetch, blob: Blob, path: str) -> None:
        fetch.make_folder(path)
        self._fetch, self.blob, self.path = fetch, blob, path
        self._part = part_of(path)
        self._missing = blob.size_bytes
        # Two for each thread: servers read ahead of what is asked for, in vain at a range's end.
        share = -(-blob.size_bytes // (2 * THREADS))
        self.part_bytes = min(max(share, PART_BYTES), _LARGEST_PART_BYTES)
        self._lock = threading.Lock()
        self.descriptor = new_file(self._part)

    def parts(self, version: Version, bucket: str) -> Iterator[Callable[[], None]]:
        """Yield the work for all parts but the first."""
        for start in range(self.part_bytes, self.blob.size_bytes, self.part_bytes):
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


@contextlib.contextmanager
def _errors_named(blob: Blob, path: str) -> Iterator[None]:
    """Turn what the file system says into a sentence with the object, the path and the space."""
    try:
        yield
    except OSError as error:
        raise not_written(blob, path, error) from error


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
