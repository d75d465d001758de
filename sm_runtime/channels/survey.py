"""Lists what a channel will hold and refuses what cannot be placed, before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import TypeVar

from sm_runtime.channels import manifest, plan, selection
from sm_runtime.channels.selection import OriginOf, key_of, place_of
from sm_runtime.channels.spool import Spool
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Cluster, Source
from sm_runtime.storage import Blob

log = logging.getLogger(__name__)

_STOP_EVERY = 512
_T = TypeVar("_T")


class Survey:
    """The files of a channel on this host: what they are, how many, how large, and where they go.

    Built by ``survey``. A channel of a million objects takes some ten MiB here.
    """

    def __init__(self, channel: Channel, path_of: Callable[[Blob], str]) -> None:
        self.channel = channel
        self.files = 0
        self.size_bytes = 0
        self.matched = 0
        """How many objects there are for all hosts together."""
        self.local_files = 0
        self.local_bytes = 0
        """What could be a link to a local file as well, as it is not unpacked."""
        self.places: set[tuple[str, str]] = set()
        self.layout = plan.Layout()
        self.lines: tuple[str, list[bytes]] | None = None
        """Of an augmented manifest: the name and the lines of the file that tells of the others."""
        self._path_of = path_of
        self._spool = Spool()
        self._head, self._is_local = "", False  # of the place of the last object
        self._digest: blake2b | None = blake2b(digest_size=16)

    @property
    def source(self) -> Source:
        """Where the channel's data comes from."""
        assert self.channel.source is not None
        return self.channel.source

    @property
    def where(self) -> str:
        """How a sentence about the channel begins."""
        return f"channel {self.channel.name}: {self.source.uri}"

    @property
    def unpacks(self) -> bool:
        """Whether the objects are compressed and the files are not to be."""
        return self.source.compression == "Gzip"

    @property
    def version(self) -> str | None:
        """What tells this content from any other; None where the store does not."""
        return self._digest.hexdigest() if self._digest else None

    def take(self, blob: Blob, *, is_mine: bool = True) -> None:
        """Take an object in if it is this host's.

        Raises DataError if there can be no file for it, whoever's it is: all hosts then say so.
        """
        path = self._path_of(blob)
        reason = plan.unfit(path)
        if reason:
            raise DataError(f"{self.where}: the path {path!r} of the key {blob.key!r} {reason}")
        self.matched += 1
        if not is_mine:
            return
        self.files += 1
        self.size_bytes += blob.size_bytes
        if not (self._head and blob.uri.startswith(self._head)):
            self._enter(place_of(blob.uri))
        if self._is_local:
            self.local_files += 1
            self.local_bytes += blob.size_bytes
        self.layout.add(path)
        self._spool.add(blob)
        if blob.etag is None:
            self._digest = None
        elif self._digest:
            text = f"{blob.uri}\0{blob.size_bytes}\0{blob.etag}\0{path}\0{self.unpacks}\0"
            self._digest.update(text.encode("utf-8", "surrogatepass"))

    def _enter(self, place: tuple[str, str]) -> None:
        self.places.add(place)
        self._head = f"{place[0]}://{place[1]}/"
        self._is_local = self.is_local(place)

    def is_local(self, place: tuple[str, str]) -> bool:
        """Return whether what comes from ``place`` could be a link as well."""
        return place[0] == "file" and not self.unpacks

    def check_all(self) -> None:
        """Raise DataError if two of the objects exclude each other."""
        clash = self.layout.clash()
        if clash is None:
            return
        if self.lines:
            clash.see(self.lines[0], self.lines[0], self.where)
        for blob in self._spool:
            clash.see(blob.key, self._path_of(blob), self.where)

    def wanted(self, place: tuple[str, str] | None = None) -> Iterator[tuple[Blob, str]]:
        """Yield the objects, of one place or all, each with its absolute path."""
        folder = self.channel.path + "/"
        is_all = place is None or self.places == {place}
        for blob in self._spool:
            if is_all or place_of(blob.uri) == place:
                yield blob, folder + self._path_of(blob)


def survey(
    channel: Channel, cluster: Cluster, origins: OriginOf, stopped: Callable[[], bool]
) -> Survey:
    """Return what the channel holds on this host; raise DataError for what cannot be placed."""
    source = channel.source
    assert source is not None
    if source.data_type == "AugmentedManifestFile":
        found = _examples(channel, cluster, origins, stopped)
    else:
        found = _objects(channel, cluster, origins, stopped)
    found.check_all()
    return found


