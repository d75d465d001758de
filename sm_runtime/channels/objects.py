"""Says which objects of a channel are this host's; nothing of them is read but manifests.

A manifest lists objects (AWS API reference, ``S3DataSource``); an augmented one lists examples
(SageMaker guide, "Augmented manifest files").
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from threading import Lock

from sm_runtime.job import location
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Cluster, Job, Source
from sm_runtime.storage import Blob, Origin, open_origin

_ASKED_AT_ONCE = 32
_ASKED_AHEAD = 256

OriginOf = Callable[[str], Origin]
"""Returns the place of a URI."""
_BUFFER_BYTES = 1 << 18
_MAX_LINE_BYTES = 64 << 20


class Origins:
    """The places that URIs name, each opened once; a context manager, and an ``OriginOf``."""

    def __init__(
        self, environ: Mapping[str, str], region: str, *, stall_seconds: float = 30
    ) -> None:
        self._environ, self._region, self._stall_seconds = environ, region, stall_seconds
        self._opened: dict[tuple[str, str], Origin] = {}
        self._lock = Lock()

    def __call__(self, uri: str) -> Origin:
        """Return the place of ``uri``; raise DataError where it names none."""
        place = place_of(uri)
        with self._lock:
            if place not in self._opened:
                self._opened[place] = open_origin(
                    uri, self._environ, self._region, stall_seconds=self._stall_seconds
                )
            return self._opened[place]

    @classmethod
    def of(cls, job: Job, environ: Mapping[str, str]) -> Origins:
        """Return the places of a job's channels."""
        return cls(environ, job.region, stall_seconds=job.options.stall_seconds)

    def __enter__(self) -> Origins:
        return self

    def __exit__(self, *_: object) -> None:
        while self._opened:
            self._opened.popitem()[1].close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """This host's part of a sharded channel: every ``count``-th object, from ``index`` on."""

    index: int = 0
    count: int = 1

    def holds(self, position: int) -> bool:
        """Return whether the object at ``position`` in the order of keys is this host's."""
        return position % self.count == self.index


def place_of(uri: str) -> tuple[str, str]:
    """Return the scheme and the bucket of ``uri``: what needs connections of its own."""
    found = _parsed(uri)
    return found.scheme, found.bucket


def share(channel: Channel, cluster: Cluster) -> Shard:
    """Return which objects of the channel are this host's.

    The hosts of the groups that receive the channel take turns, in the order of the groups and of
    the hosts in them. SageMaker does not say which host gets which object: scripts cannot rely on
    it, but a restarted job gets the same ones.
    """
    if channel.distribution != "ShardedByS3Key":
        return Shard()
    groups = channel.source.instance_groups if channel.source else ()
    hosts = cluster.hosts
    if groups and cluster.groups:
        hosts = tuple(h for group in cluster.groups if group.name in groups for h in group.hosts)
    if cluster.current_host not in hosts:
        raise DataError(
            f"channel {channel.name}: the host {cluster.current_host!r} is not one of those that"
            f" share its objects: {', '.join(hosts)}"
        )
    return Shard(index=hosts.index(cluster.current_host), count=len(hosts))


def objects(
    channel: Channel, origin_of: OriginOf, stopped: Callable[[], bool] = lambda: False
) -> Iterator[Blob]:
    """Yield all objects below a channel's prefix, also those of other hosts.

    Objects without a byte whose key ends in a slash are left out: consoles make them as folders.
    """
    assert channel.source is not None
    uri = prefix_of(channel.source)
    for blob in origin_of(uri).list(uri, stopped=stopped):
        if blob.size_bytes or not blob.key.endswith("/"):
            yield blob


def prefix_of(source: Source) -> str:
    """Return the prefix to list: a local folder is only itself, not ``<folder>2`` as well."""
    uri = file_uri(source.uri)
    is_folder = location.is_file(uri) and os.path.isdir(key_of(uri))
    return uri + "/" if is_folder and not uri.endswith("/") else uri


def file_uri(uri: str) -> str:
    """Return ``uri``, a bare path (``DirectoryPath``) as a URI."""
    return uri if location.scheme(uri) else location.file_uri(uri)


