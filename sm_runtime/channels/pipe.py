"""Feeds Pipe channels: ``<channel>_<epoch>`` is a FIFO that gives the epoch to its reader.

The writing end of each FIFO is open as long as the FIFO is there. So opening one for reading never
hangs, and the poll that looks for readers (a FIFO without any reports an error) is a single system
call for all of them. The FIFOs of some epochs ahead are always there: an epoch may be skipped, left
early, or be opened while another one is being read. Before a reader can see the end of an epoch
its FIFO is unlinked and the next one is there.

Without ShuffleConfig the objects come as they are listed, page by page, so that the first byte
waits for no full listing. With it every epoch has an order of its own, for which all of them must
be known: they are listed once, when the first epoch is opened, and kept in a temporary file. All
hosts draw the same order from the seed and the epoch; with ShardedByS3Key each takes every n-th
object of it, and so objects move between hosts from epoch to epoch.
"""

from __future__ import annotations

import json
import logging
import os
import select
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, MutableSequence
from contextlib import ExitStack
from itertools import chain, islice
from typing import TypeAlias

from sm_runtime.channels import objects
from sm_runtime.channels.coding import coding, scratch
from sm_runtime.channels.fifos import GATHERED_BYTES, EpochFifo, EpochFifos, Pipe, Ranks
from sm_runtime.channels.read_ahead import Piece, ReadAhead
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Cluster, Job
from sm_runtime.storage import Blob
from sm_runtime.storage.threads import Stopped

log = logging.getLogger(__name__)

Unit: TypeAlias = Blob | str | list[tuple[bool, str]]
"""What is shuffled and dealt out: an object, its URI, or the attributes of an example."""

MEMORY_BYTES = 64 << 20
"""What the read-ahead of all channels may take; that of one that is open is at least a part."""
LEAST_BYTES = 4 << 20
CLOSE_SECONDS = 2.0
_TICK_SECONDS = 0.02
_EARLY_LINES = 3
"""How many epochs of a channel that were left early the log speaks of."""


