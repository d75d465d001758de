"""When it is time to say in the log what is waited for."""

from __future__ import annotations

import time

NOTICE_SECONDS = 10.0


class Notice:
    """Says when a line in the log is due, and how long the wait has been."""

    def __init__(self, every_seconds: float = NOTICE_SECONDS) -> None:
        self._started = time.monotonic()
        self._every, self._next = every_seconds, self._started + every_seconds

    def is_due(self) -> bool:
        """Return whether a line is due, once for each."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._every
        return True

    @property
    def seconds(self) -> float:
        """How long it has been."""
        return time.monotonic() - self._started