def key_of(uri: str) -> str:
    """Return the key in its bucket that ``uri`` names, or the absolute path."""
    found = _parsed(uri)
    if found.bucket:
        return found.path
    path = found.path
    return os.path.normpath(path).rstrip("/") + "/" * path.endswith("/")


def _parsed(uri: str) -> location.Location:
    try:
        return location.parse(uri)
    except ValueError as error:
        raise DataError(str(error)) from None


def stats(uris: Iterable[str], origin_of: OriginOf) -> Iterator[Blob]:
    """Yield the object at each URI, in order; many are asked for at once, a few hundred ahead."""
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    ahead: deque[Future[Blob]] = deque()
    with ThreadPoolExecutor(_ASKED_AT_ONCE, "stat") as pool:
        try:
            for uri in uris:
                ahead.append(pool.submit(origin_of(uri).stat, uri))
                if len(ahead) > _ASKED_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One attribute of an example: a text, or the URI of the object that holds it."""

    name: str
    value: str
    is_reference: bool = False
    content: object = None
    """The value as JSON has it."""


def manifest_entries(text: bytes | str, where: str) -> list[str]:
    """Return the URIs of the objects that a manifest lists, in its order.

    ``where`` begins the sentence of the DataError that is raised for what is no
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON document: {error}") from None
    head = document[0] if isinstance(document, list) and document else None
    prefix = head.get("prefix") if isinstance(head, dict) else None
    if not isinstance(prefix, str) or not prefix:
        raise DataError(
            f'{where} is no manifest: a list is needed whose first element is {{"prefix": "s3://..."}}'
        )
    if not _is_location(prefix):
        raise DataError(f"{where}: the prefix {prefix!r} must begin with s3:// or file:///")
    for position, entry in enumerate(document[1:], 1):
        if not isinstance(entry, str) or not entry:
            raise DataError(f"{where}: element {position} must be a key, not {_short(entry)}")
    if len(document) < 2:
        raise DataError(f"{where} lists no objects: keys are needed after the prefix")
    return [prefix + entry for entry in document[1:]]


def manifest_prefix(text: bytes | str) -> str:
    """Return the prefix of a manifest that ``manifest_entries`` has accepted."""
    return str(json.loads(text)[0]["prefix"])


def augmented(
    lines: Iterable[bytes], names: tuple[str, ...], where: str
) -> Iterator[tuple[Attribute, ...]]:
    """Yield the attributes ``names`` of each line of an augmented manifest, in that order.

    A value under a name that ends in ``-ref`` is the URI of an object; another one is sent as
    text: a string as it is, anything else as JSON. Raises DataError naming the line.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            example = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: line {number} is no JSON: {error}") from None
        if not isinstance(example, dict):
            raise DataError(f"{where}: line {number} must be an object, not {_short(example)}")
        yield tuple(_attribute(example, name, f"{where}: line {number}") for name in names)


def _attribute(example: dict[str, object], name: str, where: str) -> Attribute:
    if name not in example:
        raise DataError(f"{where} has no attribute {name!r}, only {', '.join(map(repr, example))}")
    value = example[name]
    if not name.endswith("-ref"):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return Attribute(name=name, value=text, content=value)
    if not isinstance(value, str) or not _is_location(value):
        raise DataError(f"{where}: {name} must be the URI of an object, not {_short(value)}")
    return Attribute(name=name, value=value, is_reference=True, content=value)


def _is_location(uri: str) -> bool:
    try:
        location.parse(uri)
    except ValueError:
        return False
    return True


def content(origin: Origin, uri: str) -> bytes:
    """Return all bytes of the object at ``uri``."""
    return b"".join(_pieces(origin, uri))


def lines(origin: Origin, uri: str) -> Iterator[bytes]:
    """Yield the lines of the object at ``uri`` without their ends, a buffer at a time."""
    rest = b""
    for piece in chain(_pieces(origin, uri), (b"\n",)):
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise DataError(f"{uri} has a line of more than {_MAX_LINE_BYTES >> 20} MiB")
        yield from whole


def _pieces(origin: Origin, uri: str) -> Iterator[bytes]:
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with origin.open(origin.stat(uri)) as body:
        while count := body.readinto(buffer):
            yield bytes(buffer[:count])


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
