"""One request and its answer, on a connection that is kept or, if need be, a new one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sm_runtime.storage.http import Pool, Response, never
from sm_runtime.storage.line import Broken, Lost, Place, Stalled, Stopped

if TYPE_CHECKING:
    _T = TypeVar("_T")

CROWDED_SECONDS = 2.0
"""After so long a new connection without an answer is given up for one that waits for a request."""


class Exchange:
    """A request, which is sent at once, and its answer, when it is asked for.

    It goes on a kept connection, where there is one, unless it has to be ``fresh``. One that
    ``moves`` does not wait for long on a new connection while a kept one has nothing to do.
    """

    def __init__(
        self,
        pool: Pool,
        place: Place,
        head: bytes,
        body: bytes | memoryview,
        stopped: Callable[[], bool],
        *,
        fresh: bool = False,
        moves: bool = False,
    ) -> None:
        if stopped():
            raise Stopped
        self._pool, self._place, self._stopped = pool, place, stopped
        self._is_head, self._is_sent = head.startswith(b"HEAD "), False
        self._moves = moves
        kept = None if fresh else pool.idle(place)
        try:
            self._line = kept or pool.connect(place, stopped)
            self._send(head, body)
        except Lost:
            self._line = pool.connect(place, stopped)
            self._send(head, body)

    def answer(self) -> Response:
        """Return the answer as soon as its headers are there. Raises Broken, Lost and Stopped."""
        line = self._line
        line.crowded = self._is_crowded
        try:
            if self._pool.is_crowded and self._is_crowded() and line.is_silent():
                raise Lost(kept=True)
            status, headers = self._tried(line.head)
            line.crowded = never
            bodiless = self._is_head
            return Response(
                self._pool, line, status, headers, bodiless=bodiless, keep=self._is_sent
            )
        except BaseException:
            line.close()
            raise

    @property
    def fileno(self) -> int:
        """The descriptor of the connection."""
        return self._line.fileno

    def close(self) -> None:
        """Give it up."""
        self._line.close()

    def _send(self, head: bytes, body: bytes | memoryview) -> None:
        line = self._line
        line.stopped = self._stopped
        try:
            self._tried(lambda: line.send(head))
            if body:
                line.send(body)
            self._is_sent = True
        except Broken:
            # A server that refuses a long body answers and closes: the answer says more.
            if not body:
                line.close()
                raise
        except BaseException:
            line.close()
            raise

    def _tried(self, step: Callable[[], _T]) -> _T:
        """Do a step; a server may close a kept connection just when a request is on its way."""
        try:
            return step()
        except Stalled:  # it may well be working on it
            raise
        except Broken:
            if self._line.is_used:
                raise Lost(kept=False) from None
            raise

    def _is_crowded(self) -> bool:
        """Return whether a new connection waits for others to end, which wait for requests."""
        line = self._line
        if not self._moves or line.is_used or time.monotonic() - line.sent_at < CROWDED_SECONDS:
            return False
        if not self._pool.has_idle(self._place):
            return False
        self._pool.crowd()
        return True
