"""Threads for work that may block for long, such as requests of a library.

All are daemons. One that is stalled in a library when a stop is asked for, or when another one
fails, is left behind: it must not keep the job.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

TICK_SECONDS = 0.25
"""How often a waiting caller asks whether to stop."""
_JOIN_SECONDS = 0.5
_WAITING = 1000
_T = TypeVar("_T")


class Stopped(Exception):
    """The caller was asked to stop."""


class Calls:
    """Runs single calls on threads that are kept for the next one; used by any thread.

    The caller's own thread never enters a library that does not return to Python while it waits:
    in the main thread that would delay the handlers of signals.
    """

    def __init__(self) -> None:
        self._idle: deque[SimpleQueue[Any]] = deque()
        self._is_closed = False

    def __call__(self, work: Callable[[], _T], stopped: Callable[[], bool]) -> _T:
        """Return what ``work`` returns, or raise what it raises; Stopped as soon as that is so."""
        if stopped():
            raise Stopped
        answer: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name="s3", daemon=True).start()
        inbox.put((work, answer))
        while True:
            try:
                result, error = answer.get(timeout=TICK_SECONDS)
            except Empty:
                if stopped():
                    raise Stopped from None
                continue
            if error is not None:
                raise error
            found: _T = result
            return found

    def close(self) -> None:
        """End the threads, those that are busy as soon as they are not."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _serve(self, inbox: SimpleQueue[Any]) -> None:
        while (task := inbox.get()) is not None:
            work, answer = task
            done: tuple[Any, BaseException | None]
            try:
                done = (work(), None)
            except BaseException as error:
                done = (None, error)
            self._idle.append(inbox)
            answer.put(done)
            del task, work, answer, done  # not kept until the next call
            if self._is_closed:
                self.close()


class Workers:
    """Runs what it is given on up to ``threads`` threads until its block ends.

    When the block ends by itself, all work is waited for and the first error of any is raised.
    Otherwise what is under way is told to stop by ``is_stopped``, and left behind if it does not.
    """

    def __init__(
        self, threads: int, stopped: Callable[[], bool], *, waiting: int = _WAITING
    ) -> None:
        self._limit, self._waiting, self._stopped = threads, waiting, stopped
        self._queue: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._is_closed = self._is_halted = False
        self._error: BaseException | None = None

    def is_stopped(self) -> bool:
        """Return whether to stop: for an error elsewhere, or because the caller was asked to."""
        return self._is_halted or self._stopped()

    def check(self) -> None:
        """Raise the first error, or Stopped."""
        if self._error is not None:
            raise self._error
        if self.is_stopped():
            raise Stopped

    def submit(self, work: Callable[[], None]) -> None:
        """Have ``work`` done as soon as possible; waits while too much else is waiting."""
        with self._changed:
            while len(self._queue) >= self._waiting:
                self.check()
                self._changed.wait(TICK_SECONDS)
            self.check()
            self._queue.append(work)
            if self._busy + len(self._queue) > len(self._threads) < self._limit:
                thread = threading.Thread(target=self._work, name="storage", daemon=True)
                thread.start()
                self._threads.append(thread)
            self._changed.notify()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self.close()
            self.join(_JOIN_SECONDS)

    def close(self) -> None:
        """Tell what is under way to stop, and begin nothing more."""
        with self._changed:
            self._is_halted = self._is_closed = True
            self._changed.notify_all()

    def join(self, seconds: float) -> bool:
        """Wait for the threads after ``close``; return whether they have ended."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _wait(self) -> None:
        with self._changed:
            while self._busy or self._queue:
                self.check()
                self._changed.wait(TICK_SECONDS)
            self.check()

    def _work(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except BaseException as error:
                with self._changed:
                    if self._error is None and not self._is_halted:
                        self._error = error
                    self._is_halted = True
            del work  # and what it holds
            with self._changed:
                self._busy -= 1
                if not self._busy or self._is_halted or len(self._queue) < self._waiting // 2 + 1:
                    self._changed.notify_all()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._is_halted:
                if self._queue:
                    self._busy += 1
                    return self._queue.popleft()
                if self._is_closed:
                    break
                self._changed.wait()
            return None