class Feeds:
    """The Pipe channels of a job that have a source; ``ranks`` processes of a host read them.

    ``fail`` is told why, from another thread, as soon as a source has failed for good: its reader
    sees the end of the data, and must not take it for all of it.
    """

    def __init__(
        self,
        job: Job,
        environ: Mapping[str, str],
        fail: Callable[[str], None],
        *,
        ranks: int = 1,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._fail, self._memory_bytes = fail, memory_bytes
        self._may_be_empty = job.options.allow_empty_channels
        self._origins = objects.Origins.of(job, environ)
        self._channels = [
            channel for channel in job.channels if channel.mode == "Pipe" and channel.source
        ]
        self._ranks = ranks if job.options.pipe_per_rank else None
        if self._channels and ranks > 1 and not job.options.pipe_per_rank:
            names = ", ".join(channel.name for channel in self._channels)
            log.warning(
                "%d processes run on this host, and a FIFO has one reader only: those that open the"
                " same epoch of a Pipe channel (%s) take records from each other, torn ones too;"
                " SM_RUNTIME_PIPE_PER_RANK=1 gives each its own <channel>_<epoch>.rank<n>",
                ranks, names,
            )  # fmt: skip
        self._epochs = {c.name: Epochs(c, job.cluster, self._origins) for c in self._channels}
        self._fifos: EpochFifos | None = None
        self._feeds: dict[Feed, threading.Thread] = {}
        self._early: dict[str, int] = {}
        self._lock = threading.Lock()
        self._wakeup, self._closing = -1, -1
        self._watcher = threading.Thread(target=self._watch, name="pipe-watch", daemon=True)
        self._error: DataError | None = None
        self._is_closed = False

    def start(self) -> None:
        """Make the FIFOs and begin to feed those that are opened.

        Raises DataError where a source cannot be listed or has no object, or a FIFO is in the way.
        """
        if not self._channels:
            return
        try:
            for epochs in self._epochs.values():
                epochs.check(may_be_empty=self._may_be_empty)
            self._wakeup, self._closing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._fifos = EpochFifos(self._channels, self._ranks)
        except BaseException:
            self._release()
            raise
        for channel in self._channels:
            assert channel.source is not None
            log.info("channel %s: %s -> %s_<epoch>", channel.name, channel.source.uri, channel.path)
        self._watcher.start()

    def close(self) -> None:
        """End all feeding within 2 s and remove the FIFOs; raise DataError if a source failed."""
        if self._is_closed:
            return
        self._is_closed = True
        until = time.monotonic() + CLOSE_SECONDS
        if self._closing >= 0:
            os.close(self._closing)  # seen by all threads
            self._closing = -1
        if self._watcher.is_alive():
            self._watcher.join(max(0.0, until - time.monotonic()))
        with self._lock:
            feeds = list(self._feeds.items())
        for feed, _ in feeds:
            feed.close()
        for _, thread in feeds:
            thread.join(max(0.0, until - time.monotonic()))
        stuck = [feed.name for feed, thread in feeds if thread.is_alive() or not feed.join(until)]
        if stuck:
            log.warning("still waiting for the source of %s: left alone", ", ".join(stuck))
        self._release()
        if self._error:
            raise self._error

    def _release(self) -> None:
        """Give back what ``start`` made."""
        if self._fifos:
            self._fifos.close()
        for fd in (self._wakeup, self._closing):
            if fd >= 0:
                os.close(fd)
        self._wakeup = self._closing = -1
        for epochs in self._epochs.values():
            epochs.close()
        self._origins.__exit__(None, None, None)

    def _watch(self) -> None:
        """Start to feed each FIFO that has been opened."""
        assert self._fifos is not None
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        try:
            while not poll.poll(_TICK_SECONDS * 1000):
                # After a failure nothing is begun: what is opened waits for the end of the script.
                for fifo in () if self._error else self._fifos.opened():
                    self._begin(fifo)
        except Exception as error:
            self._failed("Pipe channels", error)

    def _begin(self, fifo: EpochFifo) -> None:
        name = fifo.channel.name
        feed = Feed(
            fifo, self._epochs[name].pieces(fifo.epoch), self._origins, self._allowed, self._wakeup
        )
        thread = threading.Thread(target=self._run, args=(feed, fifo.channel), daemon=True)
        thread.name = f"pipe-{feed.name}"
        with self._lock:
            self._feeds[feed] = thread
        thread.start()

    def _run(self, feed: Feed, channel: Channel) -> None:
        try:
            if feed.run():
                self._left_early(feed, channel)
        except Stopped:
            pass
        except Exception as error:
            self._failed(f"channel {channel.name}", error)
        finally:
            feed.close()
            assert self._fifos is not None
            self._fifos.ended(feed.fifo)
            with self._lock:
                if not self._is_closed:  # else it is waited for
                    del self._feeds[feed]

    def _left_early(self, feed: Feed, channel: Channel) -> None:
        """Note that a reader has closed its FIFO before the end, or was killed: that is allowed."""
        with self._lock:
            count = self._early[channel.name] = self._early.get(channel.name, 0) + 1
        log.log(
            logging.INFO if count <= _EARLY_LINES else logging.DEBUG,
            "channel %s: epoch %d was left by its reader before its end, %.1f MB were sent",
            channel.name, feed.fifo.epoch, feed.sent_bytes / 1e6,
        )  # fmt: skip

    def _failed(self, what: str, error: Exception) -> None:
        """Tell of a failure that nothing can mend."""
        if self._is_closed:
            return
        if not isinstance(error, DataError):
            log.error("%s: the feeder failed", what, exc_info=error)
        text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        with self._lock:
            if self._error:
                log.error("%s", text)
                return
            self._error = DataError(text if text.startswith(what) else f"{what}: {text}")
        self._fail(str(self._error))

    def _allowed(self) -> int:
        """Return how much the read-ahead of one epoch may take now, in bytes."""
        readers = max(len(self._feeds), len(self._channels))
        return max(LEAST_BYTES, self._memory_bytes // readers)


class Feed:
    """One epoch on its way from its objects to the reader of its FIFO."""

    def __init__(
        self,
        fifo: EpochFifo,
        pieces: Iterator[Piece],
        origin_of: objects.OriginOf,
        allowed_bytes: Callable[[], int],
        wakeup: int,
    ) -> None:
        self.fifo = fifo
        self.name = f"{fifo.channel.name}_{fifo.epoch}"
        self.sent_bytes = 0
        self._wakeup = wakeup
        self._ahead = ReadAhead(pieces, origin_of, allowed_bytes)

    def run(self) -> bool:
        """Feed the epoch to its end, or until its reader has gone; return whether that was early.

        Raises DataError where the source fails, Stopped.
        """
        fifo, began = self.fifo, time.monotonic()
        out: Pipe | Ranks = Pipe(fifo.fds[0], self._wakeup)
        if fifo.is_ranked:
            out = Ranks(fifo, self._wakeup)
        try:
            with ExitStack() as undo:
                code = coding(fifo.channel, undo)
                while parts := self._ahead.ready(GATHERED_BYTES):
                    out.write(code(parts))
                    self._ahead.release(parts)
                out.end()
        except BrokenPipeError:
            return True
        finally:
            self.sent_bytes = out.sent_bytes
        rate = out.sent_bytes / max(time.monotonic() - began, 1e-6) / 1e6
        log.debug("%s: %d bytes at %.1f MB/s", self.name, out.sent_bytes, rate)
        return False

    def close(self) -> None:
        """Have ``run`` end soon, from any thread."""
        self._ahead.close()

    def join(self, until: float) -> bool:
        """Wait for the threads after ``close``; return whether all have ended."""
        return self._ahead.join(max(0.0, until - time.monotonic()))


class Epochs:
    """The epochs of one channel that has a source, as this host sees them; for any thread."""

    def __init__(self, channel: Channel, cluster: Cluster, origin_of: objects.OriginOf) -> None:
        assert channel.source is not None
        self._channel, self._source = channel, channel.source
        self._uri = objects.file_uri(channel.source.uri)
        self._share = objects.share(channel, cluster)
        self._origin_of = origin_of
        self._lock = threading.Lock()
        self._spool: _Units | None = None
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

    def _spooled(self) -> _Units:
        begun = self._all()
        with self._lock:
            if self._spool is None:
                spool = _Units()
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


class _Units:
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
