"""Decides which object goes to which path of a channel's folder; touches nothing.

What is said to be so "on the platform" is in the SageMaker guide and in logs of its jobs.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from itertools import pairwise

from sm_runtime.channels import UNFINISHED
from sm_runtime.job.errors import DataError

_MAX_NAME_BYTES = 255
_PART = ".sm-runtime.part"
"""How names end while their files are being written (storage.parts)."""


def below_prefix(key: str, prefix: str) -> str:
    """Return the path of an object that a prefix matches, relative to the channel's folder.

    What is below the prefix as a folder keeps the rest of its key, as on the platform. What the
    prefix matches otherwise, as S3 compares plain strings, keeps the whole last part of the prefix:
    ``s3://b/data/train`` gives ``train2/x`` for ``data/train2/x``, and ``train`` for the one object
    ``data/train``.
    """
    folder = prefix if prefix.endswith("/") or not prefix else prefix + "/"
    if key.startswith(folder) and key != folder:
        return key[len(folder) :]
    return key[prefix.rfind("/", 0, len(prefix) - 1 if key == prefix else None) + 1 :]


def is_beside(key: str, prefix: str) -> bool:
    """Return whether a prefix matches a key that is not below it as a folder."""
    return bool(prefix) and not prefix.endswith("/") and not key.startswith(prefix + "/")


def below_bucket(bucket: str, key: str) -> str:
    """Return the path of an object that an augmented manifest refers to: its bucket and key."""
    return f"{bucket}/{key}".lstrip("/")


def unpacked(path: str) -> str:
    """Return the path of what a compressed object holds: without ``.gz``, as gunzip names it."""
    stem = path.removesuffix(".gz")
    return stem if stem and not stem.endswith("/") else path


def unfit(path: str) -> str | None:
    """Return why there can be no file at the relative ``path``; None where there can be."""
    parts = path.split("/")
    if ".." in parts:
        return "leads out of the channel's folder"
    if "" in parts or "." in parts:
        return "has an empty part or '.' between slashes, which no file can have"
    if "\0" in path:
        return "has a NUL in it"
    if path == UNFINISHED or path.endswith(_PART):
        return "has a name that marks an unfinished download"
    if len(path) > _MAX_NAME_BYTES // 4 and max(len(_encoded(p)) for p in parts) > _MAX_NAME_BYTES:
        return f"has a part of more than {_MAX_NAME_BYTES} bytes, which no file can have"
    return None


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class Layout:
    """Finds paths that exclude each other: the same one twice, or a file that is a folder too.

    A path costs eight bytes, whatever its length and the order they come in.
    """

    def __init__(self) -> None:
        self._files = array("q")
        self._folders = array("q")
        self._last = ""
        self._sorted: list[int] | None = None

    def add(self, path: str) -> None:
        """Take note of a file."""
        self._files.append(hash(path))
        folder = path.rpartition("/")[0]
        if folder != self._last:
            self._add_folders(folder)
            self._last = folder

    def _add_folders(self, folder: str) -> None:
        while folder and not (self._last + "/").startswith(folder + "/"):
            self._folders.append(hash(folder))
            folder = folder.rpartition("/")[0]

    def holds(self, path: str) -> bool:
        """Return whether there is a file at ``path``."""
        return self._index(hash(path)) >= 0

    def clash(self) -> PathConflict | None:
        """Return what is wrong with the paths; None in the usual case."""
        marks = self._marks()
        same = {mark for mark, after in pairwise(marks) if mark == after}
        both = {mark for mark in self._folders if self._index(mark) >= 0}
        return PathConflict(same, both) if same or both else None

    def _marks(self) -> list[int]:
        if self._sorted is None or len(self._sorted) != len(self._files):
            self._sorted = sorted(self._files)
        return self._sorted

    def _index(self, mark: int) -> int:
        marks = self._marks()
        at = bisect_left(marks, mark)
        return at if at < len(marks) and marks[at] == mark else -1


class PathConflict:
    """Names two objects that exclude each other: hashes told that there are some, not which."""

    def __init__(self, same: set[int], both: set[int]) -> None:
        self._same, self._both = same, both
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def see(self, key: str, path: str, where: str) -> None:
        """Take note of an object; raise DataError if it is the second of two."""
        if hash(path) in self._same | self._both:
            other = self._files.setdefault(path, key)
            if other != key:
                raise DataError(f"{where}: {other!r} and {key!r} would be the same file, {path}")
            if path in self._folders:
                raise DataError(_both(where, key, self._folders[path]))
        folder = path.rpartition("/")[0]
        while folder:
            if hash(folder) in self._both:
                self._folders.setdefault(folder, key)
                if folder in self._files:
                    raise DataError(_both(where, self._files[folder], key))
            folder = folder.rpartition("/")[0]


def _both(where: str, file: str, below: str) -> str:
    return f"{where}: {file!r} would be a file, and a folder because of {below!r}"
