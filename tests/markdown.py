"""The commands of the documents: each fence for a shell says how it is run, or why it is not.

The line before a fence is a comment, which no reader sees:

    <!-- run: WHERE -->
    <!-- run: WHERE; skip WORDS: why lines that begin with WORDS are not run -->
    <!-- not run: why -->

WHERE is ``checkout`` (in a copy of the checkout, with a fresh virtual environment), ``checkout with
TensorFlow`` (that environment sees what the tests' own has), ``Slurm`` (the same, as root) or
``image`` (with Docker; a Dockerfile is built). The fences of one document and one WHERE are run one
after another in one folder, which holds a ``train.py``; those of ``Slurm`` in one shell.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("examples/**/*.md")),
)
LANGUAGES = ("sh", "dockerfile")
"""What a fence that has to be marked begins with."""
PLACES = ("checkout", "checkout with TensorFlow", "Slurm", "image")
_MARKER = re.compile(r"<!-- (?:not run: (?P<why>.+)|run: (?P<place>[^;]+)(?P<skips>;.+)?) -->")
_SKIP = re.compile(r"; skip (?P<words>[^:;]+): (?P<why>[^;]+)")


@dataclass(frozen=True)
class Fence:
    """A piece of a document that holds commands."""

    document: Path
    line: int
    language: str
    text: str
    marker: str

    @property
    def name(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def place(self) -> str | None:
        """Where it is run; None: nowhere."""
        match = _MARKER.fullmatch(self.marker)
        return match["place"] if match else None

    @property
    def skipped(self) -> dict[str, str]:
        """Why some lines are not run, by what they begin with."""
        match = _MARKER.fullmatch(self.marker)
        found = _SKIP.finditer(match["skips"] or "") if match else ()
        return {skip["words"]: skip["why"] for skip in found}

    @property
    def commands(self) -> str:
        """What is run of it."""
        left = tuple(self.skipped)
        return "\n".join(
            line for line in self.text.split("\n") if not line.startswith(left or "\0")
        )

    @property
    def problem(self) -> str | None:
        """What is wrong with its marker, if something is."""
        match = _MARKER.fullmatch(self.marker)
        if match is None:
            return "no marker: see tests/markdown.py"
        if match["place"] is not None and match["place"] not in PLACES:
            return f"{match['place']!r} is not one of {', '.join(PLACES)}"
        if (
            match["skips"]
            and "".join(m[0] for m in _SKIP.finditer(match["skips"])) != match["skips"]
        ):
            return f"cannot be read: {match['skips']!r}"
        idle = [w for w in self.skipped if not any(t.startswith(w) for t in self.text.split("\n"))]
        return f"no line begins with {idle[0]!r}" if idle else None


def fences(document: Path) -> list[Fence]:
    """Return the fences of a document that have to be marked."""
    lines = document.read_text(encoding="utf-8").split("\n")
    found: list[Fence] = []
    begin, language = None, ""
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begin is None:
            begin, language = number, line[3:].split(" ")[0]
            continue
        if language in LANGUAGES:
            marker = lines[begin - 1] if begin else ""
            text = "\n".join(lines[begin + 1 : number])
            found.append(Fence(document, begin + 1, language, text, marker))
        begin = None
    return found


def run_in(*places: str) -> list[tuple[str, Path]]:
    """Return the documents with fences that are run in these places, with each place."""
    return [
        (place, document)
        for document in DOCUMENTS
        for place in places
        if any(fence.place == place for fence in fences(document))
    ]