def _objects(
    channel: Channel, cluster: Cluster, origins: OriginOf, stopped: Callable[[], bool]
) -> Survey:
    """Return the survey of a prefix or of a manifest."""
    source = channel.source
    assert source is not None
    prefix = selection.prefix_of(source)
    listed: Iterable[Blob] = selection.objects(channel, origins, stopped)
    if source.data_type == "ManifestFile":
        text = manifest.content(origins(source.uri), source.uri)
        uris = manifest.entries(text, f"channel {channel.name}: {source.uri}")
        prefix = manifest.prefix(text)
        # Listed twice it is read twice in Pipe mode, and is one file here.
        listed = selection.stats(dict.fromkeys(uris), origins)
    key_prefix = key_of(prefix)
    below = _below_prefix if source.data_type != "ManifestFile" else _below_manifest
    found = Survey(channel, _unpacked(below(key_prefix), source.compression))
    part = selection.share(channel, cluster)
    beside = _PrefixSiblings(key_prefix)
    for position, blob in enumerate(stoppable(listed, stopped)):
        beside.see(blob.key)
        found.take(blob, is_mine=part.holds(position))
    if source.data_type == "S3Prefix":
        beside.warn(found.where)
    return found


def _examples(
    channel: Channel, cluster: Cluster, origins: OriginOf, stopped: Callable[[], bool]
) -> Survey:
    """Return the survey of an augmented manifest: its lines, and the objects they refer to."""
    import json
    import random

    source = channel.source
    assert source is not None
    found = Survey(channel, lambda blob: _below_bucket(blob.uri))
    part = selection.share(channel, cluster)
    references: dict[str, None] = {}
    lines: list[bytes] = []
    count = 0
    raw = manifest.lines(origins(source.uri), source.uri)
    examples = manifest.augmented(raw, source.attribute_names, found.where)
    for position, example in enumerate(stoppable(examples, stopped)):
        count = position + 1
        if not part.holds(position):
            continue
        line = {}
        for attribute in example:
            value = attribute.content
            if attribute.is_reference:
                references[attribute.value] = None
                value = _below_bucket(attribute.value)
            line[attribute.name] = value
        lines.append(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if source.shuffle_seed is not None:
        random.Random(source.shuffle_seed).shuffle(lines)
    name = key_of(source.uri).rpartition("/")[2]
    found.lines = name, lines
    found.layout.add(name)
    for blob in stoppable(selection.stats(references, origins), stopped):
        found.take(blob)
    found.matched = count  # what is counted is examples: they may refer to nothing
    return found


def _below_bucket(uri: str) -> str:
    return plan.below_bucket(place_of(uri)[1], key_of(uri))


def _below_prefix(prefix: str) -> Callable[[Blob], str]:
    return lambda blob: plan.below_prefix(blob.key, prefix)


def _below_manifest(prefix: str) -> Callable[[Blob], str]:
    return lambda blob: blob.key[len(prefix) :].removeprefix("/")


def _unpacked(path_of: Callable[[Blob], str], compression: str) -> Callable[[Blob], str]:
    if compression != "Gzip":
        return path_of
    return lambda blob: plan.unpacked(path_of(blob))


def stoppable(items: Iterable[_T], stopped: Callable[[], bool]) -> Iterator[_T]:
    """Yield the items; raise DataError in between when ``stopped`` says so."""
    for position, item in enumerate(items):
        if position % _STOP_EVERY == 0 and stopped():
            raise DataError("the download was stopped")
        yield item


class _PrefixSiblings:
    """Notices that a prefix matches more than what is below it as a folder."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._below = False
        self._others = 0
        self._first = ""

    def see(self, key: str) -> None:
        if plan.is_beside(key, self._prefix):
            self._first = self._first or key
            self._others += 1
        else:
            self._below = True

    def warn(self, where: str) -> None:
        """Warn if both kinds are there: seldom is that meant."""
        if self._below and self._others:
            more = f" and {self._others - 1} more" if self._others > 1 else ""
            log.warning(
                "%s also matches %s%s, as S3 compares plain strings; end it with '/' if only the"
                " folder is meant",
                where,
                self._first,
                more,
            )
