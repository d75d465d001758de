"""When it is time to say in the log what is waited for."""

from __future__ import annotations

NOTICE_SECONDS = 10.0


class Notice:
    """Says when a line in the log is due, and how long the wait has been; times are monotonic."""

    def __init__(self, now: float, every_seconds: float = NOTICE_SECONDS) -> None:
        self._started = now
        self._every, self._next = every_seconds, now + every_seconds

    def is_due(self, now: float) -> bool:
        """Return whether a line is due, once for each."""
        if now < self._next:
            return False
        self._next = now + self._every
        return True

    def seconds(self, now: float) -> float:
        """Return how long it has been."""
        return now - self._started
