"""Says how far a download is: a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import logging
import sys
import time
from threading import Event, Lock, Thread
from typing import TextIO

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0
BAR_SECONDS = 0.2
_BAR_WIDTH = 24
_RATE_SECONDS = 30.0
"""The rate is that of the last so many seconds: a stall shows."""


class Progress:
    """Counts bytes, from any thread, and tells of them while the block lasts."""

    def __init__(
        self, what: str, total_bytes: int, *, terminal: TextIO | None = None, every: float = 0
    ) -> None:
        self._what, self._total = what, total_bytes
        self._terminal = terminal
        self._every = every or (BAR_SECONDS if terminal else LINE_SECONDS)
        self._done = 0
        self._lock = Lock()
        self._over = Event()
        self._thread = Thread(target=self._tell, name="progress", daemon=True)
        self._begun = time.monotonic()
        self._seen: list[tuple[float, int]] = [(self._begun, 0)]

    def add(self, size_bytes: int) -> None:
        """Count so many bytes more."""
        with self._lock:
            self._done += size_bytes

    @property
    def seconds(self) -> float:
        """How long the download has taken up to now."""
        return time.monotonic() - self._begun

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._terminal:
            self._write("\r\033[K")

    def _tell(self) -> None:
        while not self._over.wait(self._every):
            text = self._text()
            if self._terminal:
                self._write(f"\r{_bar(self._done, self._total)} {text}\033[K")
            else:
                log.info("%s", text)

    def _text(self) -> str:
        now, done = time.monotonic(), self._done
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _RATE_SECONDS:
            self._seen.pop(0)
        since, before = self._seen[0]
        rate = (done - before) / max(now - since, 1e-9)
        return line(self._what, done, self._total, rate)

    def _write(self, text: str) -> None:
        assert self._terminal
        try:
            self._terminal.write(text)
            self._terminal.flush()
        except (OSError, ValueError):  # nobody looks any more: the download goes on
            self._over.set()


def terminal() -> TextIO | None:
    """Return the terminal that the log goes to, if it is one."""
    try:
        return sys.stderr if sys.stderr.isatty() else None
    except (AttributeError, ValueError):  # closed, or none at all
        return None


def line(what: str, done_bytes: int, total_bytes: int, rate: float) -> str:
    """Return how far it is in words; ``rate`` is in bytes per second."""
    percent = 100 * done_bytes // total_bytes if total_bytes else 100
    left = max(0, total_bytes - done_bytes)
    if not left:
        rest = "nearly done"
    elif rate < 1:
        rest = "nothing arrives"
    else:
        rest = f"{duration(left / rate)} left"
    return (
        f"{what}: {size(done_bytes)} of {size(total_bytes)} ({percent} %),"
        f" {size(int(rate))}/s, {rest}"
    )


def size(count: int) -> str:
    """Return a number of bytes as one reads it."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def duration(seconds: float) -> str:
    """Return a time as one reads it: ``0.3 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole >= 10 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _bar(done: int, total: int) -> str:
    filled = _BAR_WIDTH * min(done, total) // total if total else _BAR_WIDTH
    return f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}]"
