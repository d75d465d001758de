"""The data of a job around its script: fetched before it, fed and synced while it runs.

A job whose data a platform has placed passes through here without importing anything.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sm_runtime import channels, sync
from sm_runtime.code import fetch as source
from sm_runtime.job.dataclass import replace
from sm_runtime.job.model import Job
from sm_runtime.output.outcome import Timeline
from sm_runtime.processes.supervisor import Supervisor

if TYPE_CHECKING:
    from types import TracebackType

    from sm_runtime.output.artifacts import Saved
    from sm_runtime.sync.folders import Syncs

log = logging.getLogger(__name__)


class Inputs:
    """The channels and the synced folders of one job, as a context manager around its script.

    ``fail`` is told why, from any thread, when a channel fails while the script reads it.
    """

    def __init__(
        self,
        job: Job,
        variables: Mapping[str, str],
        supervisor: Supervisor,
        timeline: Timeline,
        fail: Callable[[str], None],
    ) -> None:
        self._job, self._variables = job, variables
        self._supervisor, self._timeline, self._fail = supervisor, timeline, fail
        self._syncs: Syncs | None = sync.open_syncs(job, variables)
        self._placed = self._code_placed = False
        self._channels: list[channels.Placed] = []
        """What was placed and is still to be shown to the script."""
        self._error: BaseException | None = None
        self._opened = ExitStack()

    def __enter__(self) -> Inputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """End what feeds the channels; raises DataError where a source has failed."""
        self._opened.close()

    def fetch(self) -> None:
        """Begin to place the data: in a thread of its own where there is something to fetch."""
        if self._syncs is None and all(channel.source is None for channel in self._job.channels):
            self._place()
            self._raise()
            return
        threading.Thread(target=self._place, name="download", daemon=True).start()

    def wait_for_code(self) -> None:
        """Wait until the channel that the code comes from is in place; see ``wait``."""
        self._supervisor.wait_until(lambda: self._code_placed or self._placed)
        self._raise()
        self._show()

    def wait(self) -> None:
        """Wait until the data is in place; raises what went wrong with it.

        Called by the thread that starts the script: some of it only this thread's children see.
        """
        self._supervisor.wait_until(lambda: self._placed)
        self._raise()
        self._show()

    def open(self, ranks: int) -> None:
        """Begin to feed, mount and sync for a script that runs as ``ranks`` processes here."""
        job = self._job
        _forget_epochs(job)
        if any(c.mode == "Pipe" and c.source is not None for c in job.channels):
            from sm_runtime.channels.pipe import Feeds

            feeds = Feeds(job, self._variables, self._fail, ranks=ranks)
            self._opened.callback(feeds.close)
            feeds.start()
        for pid in self._opened.enter_context(channels.mounted(job, self._variables)):
            self._supervisor.exclude(pid)
        if self._syncs is not None:
            self._syncs.start()
        self._supervisor.when_stopped(self._hurry)

    def end(self) -> None:
        """Begin to send what is left of the synced folders: the script is gone."""
        if self._syncs is not None:
            self._syncs.end()

    def finish(self) -> tuple[Saved, ...]:
        """Wait until that is done, after a signal as long as the engine gives; see ``Syncs``."""
        return self._syncs.finish(until=self.deadline) if self._syncs is not None else ()

    def is_over(self) -> bool:
        """Return whether a signal has asked for a stop so long ago that nothing can be sent now."""
        return time.monotonic() >= self.deadline()

    def _hurry(self) -> None:
        """A signal asks for a stop while the script runs."""
        if self._syncs is not None:
            self._syncs.hurry()

    def deadline(self) -> float:
        """Return when all has to be saved, monotonic.

        Only a signal is followed by another one that kills: what asks for a stop here can wait.
        """
        signalled_at = self._supervisor.signalled_at
        return float("inf") if signalled_at is None else signalled_at + self._job.stop_seconds

    def _place(self) -> None:
        """Fetch the channels and what was synced by an earlier attempt."""
        try:
            with self._timeline.phase("download"):
                self._prepare()
                if self._syncs is not None:
                    self._syncs.restore(self._stopped)
        except BaseException as error:
            self._error = error
        finally:
            self._placed = True
            self._supervisor.wake()

    def _prepare(self) -> None:
        """Place the channels, that of the code first: the rest comes while code is installed."""
        job, first = self._job, source.channel_of_code(self._job)
        if first is not None:
            only = replace(job, channels=(first,))
            self._channels.append(channels.prepare(only, self._variables, self._stopped))
            job = replace(job, channels=tuple(c for c in job.channels if c != first))
        self._code_placed = True
        self._supervisor.wake()
        self._channels.append(channels.prepare(job, self._variables, self._stopped))

    def _show(self) -> None:
        while self._channels:
            self._opened.enter_context(channels.bound(self._channels.pop(0)))

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _stopped(self) -> bool:
        return self._supervisor.stopped_by is not None


def _forget_epochs(job: Job) -> None:
    """Have the readers of Pipe channels begin at epoch 0, as the channels do with each attempt."""
    pipes = [channel.name for channel in job.channels if channel.mode == "Pipe"]
    if not pipes:
        return
    from sm_runtime.pipe_mode.records import forget_epochs

    for name in pipes:
        try:
            forget_epochs(job.paths.pipe_state, name)
        except OSError as error:
            log.warning(
                "channel %s: readers do not begin at epoch 0: %s: %s",
                name, error.filename, error.strerror,
            )  # fmt: skip
