"""What a model folder holds: models, their versions, and what is wrong with them.

Files are looked at without TensorFlow; that takes milliseconds. Nothing found is no error here: a
folder may hold a model of another framework, and code that loads it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from sm_runtime.code import archive
from sm_runtime.job.errors import CodeError, ModelError
from sm_runtime.serving.model_files import (
    KERAS_SUFFIXES,
    SAVED_MODEL,
    KerasFile,
    SavedModel,
    read_keras,
    read_saved_model,
)

ARCHIVE = "model.tar.gz"
_BESIDE_ARCHIVE = {"output.tar.gz", "report.html"}
"""What a training job leaves beside its model's archive."""
DEFAULT_NAME = "model"
"""The name of a model whose folder has none of its own."""
_TEXT = "saved_model.pbtxt"
DEFAULT_VARIABLE = "SAGEMAKER_TFS_DEFAULT_MODEL_NAME"
_SKIPPED = re.compile(r"\..*|code|assets.*|variables|__pycache__|__MACOSX|lost\+found")
"""Folders that are not searched: they hold no models, and may hold much else."""
_DIGITS = re.compile(r"[0-9]{1,18}")
_MAX_DEPTH = 30
_SHOWN = 8
_REMEDY = (
    "put a SavedModel at <name>/1/saved_model.pb, or a Keras file (*.keras, *.h5), or handlers for"
    " a model of another kind into code/inference.py"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a model, as its files are."""

    number: int
    path: str
    """The folder of ``saved_model.pb``, or a Keras file."""
    content: SavedModel | KerasFile | None = None
    """None where there is a problem."""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The versions of one model, the lowest first; there is at least one."""

    name: str
    versions: Mapping[int, Version]

    @property
    def highest(self) -> Version:
        """The version that answers unless another is asked for."""
        return self.versions[max(self.versions)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What was found below a folder."""

    folder: str
    models: Mapping[str, ModelFiles] = field(default_factory=dict)
    default_name: str = ""
    """The model that answers where a request names none; empty where there is no model."""
    problems: tuple[str, ...] = ()
    """What must be mended before anything can be served, a sentence each."""
    notes: tuple[str, ...] = ()
    """What is not served, and why, a sentence each; the rest can be."""
    unpacked: str = ""
    """``folder``, where it is a temporary one with an archive's content: the caller removes it."""

    def check(self) -> None:
        """Raise ModelError if there is nothing to serve, or something that cannot be."""
        if self.problems:
            more = len(self.problems) - 1
            raise ModelError(self.problems[0] + (f" (and {more} more)" if more else ""))
        if not self.models:
            raise ModelError(self.nothing())

    def nothing(self) -> str:
        """Return the sentence about a folder without a model: what it has, what would be right."""
        if self.notes:
            return self.notes[0]
        if not os.path.isdir(self.folder):
            return f"{self.folder} does not exist; mount or unpack the model there"
        seen = list(_tree(self.folder))
        if not seen:
            return f"{self.folder} is empty; {_REMEDY}"
        names = ", ".join(seen[:_SHOWN])
        more = f" and {len(seen) - _SHOWN} more" if len(seen) > _SHOWN else ""
        return f"{self.folder} holds no model, only {names}{more}; {_REMEDY}"


def find(folder: str, default_name: str = "") -> Layout:
    """Return what can be served of a folder.

    A folder that holds a ``model.tar.gz`` alone, or an archive in its place, is that archive's
    content, unpacked into a temporary folder. ``default_name`` is what
    ``SAGEMAKER_TFS_DEFAULT_MODEL_NAME`` says. Raises ModelError where the archive cannot be
    unpacked.
    """
    folder = os.path.abspath(folder)
    unpacked = _unpack(folder)
    search = _Search(unpacked or folder)
    found, problems, notes = search.models(), search.problems, search.notes
    names = list(found)
    if default_name and names and default_name not in found:
        problems.append(
            f"{DEFAULT_VARIABLE}: there is no model {default_name!r}; the models are:"
            f" {', '.join(names)}"
        )
    for model in found.values():
        for version in model.versions.values():
            if version.problem:
                (problems if version is model.highest else notes).append(version.problem)
    return Layout(
        folder=unpacked or folder,
        models=found,
        default_name=default_name if default_name in found else names[0] if names else "",
        problems=tuple(problems),
        notes=tuple(notes),
        unpacked=unpacked,
    )


def _unpack(folder: str) -> str:
    """Unpack an archive, or that of a training job's output folder; return where, or nothing."""
    path = folder
    if not os.path.isfile(folder):
        try:
            names = [name for name in os.listdir(folder) if not name.startswith(".")]
        except OSError:
            return ""
        if ARCHIVE not in names or not _BESIDE_ARCHIVE.issuperset({*names} - {ARCHIVE}):
            return ""
        path = os.path.join(folder, ARCHIVE)
    import shutil
    import tempfile

    # Not beside it: the model's folder may be read-only, and is not ours.
    made = tempfile.mkdtemp(prefix="sm-runtime-model-")
    try:
        os.rmdir(made)  # it is made anew, and nothing is unpacked if somebody else was quicker
        # What there is room for is checked: models have no other limit.
        archive.extract(path, made, 1 << 60)
    except BaseException as error:
        shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, CodeError):
            raise ModelError(str(error)) from error
        raise
    return made


class _Search:
    """A walk through a model folder, in the order of names; links are followed once."""

    def __init__(self, root: str) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._root = root
        self._saved: list[str] = []
        self._keras: list[str] = []
        self._seen: set[tuple[int, int]] = set()
        self._walk(root, 0)

    def models(self) -> dict[str, ModelFiles]:
        """Return the models by name, in the order in which they were found."""
        found: dict[str, dict[int, Version]] = {}
        for folder in self._saved:
            self._add(found, *self._named(folder), _saved_version(folder))
        for path in self._keras:
            if self._saved:
                self.notes.append(f"{path} is not served, as there is a SavedModel")
            elif version := self._keras_version(path):
                name, number = self._named(os.path.dirname(path), os.path.basename(path))
                self._add(found, name, number, version)
        return {
            name: ModelFiles(name=name, versions=dict(sorted(versions.items())))
            for name, versions in found.items()
        }

    def _walk(self, folder: str, depth: int) -> None:
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in self._seen or depth > _MAX_DEPTH:
                return
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        except OSError as error:
            self.problems.append(
                f"{folder} cannot be read ({error.strerror}); make it readable for user"
                f" {os.geteuid()}"
            )
            return
        names = {entry.name for entry in found}
        if SAVED_MODEL in names:
            self._saved_model(folder, depth)
            if depth:
                return
        elif _TEXT in names:
            self.notes.append(
                f"{os.path.join(folder, _TEXT)} is text; save the model again as {SAVED_MODEL}"
            )
        for entry in found:
            if os.path.isdir(entry.path):
                if not _SKIPPED.fullmatch(entry.name):
                    self._walk(entry.path, depth + 1)
            elif entry.name.endswith(KERAS_SUFFIXES) and not entry.name.startswith("."):
                self._keras.append(entry.path)

    def _saved_model(self, folder: str, depth: int) -> None:
        if depth > 1 and not _DIGITS.fullmatch(os.path.basename(folder)):
            self.notes.append(
                f"{folder} is not served, as the folder of a version has a number for a name;"
                f" move its content to {os.path.join(folder, '1')}"
            )
        else:
            self._saved.append(folder)

    def _named(self, folder: str, file: str = "") -> tuple[str, int]:
        """Return the name and the version of what lies in a folder."""
        above, last = os.path.split(folder)
        if folder != self._root and _DIGITS.fullmatch(last):
            return DEFAULT_NAME if above == self._root else os.path.basename(above), int(last)
        if file:
            return os.path.splitext(file)[0], 1
        return DEFAULT_NAME if folder == self._root else last, 1

    def _add(
        self, found: dict[str, dict[int, Version]], name: str, number: int, version: Version
    ) -> None:
        versions = found.setdefault(name, {})
        if number in versions:
            self.problems.append(
                f"{versions[number].path} and {version.path} are both version {number} of model"
                f" {name!r}; rename or remove one of them"
            )
            return
        versions[number] = replace(version, number=number)

    def _keras_version(self, path: str) -> Version | None:
        try:
            content = read_keras(path)
        except ModelError as error:
            return Version(number=1, path=path, problem=str(error))
        if content is None:
            self.notes.append(
                f"{path} holds weights without a model; save the whole with model.save(...)"
            )
            return None
        return Version(number=1, path=path, content=content)


def _saved_version(folder: str) -> Version:
    try:
        return Version(number=1, path=folder, content=read_saved_model(folder))
    except ModelError as error:
        return Version(number=1, path=folder, problem=str(error))


def _tree(folder: str) -> Iterator[str]:
    """Yield the files below a folder, and the folders that are empty."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield os.path.relpath(os.path.join(path, name), folder)
        if not folders and not files and path != folder:
            yield os.path.relpath(path, folder) + "/"
