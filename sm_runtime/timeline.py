"""How long each phase of a job took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timeline:
    """The phases of a job, in the order of their first ends; some overlap."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, float, float]] = []
        """Each phase, or part of one: its name, and from when to when, in seconds."""
        self.started_at = time.time()
        """When the job began, in seconds since 1970."""
        self._started = time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done inside as the phase ``name``, or as more of it."""
        begun = self.seconds()
        try:
            yield
        finally:
            self.spans.append((name, begun, self.seconds()))

    def seconds(self) -> float:
        """Return how long it is since the start."""
        return time.monotonic() - self._started

    def __str__(self) -> str:
        phases: dict[str, float] = {}
        for name, begun, ended in list(self.spans):
            phases[name] = phases.get(name, 0.0) + ended - begun
        shown = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in phases.items())
        return f"{shown}; total {_duration(self.seconds())}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
