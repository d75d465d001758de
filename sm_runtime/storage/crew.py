"""A few threads that work for one caller: the first error ends all of it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

from sm_runtime.storage.line import Stopped

_TICK_SECONDS = 0.25
_WAITING = 1000


class Crew:
    """Runs what it is given on up to ``threads`` threads until its block ends.

    When the block ends by itself, all work is waited for and the first error of any is raised.
    Otherwise what is under way is told to stop by ``is_stopped``, and waited for.
    """

    def __init__(
        self, threads: int, stopped: Callable[[], bool], *, waiting: int = _WAITING
    ) -> None:
        self._limit, self._waiting, self._stopped = threads, waiting, stopped
        self._queue: deque[Callable[[], None]] = deque()
        self._series: deque[Iterator[Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._is_closed = self._is_halted = False
        self._error: BaseException | None = None

    def is_stopped(self) -> bool:
        """Return whether to stop: for an error elsewhere, or because the caller was asked to."""
        return self._is_halted or self._stopped()

    def submit(self, work: Callable[[], None]) -> None:
        """Have ``work`` done as soon as can be; waits while too much else is waiting already."""
        with self._changed:
            while len(self._queue) >= self._waiting:
                self.check()
                self._changed.wait(_TICK_SECONDS)
            self.check()
            self._queue.append(work)
            self._recruit()
            self._changed.notify()

    def extend(self, series: Iterator[Callable[[], None]]) -> None:
        """Have a series done before all else; called by work that is under way."""
        with self._changed:
            self._series.append(series)
            self._recruit()
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until all that was submitted is done, or raise what went wrong."""
        with self._changed:
            while self._busy or self._queue or self._series:
                self.check()
                self._changed.wait(_TICK_SECONDS)
            self.check()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            with self._changed:
                self._is_halted = self._is_closed = True
                self._changed.notify_all()
            for thread in self._threads:
                thread.join()

    def check(self) -> None:
        """Raise what went wrong elsewhere, or Stopped."""
        if self._error is not None:
            raise self._error
        if self._stopped():
            raise Stopped

    def _recruit(self) -> None:
        """Start another thread while all are busy."""
        if self._busy + len(self._queue) > len(self._threads) < self._limit or self._series:
            wanted = self._limit if self._series else len(self._threads) + 1
            while len(self._threads) < wanted:
                thread = threading.Thread(target=self._work, name="sm-runtime-io", daemon=True)
                thread.start()
                self._threads.append(thread)

    def _work(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except BaseException as error:
                with self._changed:
                    if self._error is None and not self._is_halted:
                        self._error = error
                    self._is_halted = True
            with self._changed:
                self._busy -= 1
                if not self._busy or self._is_halted or len(self._queue) < self._waiting // 2:
                    self._changed.notify_all()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._is_halted:
                while self._series:
                    work = next(self._series[0], None)
                    if work is not None:
                        self._busy += 1
                        return work
                    self._series.popleft()
                if self._queue:
                    self._busy += 1
                    return self._queue.popleft()
                if self._is_closed:
                    break
                self._changed.wait()
            return None
