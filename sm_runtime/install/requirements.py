"""Reads requirements files as pip does, and tells what of them is installed already.

Whatever is not understood counts as not installed: pip is started then, and knows better.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from sm_runtime.install import OWN_NAME

_COMMENT = re.compile(r"(^|\s+)#.*$")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_INCLUDE = re.compile(r"(-r|--requirement|-c|--constraint)(?:\s+|=|(?<=-[rc]))(\S.*)")
_LINKS = re.compile(r"(?:-f|--find-links)[\s=]+(\S.*)")
_HASH = re.compile(r"\s--hash[=\s]\S+")
# Where pip looks and what it takes; none of it makes an installed package less installed.
_HARMLESS = re.compile(
    r"(-i|-f|--index-url|--extra-index-url|--find-links|--no-index|--trusted-host|--pre"
    r"|--prefer-binary|--only-binary|--no-binary|--require-hashes)(\s|=|$)"
)
_TENSORFLOW = frozenset({
    "tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tensorflow-rocm", "tensorflow-macos",
    "tensorflow-", "intel", "tensorflow-cpu-aws", "intel-tensorflow",
})  # fmt: skip
"""Builds of one framework: each brings the same Python package ``tensorflow``."""
_FRAMEWORKS = _TENSORFLOW | frozenset({
    "tf-nightly", "tensorflow-estimator", "keras", "tf-keras", "torch", "torchvision",
    "torchaudio", "horovod", "jax", "jaxlib", "mxnet",
})  # fmt: skip

_CLAIMANTS = frozenset({"sagemaker-training", "sagemaker-containers", "sagemaker-tensorflow"})
"""Distributions that bring a command ``train`` or a package ``sagemaker_tensorflow``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One logical line of a requirements file, without its comment."""

    file: str
    number: int
    text: str
    constraint: bool = False
    folder: str = ""
    """Where the file is."""

    @property
    def place(self) -> str:
        """The file and the line for a message."""
        return f"{self.file} line {self.number}"


def read(path: str, environ: Mapping[str, str]) -> list[Line]:
    """Return the lines of a requirements file and of the files that it includes."""
    return list(_lines(path, os.path.basename(path), environ, False, ()))


def _lines(
    path: str, shown: str, environ: Mapping[str, str], constraint: bool, above: tuple[str, ...]
) -> Iterator[Line]:
    with open(path, "rb") as file:
        text = _decoded(file.read())
    for number, raw in _joined(text):
        line = _VARIABLE.sub(lambda m: environ.get(m[1]) or m[0], _COMMENT.sub("", raw)).strip()
        include = _INCLUDE.fullmatch(line)
        if include is not None:
            name = include[2].strip()
            inner = os.path.join(os.path.dirname(path), name)
            if os.path.isfile(inner) and inner not in above:
                only = constraint or include[1] in ("-c", "--constraint")
                yield from _lines(inner, name, environ, only, (*above, path))
                continue
        if line:
            yield Line(
                file=shown,
                number=number,
                text=line,
                constraint=constraint,
                folder=os.path.dirname(path),
            )


def write(lines: Iterable[Line], folder: str) -> tuple[str, ...]:
    """Write lines to files in ``folder``; return the options by which pip reads them."""
    options: list[str] = []
    kept = list(lines)
    for option, constraint in (("-r", False), ("-c", True)):
        texts = [_moved(line) for line in kept if line.constraint == constraint]
        if texts or not constraint:
            path = os.path.join(folder, f"requirements{option}.txt")
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(f"{text}\n" for text in texts)
            options += [option, path]
    return tuple(options)


def _moved(line: Line) -> str:
    """Return a line as it has to stand in a file elsewhere: pip looks for links beside it."""
    match = _LINKS.fullmatch(line.text)
    place = os.path.abspath(os.path.join(line.folder, match[1])) if match else ""
    return f"--find-links {place}" if match and os.path.exists(place) else line.text


def _decoded(data: bytes) -> str:
    # Windows PowerShell's ``pip freeze > requirements.txt`` writes UTF-16.
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines with those that end in a backslash joined, and the number of the first."""
    parts: list[str] = []
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        first = first if parts else number
        if line.endswith("\\") and not _COMMENT.match(line):
            parts.append(line[:-1])
            continue
        parts.append(f" {line}" if _COMMENT.match(line) else line)
        yield first, "".join(parts)
        parts = []
    if parts:
        yield first, "".join(parts)


