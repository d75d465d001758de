"""Says which objects of a channel are this host's; nothing of them is read but manifests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

from sm_runtime.channels import manifest
from sm_runtime.job import location
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Cluster, Job, Source
from sm_runtime.storage import Blob, Origin, open_origin

_ASKED_AT_ONCE = 32
_ASKED_AHEAD = 256

OriginOf = Callable[[str], Origin]
"""Returns the place of a URI."""


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


def blobs(channel: Channel, cluster: Cluster, origin_of: OriginOf) -> Iterator[Blob]:
    """Yield this host's objects of a channel (S3Prefix or ManifestFile), in order.

    That of the keys, or of the manifest. Raises DataError.
    """
    return mine(objects(channel, origin_of), share(channel, cluster))


def mine(found: Iterable[Blob], part: Shard) -> Iterator[Blob]:
    """Yield those of a channel's objects that are this host's."""
    return (blob for position, blob in enumerate(found) if part.holds(position))


def objects(
    channel: Channel, origin_of: OriginOf, stopped: Callable[[], bool] = lambda: False
) -> Iterator[Blob]:
    """Yield all objects of a channel (S3Prefix or ManifestFile), whoever's they are.

    Objects without a byte whose key ends in a slash are left out: consoles make them as folders.
    """
    source = channel.source
    assert source is not None
    if source.data_type == "ManifestFile":
        where = f"channel {channel.name}: {source.uri}"
        origin = origin_of(source.uri)
        uris = manifest.entries(manifest.content(origin, source.uri), where)
        yield from stats(uris, origin_of)
        return
    uri = prefix_of(source)
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
