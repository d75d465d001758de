"""Says how far a download is: a line every ten seconds, or tqdm's bar on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from threading import Event, Lock, Thread
from typing import Any, TextIO

from sm_runtime.job.text import human_duration, human_size

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0
_RATE_SECONDS = 30.0
"""The rate is that of the last so many seconds: a stall shows."""


class Progress:
    """Counts bytes, from any thread, and tells of them while the block lasts.

    ``every`` is the seconds from one line to the next; ``terminal`` gets a bar instead, where tqdm
    is installed.
    """

    def __init__(
        self,
        what: str,
        total_bytes: int,
        *,
        terminal: TextIO | None = None,
        every: float = LINE_SECONDS,
    ) -> None:
        self._what, self._total, self._every = what, total_bytes, every
        self._bar = _bar(what, total_bytes, terminal) if terminal else None
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
            if self._bar is not None:
                try:
                    self._bar.update(size_bytes)
                except (OSError, ValueError):  # nobody looks any more: the download goes on
                    self._bar = None

    @property
    def seconds(self) -> float:
        """How long the download has taken up to now."""
        return time.monotonic() - self._begun

    def __enter__(self) -> Progress:
        if self._bar is None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def _tell(self) -> None:
        while not self._over.wait(self._every):
            log.info("%s", self._text())

    def _text(self) -> str:
        now, done = time.monotonic(), self._done
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _RATE_SECONDS:
            self._seen.pop(0)
        since, before = self._seen[0]
        rate = (done - before) / max(now - since, 1e-9)
        return line(self._what, done, self._total, rate)


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
        rest = f"{human_duration(left / rate)} left"
    return (
        f"{what}: {human_size(done_bytes)} of {human_size(total_bytes)} ({percent} %),"
        f" {human_size(int(rate))}/s, {rest}"
    )


def _bar(what: str, total_bytes: int, terminal: TextIO) -> Any:
    """Return tqdm's bar; None where it is not installed."""
    if find_spec("tqdm") is None:
        return None
    return import_module("tqdm").tqdm(
        desc=what, total=total_bytes, unit="B", unit_scale=True, unit_divisor=1024,
        file=terminal, leave=False,
    )  # fmt: skip
