"""Lists what a channel will hold and refuses what cannot be placed, before anything is written.

What is said to be so "on the platform" is in the SageMaker guide and in logs of its jobs.
"""

from __future__ import annotations

import logging
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import pairwise
from typing import TypeVar

from sm_runtime.channels import UNFINISHED, objects
from sm_runtime.channels.objects import OriginOf, key_of, place_of
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Cluster, Source
from sm_runtime.storage import Blob
from sm_runtime.storage.writing import is_part

log = logging.getLogger(__name__)

_STOP_EVERY = 512
_T = TypeVar("_T")
_MAX_NAME_BYTES = 255
_BATCH = 2048
_FIELDS = 4


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
        self.layout = Layout()
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

        Raises DataError if there can be no file for it, on whichever host: all of them then say so.
        """
        path = self._path_of(blob)
        reason = unfit(path)
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
    listed: Iterable[Blob]
    if source.data_type == "ManifestFile":
        text = objects.content(origins(source.uri), source.uri)
        uris = objects.manifest_entries(text, f"channel {channel.name}: {source.uri}")
        prefix = objects.manifest_prefix(text)
        # Listed twice it is read twice in Pipe mode, and is one file here.
        listed = objects.stats(dict.fromkeys(uris), origins)
    else:
        prefix = objects.prefix_of(source)
        listed = objects.objects(channel, origins, stopped)
    key_prefix = key_of(prefix)

    def path_of(blob: Blob) -> str:
        if source.data_type == "ManifestFile":
            path = blob.key[len(key_prefix) :].removeprefix("/")
        else:
            path = below_prefix(blob.key, key_prefix)
        return unpacked(path) if source.compression == "Gzip" else path

    found = Survey(channel, path_of)
    part = objects.share(channel, cluster)
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
    part = objects.share(channel, cluster)
    references: dict[str, None] = {}
    lines: list[bytes] = []
    count = 0
    raw = objects.lines(origins(source.uri), source.uri)
    examples = objects.augmented(raw, source.attribute_names, found.where)
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
    for blob in stoppable(objects.stats(references, origins), stopped):
        found.take(blob)
    found.matched = count  # what is counted is examples: they may refer to nothing
    return found


def _below_bucket(uri: str) -> str:
    """Return the path of an object that an augmented manifest refers to: its bucket and key."""
    return f"{place_of(uri)[1]}/{key_of(uri)}".lstrip("/")


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
        if is_beside(key, self._prefix):
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


def below_prefix(key: str, prefix: str) -> str:
    """Return the path of an object that a prefix matches, relative to the channel's folder.

    What is below the prefix as a folder keeps the rest of its key, as on the platform. What the
    prefix matches otherwise, as S3 compares plain strings, keeps the whole last part of the prefix:
    ``s3://b/data/train`` gives ``train2/x`` for ``data/train2/x``, and ``train`` for the one object
    ``data/train``.
    """
    folder = prefix if prefix.endswith("/") or not prefix else prefix + "/"
    if key.startswith(folder) and key != folder:
        return key[len(folder) :]
    return key[prefix.rfind("/", 0, len(prefix) - 1 if key == prefix else None) + 1 :]


def is_beside(key: str, prefix: str) -> bool:
    """Return whether a prefix matches a key that is not below it as a folder."""
    return bool(prefix) and not prefix.endswith("/") and not key.startswith(prefix + "/")


def unpacked(path: str) -> str:
    """Return the path of what a compressed object holds: without ``.gz``, as gunzip names it."""
    stem = path.removesuffix(".gz")
    return stem if stem and not stem.endswith("/") else path


def unfit(path: str) -> str | None:
    """Return why there can be no file at the relative ``path``; None where there can be."""
    parts = path.split("/")
    if ".." in parts:
        return "leads out of the channel's folder"
    if "" in parts or "." in parts:
        return "has an empty part or '.' between slashes, which no file can have"
    if "\0" in path:
        return "has a NUL in it"
    if path == UNFINISHED or is_part(path):
        return "has a name that marks an unfinished download"
    if len(path) > _MAX_NAME_BYTES // 4 and max(len(_encoded(p)) for p in parts) > _MAX_NAME_BYTES:
        return f"has a part of more than {_MAX_NAME_BYTES} bytes, which no file can have"
    return None


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class Layout:
    """Finds paths that exclude each other: the same one twice, or a file that is a folder too.

    A path costs eight bytes, whatever its length and the order they come in.
    """

    def __init__(self) -> None:
        self._files = array("q")
        self._folders = array("q")
        self._last = ""
        self._sorted: list[int] | None = None

    def add(self, path: str) -> None:
        """Take note of a file."""
        self._files.append(hash(path))
        folder = path.rpartition("/")[0]
        if folder != self._last:
            self._add_folders(folder)
            self._last = folder

    def _add_folders(self, folder: str) -> None:
        while folder and not (self._last + "/").startswith(folder + "/"):
            self._folders.append(hash(folder))
            folder = folder.rpartition("/")[0]

    def holds(self, path: str) -> bool:
        """Return whether there is a file at ``path``."""
        return self._index(hash(path)) >= 0

    def clash(self) -> PathConflict | None:
        """Return what is wrong with the paths; None in the usual case."""
        marks = self._marks()
        same = {mark for mark, after in pairwise(marks) if mark == after}
        both = {mark for mark in self._folders if self._index(mark) >= 0}
        return PathConflict(same, both) if same or both else None

    def _marks(self) -> list[int]:
        if self._sorted is None or len(self._sorted) != len(self._files):
            self._sorted = sorted(self._files)
        return self._sorted

    def _index(self, mark: int) -> int:
        marks = self._marks()
        at = bisect_left(marks, mark)
        return at if at < len(marks) and marks[at] == mark else -1


class PathConflict:
    """Names two objects that exclude each other: hashes told that there are some, not which."""

    def __init__(self, same: set[int], both: set[int]) -> None:
        self._same, self._both = same, both
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def see(self, key: str, path: str, where: str) -> None:
        """Take note of an object; raise DataError if it is the second of two."""
        if hash(path) in self._same | self._both:
            other = self._files.setdefault(path, key)
            if other != key:
                raise DataError(f"{where}: {other!r} and {key!r} would be the same file, {path}")
            if path in self._folders:
                raise DataError(_both(where, key, self._folders[path]))
        folder = path.rpartition("/")[0]
        while folder:
            if hash(folder) in self._both:
                self._folders.setdefault(folder, key)
                if folder in self._files:
                    raise DataError(_both(where, self._files[folder], key))
            folder = folder.rpartition("/")[0]


def _both(where: str, file: str, below: str) -> str:
    return f"{where}: {file!r} would be a file, and a folder because of {below!r}"


class Spool:
    """Objects in the order they came in, compressed; read as often as needed.

    A key and a URI hold no NUL: it stands between the fields.
    """

    def __init__(self) -> None:
        self._batches: list[bytes] = []
        self._fields: list[str] = []

    def add(self, blob: Blob) -> None:
        """Append an object."""
        head = blob.uri.removesuffix(blob.key)
        # A URI that does not end in its key, being percent-encoded, is kept as a whole.
        mark = "" if len(head) < len(blob.uri) else "="
        self._fields += (str(blob.size_bytes), blob.etag or "", mark + head, blob.key)
        if len(self._fields) >= _BATCH * _FIELDS:
            text = "\0".join(self._fields).encode("utf-8", "surrogatepass")
            self._batches.append(zlib.compress(text, 1))
            self._fields = []

    def __iter__(self) -> Iterator[Blob]:
        for batch in self._batches:
            yield from _blobs(zlib.decompress(batch).decode("utf-8", "surrogatepass").split("\0"))
        yield from _blobs(self._fields)


def _blobs(fields: list[str]) -> Iterator[Blob]:
    each = iter(fields)
    for size, etag, head, key in zip(each, each, each, each, strict=True):
        uri = head[1:] if head.startswith("=") else head + key
        yield Blob(uri=uri, key=key, size_bytes=int(size), etag=etag or None)
