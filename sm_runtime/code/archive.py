"""Unpacks an archive of code that is not trusted: all of it, or nothing.

Its members are read forwards, once, and what they cost is counted.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import IO, Any

from sm_runtime.job.errors import CodeError
from sm_runtime.storage.writing import Room

_CHUNK = 1 << 18
_SLACK = 1 << 20
_MEMBER_OVERHEAD = 4096
# A deflate stream cannot shrink more than about 1000 to 1, xz and bzip2 can; code does 3 to 10.
_MAX_RATIO = 200
_RATIO_FLOOR = 64 << 20
_MAGIC = {
    b"\x1f\x8b": "gz",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry of an archive, whatever the archive's format."""

    name: str
    kind: str
    size_bytes: int = 0
    """What a file's header declares."""
    mode: int = 0o644
    mtime: float | None = None
    target: str = ""
    open: Callable[[], IO[bytes] | None] = lambda: None


@dataclass(slots=True, kw_only=True)
class Budget:
    """What an archive has cost so far, and the most that it may."""

    archive: str
    packed: int
    max_bytes: int
    max_members: int
    stopped: Callable[[], bool] = lambda: False
    """Asked between blocks: whether to give up."""
    read: int = 0
    declared: int = 0
    written: int = 0
    members: int = 0
    member: str = ""

    def start(self, member: Member) -> None:
        """Count one member more, with the size that it declares."""
        self._check_stop()
        self.member = member.name
        self.members += 1
        if self.members > self.max_members:
            raise self.refusal(f"is one more than the {self.max_members} members that are allowed")
        self.declared += member.size_bytes
        self._check_size(self.declared)

    def count_read(self, size: int) -> None:
        """Count bytes that came out of the decompressor."""
        self._check_stop()
        self.read += size
        if self.read > self.max_bytes + _SLACK + self.members * _MEMBER_OVERHEAD:
            raise self._too_large()
        self._check_ratio(self.read)

    def count_written(self, size: int) -> None:
        """Count bytes that go to the disk."""
        self._check_stop()
        self.written += size
        self._check_size(self.written)

    def refusal(self, why: str) -> CodeError:
        """Return the error that says what is wrong with the current member."""
        return CodeError(
            f"{shown(self.archive)}: member {shown(self.member)} {why}; nothing was unpacked"
        )

    def _check_stop(self) -> None:
        if self.stopped():
            raise CodeError(f"{shown(self.archive)} was not unpacked: a stop was requested")

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise self._too_large()
        self._check_ratio(size)

    def _too_large(self) -> CodeError:
        return self.refusal(
            f"takes the unpacked size over the limit of {self.max_bytes} bytes"
            " (SM_RUNTIME_CODE_MAX_BYTES)"
        )

    def _check_ratio(self, size: int) -> None:
        if size > _RATIO_FLOOR and size > _MAX_RATIO * self.packed:
            raise self.refusal(
                f"unpacks to more than {_MAX_RATIO} times the archive's {self.packed} bytes,"
                " which no code does"
            )


class _Counted:
    """A forward-only reader that counts its bytes and remembers the last of them."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self._stream = stream
        self._budget = budget
        self._recent = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, _CHUNK))
        self._budget.count_read(len(data))
        self._recent = self._recent[-_CHUNK:] + data
        return data

    def block(self, offset: int) -> bytes:
        """Return up to 512 bytes from ``offset``, which must be near the end of what was read."""
        start = len(self._recent) - (self._budget.read - offset)
        return self._recent[start : start + 512] if start >= 0 else b"?"


def kind_of(path: str) -> str | None:
    """Return ``gz``, ``bz2``, ``xz``, ``zip`` or ``tar`` by a file's content, else None."""
    with open(path, "rb") as file:
        head = file.read(512)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    return "tar" if head[257:262] == b"ustar" or _is_old_tar(head) else None


def members(path: str, budget: Budget) -> Generator[Member, None, None]:
    """Yield the members of an archive, in its order; each must be read before the next.

    Raises CodeError where the archive is damaged or costs more than ``budget`` has.
    """
    kind = kind_of(path)
    if kind is None:
        raise CodeError(
            f"{shown(path)} is neither a tar (plain, gzip, bzip2, xz) nor a zip archive"
        )
    source = _zip_members(path) if kind == "zip" else _tar_members(path, kind, budget)
    with contextlib.closing(source):
        while True:
            with reading(budget):
                member = next(source, None)
            if member is None:
                return
            budget.start(member)
            yield member