class InstalledDistributions:
    """The distributions that the script will see, and what they satisfy."""

    def __init__(self, extra_folders: Iterable[str] = ()) -> None:
        self._path = [*extra_folders, *sys.path]
        self._cache: dict[str, Any] = {}

    def frameworks(self) -> dict[str, str]:
        """Return the frameworks that are installed and their versions, by canonical name."""
        from importlib.metadata import distributions

        found: dict[str, str] = {}
        for each in distributions(path=self._path):
            # Half-removed folders have no name.
            name = canonicalize_name(each.metadata["Name"] or "")
            if (name in _FRAMEWORKS or name.startswith("mxnet-")) and each.version:
                found.setdefault(name, each.version)
        return found

    def missing(self, lines: Iterable[Line]) -> Line | None:
        """Return the first line that is not satisfied for certain, or None."""
        constraints: dict[str, list[Requirement]] = {}
        wanted: list[tuple[Line, Requirement]] = []
        for line in lines:
            if _HARMLESS.match(line.text):
                continue
            parsed = self.parse(line)
            if parsed is None or parsed.url or parsed.extras:
                return line
            if line.constraint:
                constraints.setdefault(canonicalize_name(parsed.name), []).append(parsed)
            else:
                wanted.append((line, parsed))
        seen: set[str] = set()
        for line, parsed in wanted:
            if not self._satisfied(parsed, constraints, seen):
                return line
        return None

    def has_all(self, requirements: Iterable[str]) -> bool:
        """Whether requirements that stand in no file, such as those of a build, are satisfied."""
        return self.missing(Line(file="", number=0, text=text) for text in requirements) is None

    def conflict(self, lines: Iterable[Line]) -> tuple[Line, str, str] | None:
        """Return the first line that asks for another framework: line, installed name, version."""
        frameworks = self.frameworks()
        for line in lines:
            parsed = None if line.constraint else self.parse(line)
            if parsed is None or not _applies(parsed):
                continue
            wanted = canonicalize_name(parsed.name)
            name = wanted if wanted in frameworks else _same_framework(wanted, frameworks)
            if name is None:
                continue
            other = "tf-nightly" in (name, wanted) and name != wanted
            if other or not parsed.specifier.contains(frameworks[name], prereleases=True):
                return line, name, frameworks[name]
        return None

    def own(self) -> dict[str, str]:
        """Return the name and the version of this package, if it is installed as one."""
        found = self._find(OWN_NAME)
        return {} if found is None or not found.version else {OWN_NAME: found.version}

    def held_back(self, lines: Iterable[Line]) -> list[Line]:
        """Return the lines by which pip would replace files or a command of this package."""
        found = []
        for line in lines:
            parsed = None if line.constraint else self.parse(line)
            if parsed is None or not _applies(parsed):
                continue
            name = canonicalize_name(parsed.name)
            if name == OWN_NAME:
                version = self.own().get(name, "")
                harmless = bool(version) and not parsed.url
                harmless = harmless and parsed.specifier.contains(version, prereleases=True)
            else:
                harmless = name not in _CLAIMANTS or (
                    not parsed.url and self._satisfied(parsed, {}, set())
                )
            if not harmless:
                found.append(line)
        return found

    @staticmethod
    def parse(line: Line) -> Requirement | None:
        """Return what a line requires, or None if it is something else."""
        try:
            return Requirement(_HASH.sub("", f" {line.text}").strip())
        except InvalidRequirement:
            return None

    def _satisfied(
        self, parsed: Requirement, constraints: dict[str, list[Requirement]], seen: set[str]
    ) -> bool:
        """Whether a requirement and all that it needs in turn is installed, as pip asks for."""
        if not _applies(parsed):
            return True
        found = self._find(parsed.name)
        if found is None or not found.version:
            return False
        name = canonicalize_name(parsed.name)
        rules = [parsed, *(c for c in constraints.get(name, ()) if _applies(c))]
        if not all(rule.specifier.contains(found.version, prereleases=True) for rule in rules):
            return False
        # Extras bring needs of their own, so each of them is looked at by itself.
        extras = sorted(parsed.extras) or [""]
        for extra in extras:
            key = f"{name}[{extra}]"
            if key in seen:
                continue
            seen.add(key)
            for text in found.requires or ():
                inner = self.parse(Line(file="", number=0, text=text))
                if inner is None:
                    return False
                if not _applies(inner, extra):
                    continue
                inner.marker = None
                if not self._satisfied(inner, constraints, seen):
                    return False
        return True

    def _find(self, name: str) -> Any:
        """Return the distribution, or that of another build of the same framework."""
        from importlib.metadata import distributions

        name = canonicalize_name(name)
        if name not in self._cache:
            names = (name, *sorted(_TENSORFLOW if name in _TENSORFLOW else ()))
            hits = (found for each in names for found in distributions(name=each, path=self._path))
            self._cache[name] = next(hits, None)
        return self._cache[name]


def alias(frameworks: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the name and version under which pip must know a TensorFlow of another name.

    Else a package that needs ``tensorflow`` would have a second one put over ``tensorflow-cpu``.
    """
    if "tensorflow" in frameworks:
        return None
    name = next((n for n in sorted(_TENSORFLOW) if n in frameworks), None)
    return None if name is None else ("tensorflow", frameworks[name])


def _same_framework(wanted: str, frameworks: Mapping[str, str]) -> str | None:
    family = _TENSORFLOW | {"tf-nightly"}
    return next((n for n in sorted(family) if n in frameworks), None) if wanted in family else None


def _applies(parsed: Requirement, extra: str = "") -> bool:
    return parsed.marker is None or bool(parsed.marker.evaluate({"extra": extra}))
