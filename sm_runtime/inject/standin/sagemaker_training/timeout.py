"""A time limit for a block of code."""

from __future__ import annotations

import contextlib
import signal
from typing import Any, Iterator


class TimeoutError(Exception):
    """The block took longer."""


@contextlib.contextmanager
def timeout(seconds: float = 0, minutes: float = 0, hours: float = 0) -> Iterator[None]:
    """Raise TimeoutError in the block when the sum of the times is over; main thread only."""
    limit = seconds + 60 * minutes + 3600 * hours

    def expired(*_: Any) -> None:
        raise TimeoutError(f"timed out after {limit} seconds")

    try:
        signal.signal(signal.SIGALRM, expired)
        signal.setitimer(signal.ITIMER_REAL, limit)
        yield
    finally:
        signal.alarm(0)
