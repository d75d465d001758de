"""What became of a folder that a job leaves, and the lines of the log that say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sm_runtime.job.model import Job
from sm_runtime.job.text import human_size

_MAX_WARNINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What became of one folder."""

    what: str
    """``model``, ``output data``, ``checkpoints``, ..."""
    folder: str
    files: int = 0
    size_bytes: int = 0
    destination: str | None = None
    """The URI where it is now; None: there was nothing to save, or it is not ours to save."""
    stored_bytes: int = 0
    """How many bytes it takes there."""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    failure: str | None = None
    """Why it is not all at ``destination``, where that fails the job."""


class Warnings:
    """Keeps the first sentences and counts the rest."""

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._count = 0

    def __call__(self, sentence: str) -> None:
        """Take a sentence."""
        self._count += 1
        if self._count <= _MAX_WARNINGS:
            self._sentences.append(sentence)

    def all(self) -> tuple[str, ...]:
        """Return the sentences, and one about those that are not among them."""
        more = self._count - len(self._sentences)
        return (*self._sentences, *([f"... and {more} more like these"] if more else []))


def summary_lines(job: Job, saved: Iterable[Saved]) -> list[str]:
    """Return a line for each folder that says how much is in it and where it is saved."""
    lines = []
    for one in saved:
        if one.files == 0:
            if one.what in ("model", "output data"):
                lines.append(f"{one.what}: no files in {one.folder}")
            continue
        held = f"{one.what}: {amount(one.files, one.size_bytes)}"
        if one.destination:
            cost = f"{human_size(one.stored_bytes)}, {one.seconds:.1f} s"
            lines.append(f"{held} -> {one.destination} ({cost})")
        elif one.what == "checkpoints" or not job.managed:
            lines.append(f"{held} in {one.folder}")
        else:
            lines.append(f"{held} in {one.folder}, for the platform to save")
    return lines


def amount(files: int, size_bytes: int) -> str:
    """Return ``3 files, 1.2 MiB``."""
    return f"{files} file{'s' * (files != 1)}, {human_size(size_bytes)}"
