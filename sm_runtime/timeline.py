"""How long each phase of a job took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timeline:
    """The phases of a job, in the order of their first ends; some overlap."""

    def __init__(self) -> None:
        self._phases: dict[str, float] = {}
        self._started = time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done inside as the phase ``name``, or as more of it."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.monotonic() - begun

    def __str__(self) -> str:
        total = time.monotonic() - self._started
        phases = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in self._phases.items())
        return f"{phases}; total {_duration(total)}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
