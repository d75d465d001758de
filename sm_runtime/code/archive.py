"""Unpacks an archive of code that nobody has vouched for: all of it, or nothing."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import IO

from sm_runtime.code.members import Budget, Member, members, reading, shown
from sm_runtime.job.errors import CodeError
from sm_runtime.storage.writing import Room

MAX_DEPTH = 200
"""How many folders deep code may be: Python removes a tree recursively, within its limit."""
_CHUNK = 1 << 18
_MAX_MEMBERS = 200_000
# The kernel follows no more symbolic links than this in one look-up (path_resolution(7)).
_MAX_HOPS = 40


def extract(
    path: str,
    destination: str,
    max_bytes: int,
    *,
    max_members: int = _MAX_MEMBERS,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Unpack a tar or zip archive into ``destination``, a folder that must not exist yet.

    All its headers are read before the first byte is written. Raises CodeError, and leaves no
    ``destination``, when the archive is damaged, declares or holds more than ``max_bytes`` or than
    there is room for, has a member that could reach outside of ``destination`` or gain rights, or
    when ``stopped`` says so.
    """
    import shutil

    def budget() -> Budget:
        return Budget(
            archive=path,
            packed=os.path.getsize(path),
            max_bytes=max_bytes,
            max_members=max_members,
            stopped=stopped,
        )

    try:
        os.mkdir(destination)
        try:
            _check_room(budget(), destination)
            _unpack(budget(), destination)
        except BaseException:
            shutil.rmtree(destination, ignore_errors=True)
            raise
    except OSError as error:
        raise CodeError(f"{shown(path)} cannot be unpacked to {destination}: {error}") from error


def _check_room(budget: Budget, destination: str) -> None:
    """Raise CodeError where the archive declares more than is allowed, or than there is room for.

    A compressed tar has its headers within the compressed data: it is decompressed twice.
    """
    room = Room(destination)
    with contextlib.closing(members(budget.archive, budget)) as found:
        for member in found:
            room.take(member.size_bytes)
    room.check(shown(budget.archive))


def _unpack(budget: Budget, destination: str) -> None:
    tree = _Tree(destination, budget)
    with contextlib.closing(members(budget.archive, budget)) as found:
        for member in found:
            tree.add(member)
    tree.finish()


class _Tree:
    """The members that were unpacked so far; no member is ever written through a link."""

    def __init__(self, root: str, budget: Budget) -> None:
        self._root = root
        self._budget = budget
        self._kinds: dict[str, str] = {"": "directory"}
        self._links: dict[str, str] = {}
        self._folders: dict[str, tuple[int, float | None]] = {}

    def add(self, member: Member) -> None:
        """Write one member, or raise CodeError."""
        name = self._checked_name(member)
        if member.kind == "directory":
            if name:
                self._folder(name)
                self._folders[name] = (member.mode & 0o777 | 0o700, member.mtime)
            return
        self._folder(os.path.dirname(name))
        self._make_room(name, member)
        place = os.path.join(self._root, name)
        if member.kind == "file":
            self._file(member, place)
        elif member.kind == "symlink":
            os.symlink(member.target, place)
            self._links[name] = member.target
            _stamp(place, member.mtime)
        else:
            source = os.path.normpath(member.target)
            if self._kinds.get(source) != "file":
                raise self._budget.refusal(
                    f"is a hard link to {shown(member.target)}, which is no file before it"
                )
            os.link(os.path.join(self._root, source), place)
        self._kinds[name] = "symlink" if member.kind == "symlink" else "file"

    def finish(self) -> None:
        """Check where the links lead, now that all is there, then set the folders' attributes."""
        for name, target in self._links.items():
            if self._leaves(name):
                self._budget.member = name
                raise self._budget.refusal(
                    f"is a link to {shown(target)}, outside of the code folder"
                )
        for name, (mode, mtime) in sorted(self._folders.items(), reverse=True):
            place = os.path.join(self._root, name)
            os.chmod(place, mode)
            _stamp(place, mtime)

    def _checked_name(self, member: Member) -> str:
        name, refusal = member.name, self._budget.refusal
        if "\0" in name or "\0" in member.target:
            raise refusal("has a NUL in its name")
        if name.startswith("/"):
            raise refusal("has an absolute name")
        if ".." in name.split("/"):
            raise refusal("has '..' in its name")
        if member.kind not in ("file", "directory", "symlink", "hardlink"):
            raise refusal("is a device or a FIFO, and code has none")
        if member.kind == "file" and member.mode & (stat.S_ISUID | stat.S_ISGID):
            raise refusal("has the setuid or setgid bit")
        name = os.path.normpath(name) if name else "."
        if name.count("/") > MAX_DEPTH:
            raise refusal(f"is more than {MAX_DEPTH} folders deep")
        if name == ".":
            if member.kind != "directory":
                raise refusal(f"is a {member.kind} without a name")
            return ""
        return name

    def _folder(self, name: str) -> None:
        """Make a folder and those above it; each must be a folder, not a link to one."""
        kind = self._kinds.get(name)
        if kind == "directory":
            return
        if kind is not None:
            raise self._budget.refusal(f"would be written through the {kind} {shown(name)}")
        self._folder(os.path.dirname(name))
        os.mkdir(os.path.join(self._root, name), 0o755)
        self._kinds[name] = "directory"

    def _make_room(self, name: str, member: Member) -> None:
        before = self._kinds.get(name)
        if before is None:
            return
        if before != "file" or member.kind == "symlink":
            raise self._budget.refusal(f"comes twice, first as a {before}, then as a {member.kind}")
        # The later one counts, as with ``tar``; the name is unlinked so that no twin changes.
        if os.path.normpath(member.target) != name:
            os.unlink(os.path.join(self._root, name))

    def _file(self, member: Member, place: str) -> None:
        with reading(self._budget):
            source = member.open()
        if source is None:
            raise self._budget.refusal("has no content")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with source, open(os.open(place, flags, 0o600), "wb") as out:
            while chunk := self._read(source):
                self._budget.count_written(len(chunk))
                out.write(chunk)
        os.chmod(place, member.mode & 0o777 | 0o600)
        _stamp(place, member.mtime)

    def _read(self, source: IO[bytes]) -> bytes:
        with reading(self._budget):
            return source.read(_CHUNK)

    def _leaves(self, name: str) -> bool:
        """Whether looking up ``name`` comes to a place above the root, or an absolute one."""
        here: list[str] = []
        todo = name.split("/")[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part == "..":
                if not here:
                    return True
                here.pop()
            elif part not in ("", "."):
                here.append(part)
                target = self._links.get("/".join(here))
                if target is not None:
                    hops += 1
                    if target.startswith("/"):
                        return True
                    if hops > _MAX_HOPS:
                        return False
                    here.pop()
                    todo.extend(target.split("/")[::-1])
        return False


def _stamp(path: str, mtime: float | None) -> None:
    # A time that the file system cannot hold is no reason to refuse code.
    if mtime is not None:
        with contextlib.suppress(OSError, OverflowError, ValueError):
            os.utime(path, (mtime, mtime), follow_symlinks=False)