@contextlib.contextmanager
def reading(budget: Budget) -> Iterator[None]:
    """Turn whatever a damaged archive makes the readers raise into one sentence.

    The standard library's readers take much on trust: an empty name is an IndexError.
    """
    try:
        yield
    except CodeError:
        raise
    except Exception as error:
        after = f" after member {shown(budget.member)}" if budget.member else ""
        raise CodeError(
            f"{shown(budget.archive)} is damaged, truncated or no archive that can be read{after}"
            f" ({error}); nothing was unpacked"
        ) from error


def _tar_members(path: str, kind: str, budget: Budget) -> Generator[Member, None, None]:
    import tarfile

    with _decompressed(path, kind) as stream:
        counted = _Counted(stream, budget)
        # Stream mode reads forwards only; its type stub asks for more than ``read``. Its own blocks
        # of 10 KiB cost more than the decompression.
        reader: Any = counted
        with tarfile.open(fileobj=reader, mode="r|", bufsize=_CHUNK) as tar:
            while (info := tar.next()) is not None:
                # Else they all stay in memory to the end; type stubs do not know the list.
                kept: Any = tar
                kept.members.clear()
                yield _tar_member(tar, info)
            end = counted.block(tar.offset)
        # tarfile takes a damaged header in the middle for the end.
        if end.strip(b"\0") or (not end and kind == "tar"):
            raise tarfile.ReadError("no end-of-archive mark where one should be")
        while counted.read(_CHUNK):
            pass  # the checksum of the compressed stream is at its end


def _decompressed(path: str, kind: str) -> Any:
    if kind == "gz":
        import gzip

        return gzip.open(path)
    if kind == "bz2":
        import bz2

        return bz2.open(path)
    if kind == "xz":
        import lzma

        return lzma.open(path)
    return open(path, "rb")


def _tar_member(tar: Any, info: Any) -> Member:
    if info.isreg():
        kind = "file"
    elif info.isdir():
        kind = "directory"
    elif info.issym():
        kind = "symlink"
    elif info.islnk():
        kind = "hardlink"
    else:
        kind = "device or FIFO"
    return Member(
        name=info.name,
        kind=kind,
        size_bytes=info.size if kind == "file" else 0,
        mode=info.mode,
        mtime=info.mtime,
        target=info.linkname,
        open=lambda: tar.extractfile(info),
    )


def _zip_members(path: str) -> Generator[Member, None, None]:
    import zipfile
    from functools import partial

    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            plain = "directory" if info.is_dir() else "file"
            kind = {
                0: plain,
                stat.S_IFREG: plain,
                stat.S_IFDIR: "directory",
                stat.S_IFLNK: "symlink",
            }.get(stat.S_IFMT(mode), "device or FIFO")
            target = ""
            if kind == "symlink":
                with archive.open(info) as file:
                    target = os.fsdecode(file.read(os.pathconf("/", "PC_PATH_MAX")))
            yield Member(
                name=info.orig_filename,  # ``filename`` ends at a NUL
                kind=kind,
                size_bytes=info.file_size if kind == "file" else 0,
                mode=stat.S_IMODE(mode) or (0o755 if kind == "directory" else 0o644),
                mtime=_zip_time(info.date_time),
                target=target,
                open=partial(archive.open, info),
            )


def _zip_time(fields: tuple[int, int, int, int, int, int]) -> float | None:
    import calendar

    # A zip file names no time zone, and tools that want equal bytes write day 0 of month 0.
    try:
        return calendar.timegm((*fields, 0, 0, 0))
    except ValueError:
        return None


def _is_old_tar(head: bytes) -> bool:
    """Whether 512 bytes are a header of the tar that knew no magic yet: its checksum fits."""
    field = head[148:156].strip(b" \0")
    if len(head) < 512 or not field or field.strip(b"01234567"):
        return False
    return int(field, 8) == sum(head[:148]) + 8 * 32 + sum(head[156:])


def shown(name: str) -> str:
    """Return a file's name as a message can hold it: quoted, and escaped where it has to be."""
    return ascii(name) if not name.isprintable() else name if "/" in name else repr(name)


MAX_DEPTH = 200
"""How many folders deep code may be: Python removes a tree recursively, within its limit."""
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
                    f"is a hard link to {shown(member.target)}, which is not a file before it"
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
