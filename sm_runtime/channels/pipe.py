"""Feeds Pipe channels: ``<channel>_<epoch>`` is a FIFO that gives the epoch to whoever opens it.

The writing end of each FIFO is open as long as the FIFO is there. So opening one for reading never
hangs, and the poll that looks for readers (a FIFO without any reports an error) is a single system
call for all of them. The FIFOs of some epochs ahead are always there: an epoch may be skipped, left
early, or be opened while another one is being read. Before a reader can see the end of an epoch
its FIFO is unlinked and the next one is there.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Mapping

from sm_runtime.channels import objects
from sm_runtime.channels.epoch_fifos import EpochFifo, EpochFifos
from sm_runtime.channels.epochs import Epochs
from sm_runtime.channels.feed import Feed
from sm_runtime.channels.read_ahead import ClosedError
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Job

log = logging.getLogger(__name__)

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
        self._doors: EpochFifos | None = None
        self._feeds: dict[Feed, threading.Thread] = {}
        self._early: dict[str, int] = {}
        self._lock = threading.Lock()
        self._wakeup, self._closing = -1, -1
        self._watcher = threading.Thread(target=self._watch, name="pipe-watch", daemon=True)
        self._error: DataError | None = None
        self._is_closed = False

    def start(self) -> None:
        """Make the FIFOs and begin to feed whoever opens one.

        Raises DataError where a source cannot be listed or has no object, or a FIFO is in the way.
        """
        if not self._channels:
            return
        try:
            for epochs in self._epochs.values():
                epochs.check(may_be_empty=self._may_be_empty)
            self._wakeup, self._closing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._doors = EpochFifos(self._channels, self._ranks)
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
        if self._doors:
            self._doors.close()
        for fd in (self._wakeup, self._closing):
            if fd >= 0:
                os.close(fd)
        self._wakeup = self._closing = -1
        for epochs in self._epochs.values():
            epochs.close()
        self._origins.__exit__(None, None, None)

    def _watch(self) -> None:
        """Start to feed each FIFO that has been opened."""
        assert self._doors is not None
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        try:
            while not poll.poll(_TICK_SECONDS * 1000):
                # After a failure nothing is begun: what is opened waits for the end of the script.
                for door in () if self._error else self._doors.opened():
                    self._begin(door)
        except Exception as error:
            self._failed("Pipe channels", error)

    def _begin(self, door: EpochFifo) -> None:
        name = door.channel.name
        feed = Feed(
            door, self._epochs[name].pieces(door.epoch), self._origins, self._allowed, self._wakeup
        )
        thread = threading.Thread(target=self._run, args=(feed, door.channel), daemon=True)
        thread.name = f"pipe-{feed.name}"
        with self._lock:
            self._feeds[feed] = thread
        thread.start()

    def _run(self, feed: Feed, channel: Channel) -> None:
        try:
            if feed.run():
                self._left_early(feed, channel)
        except ClosedError:
            pass
        except Exception as error:
            self._failed(f"channel {channel.name}", error)
        finally:
            feed.close()
            assert self._doors is not None
            self._doors.ended(feed.door)
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
            channel.name, feed.door.epoch, feed.sent_bytes / 1e6,
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
