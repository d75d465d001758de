"""What a Pipe channel streams in each of its epochs, and in which order.

Without ShuffleConfig the objects come as they are listed, page by page, so that the first byte
waits for no full listing. With it every epoch has an order of its own, for which all of them must
be known: they are listed once, when the first epoch is opened, and kept in a temporary file. All
hosts draw the same order from the seed and the epoch; with ShardedByS3Key each takes every n-th
object of it, and so objects move between hosts from epoch to epoch.
"""

from __future__ import annotations

import json
import os
import threading
from array import array
from collections.abc import Iterator, MutableSequence
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeAlias

from sm_runtime.channels import objects
from sm_runtime.channels.scratch import scratch
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Cluster
from sm_runtime.storage import Blob

if TYPE_CHECKING:
    Piece: TypeAlias = Blob | str | bytes
    Unit: TypeAlias = Blob | str | list[tuple[bool, str]]
else:
    Piece = object
    """An object, the URI of one that is still to be looked up, or bytes to send as they are."""
    Unit = object
    """What is shuffled and dealt out: an object, its URI, or the attributes of an example."""


class Epochs:
    """The epochs of one channel that has a source, as this host sees them; for any thread."""

    def __init__(self, channel: Channel, cluster: Cluster, origin_of: objects.OriginOf) -> None:
        assert channel.source is not None
        self._channel, self._source = channel, channel.source
        self._uri = objects.file_uri(channel.source.uri)
        self._share = objects.share(channel, cluster)
        self._origin_of = origin_of
        self._lock = threading.Lock()
        self._spool: Spool | None = None
        self._begun: Iterator[Unit] | None = None

    def check(self, *, may_be_empty: bool = False) -> None:
        """Look for the first object; raise DataError where there is none, or it is malformed.

        The listing that this begins is the one that the first epoch goes on with.
        """
        units = self._units()
        first = next(units, None)
        if first is None:
            if may_be_empty:
                return
            raise DataError(f"channel {self._channel.name}: {self._uri} matched 0 objects")
        self._begun = chain((first,), units)

    def pieces(self, number: int) -> Iterator[Piece]:
        """Yield what epoch ``number`` consists of, in order; raises DataError as it goes."""
        share = self._share
        mine: Iterator[Unit]
        if self._source.shuffle_seed is None:
            mine = islice(self._all(), share.index, None, share.count)
        else:
            spool = self._spooled()
            drawn = order(len(spool), self._source.shuffle_seed, number)
            mine = map(spool.__getitem__, islice(drawn, share.index, None, share.count))
        for unit in mine:
            if isinstance(unit, list):
                for is_reference, value in unit:
                    yield value if is_reference else value.encode()
            else:
                yield unit

    def close(self) -> None:
        """Give the temporary file back."""
        with self._lock:
            if self._spool:
                self._spool.close()

    def _all(self) -> Iterator[Unit]:
        """Return a listing: the one that ``check`` began, and new ones after that."""
        with self._lock:
            begun, self._begun = self._begun, None
        return begun or self._units()

    def _spooled(self) -> Spool:
        begun = self._all()
        with self._lock:
            if self._spool is None:
                spool = Spool()
                try:
                    spool.fill(begun)
                except BaseException:
                    spool.close()
                    raise
                self._spool = spool
            return self._spool

    def _units(self) -> Iterator[Unit]:
        kind, uri = self._source.data_type, self._uri
        if kind not in ("ManifestFile", "AugmentedManifestFile"):
            yield from objects.objects(self._channel, self._origin_of)
            return
        where = f"channel {self._channel.name}: {uri}"
        origin = self._origin_of(uri)
        if kind == "ManifestFile":
            yield from objects.manifest_entries(objects.content(origin, uri), where)
            return
        lines = objects.lines(origin, uri)
        for attributes in objects.augmented(lines, self._source.attribute_names, where):
            yield [(attribute.is_reference, attribute.value) for attribute in attributes]


class Spool:
    """Units in a temporary file, found by position; each costs 8 bytes of memory."""

    def __init__(self) -> None:
        self._file = scratch("ShuffleConfig")
        self._ends = array("Q", (0,))

    def fill(self, units: Iterator[Unit]) -> None:
        """Add all ``units``; raises DataError where the disk is full."""
        try:
            for unit in units:
                value = _fields(unit) if isinstance(unit, Blob) else unit
                text = json.dumps(value).encode()
                self._file.write(text)
                self._ends.append(self._ends[-1] + len(text))
            self._file.flush()
        except OSError as error:
            raise DataError(f"the listing of a shuffled channel cannot be kept: {error}") from None

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> Unit:
        start, end = self._ends[position : position + 2]
        value = json.loads(os.pread(self._file.fileno(), end - start, start))
        if isinstance(value, dict):
            return Blob(**value)
        unit: Unit = value
        return unit

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


def _fields(blob: Blob) -> dict[str, object]:
    return {
        "uri": blob.uri,
        "key": blob.key,
        "size_bytes": blob.size_bytes,
        "etag": blob.etag,
    }


def order(count: int, seed: int, number: int) -> MutableSequence[int]:
    """Return the order of ``count`` units in epoch ``number``: the same one on every host."""
    from random import Random

    drawn = array("Q", range(count))
    Random(f"{seed} {number}").shuffle(drawn)
    return drawn
