"""The folder of a channel that this runtime fills, and what an earlier job has left there.

The next job keeps of it what is still the content of its source, and removes the rest: what the
script has altered or added (whatever changes a file changes its ctime), and what another source has
left.

While a folder is being filled it holds a file that says so, and which content it is to have. When
all is there an extended attribute of the folder says the same: it is out of the script's sight. It
counts only for that very folder: one that was copied with it, or is mounted in its place, is the
user's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from stat import S_ISREG

from sm_runtime.channels import UNFINISHED
from sm_runtime.channels.mounts import is_mounted, mounts_below
from sm_runtime.channels.survey import Survey, stoppable
from sm_runtime.job.errors import DataError
from sm_runtime.job.text import human_size
from sm_runtime.storage import Blob
from sm_runtime.storage.writing import can_clone, data_bytes, replaced

log = logging.getLogger(__name__)

_NAMED = 10
_OWNER = 0o700
_WRITABLE = 0o222
ATTRIBUTE = "user.sm_runtime.placed"
_TICK_SECONDS = 0.02
_IN_MEMORY = ("tmpfs", "devtmpfs", "ramfs")


class Folder:
    """The folder of a channel while it is being filled."""

    def __init__(
        self, found: Survey, *, links: bool, is_locked: bool, stopped: Callable[[], bool]
    ) -> None:
        self.survey = found
        self.links = links
        """Whether local files are links to their sources, not copies."""
        self._is_locked = is_locked  # nothing may be written to it, as far as permissions can do
        self.is_measured = False
        """Whether ``need`` knows what copies of local files really take."""
        self._stopped = stopped
        self._path = found.channel.path
        self._version = f"{found.version}{' locked' if is_locked else ''}" if found.version else ""
        self._is_resumed = False
        self._kept = {True: (0, 0), False: (0, 0)}
        """How many files of how many bytes are here, of local files and of others."""
        self._local_bytes, self._sharing = found.local_bytes, 0

    def begin(self) -> None:
        """Have the folder there, marked as unfinished, with nothing in it that does not belong."""
        with self._named():
            if os.path.islink(self._path):
                os.unlink(self._path)
            os.makedirs(self._path, exist_ok=True)
            left = _earlier(self.survey.channel.name, self._path)
            if left is not None:
                self._is_resumed = bool(self._version) and self._version == left.version
                keeps = self._is_intact(left) if self._is_resumed else _none
                self._tell_removed(*_prune(self._path, keeps, self._stopped))
            _mark_begun(self._path, self._version)
        if self._is_resumed:
            for is_local in (True, False):
                self._kept[is_local] = self._count_kept(is_local)
        if kept := sum(size_bytes for _, size_bytes in self._kept.values()):
            log.info(
                "channel %s: %s of the same objects are there from an earlier attempt",
                self.survey.channel.name,
                human_size(kept),
            )

    def _tell_removed(self, count: int, first: str) -> None:
        if count:
            log.info(
                "channel %s: removed %d file%s that an earlier job has left or altered: %r%s",
                self.survey.channel.name, count, "s"[: count > 1],
                os.path.relpath(first, self._path), ", ..." if count > 1 else "",
            )  # fmt: skip

    def _is_intact(self, left: Left) -> Callable[[str, os.stat_result], bool]:
        """Return what says of a file that an earlier job has left whether it is as it was then."""
        layout, begin = self.survey.layout, len(self._path) + 1

        def is_intact(path: str, status: os.stat_result) -> bool:
            untouched = left.finished_ns is None or status.st_ctime_ns < left.finished_ns
            return untouched and S_ISREG(status.st_mode) and layout.holds(path[begin:])

        return is_intact

    def _count_kept(self, is_local: bool) -> tuple[int, int]:
        sizes = [b.size_bytes for b, path in self._all(is_local) if self._has(b, path)]
        return len(sizes), sum(sizes)

    def measure(self) -> None:
        """Find out what copies of local files really take: holes and shared blocks take nothing."""
        self.is_measured = True
        can_share: dict[int, bool] = {}
        self._local_bytes = self._sharing = 0
        for blob, path in self._all(is_local=True):
            with contextlib.suppress(OSError):  # copying it says why
                status = os.stat(blob.key)
                device = status.st_dev
                if device not in can_share:
                    can_share[device] = can_clone(blob.key, self._path)
                if can_share[device]:
                    self._sharing += 1
                elif not self._has(blob, path):
                    self._local_bytes += data_bytes(blob.key, status)

    def need(self) -> Need:
        """Return what is still to come."""
        found = self.survey
        count, size_bytes, (kept_files, kept_bytes) = self.coming(local=False)
        files, total = count - kept_files, size_bytes - kept_bytes
        bare = found.local_files if self.links else self._sharing
        if not self.links:
            kept_files, kept_bytes = self._kept[True]
            files += found.local_files - self._sharing - kept_files
            total += self._local_bytes - (0 if self.is_measured else kept_bytes)
        return Need(
            channel=found.channel.name,
            folder=self._path,
            size_bytes=max(0, total),
            files=max(0, files),
            bare=bare,
        )

    def coming(self, *, local: bool) -> tuple[int, int, tuple[int, int]]:
        """Return how many files of how many bytes are copied from here or from afar.

        And how many of how many bytes of them are there.
        """
        found = self.survey
        if not local:
            count = found.files - found.local_files
            size_bytes = found.size_bytes - found.local_bytes
        elif self.links:
            return 0, 0, (0, 0)
        else:
            count, size_bytes = found.local_files, found.local_bytes
        return count, size_bytes, self._kept[local]

    def wanted(self, place: tuple[str, str]) -> Iterator[tuple[Blob, str]]:
        """Yield the objects of a place that are not there, each with its path."""
        for blob, path in self.survey.wanted(place):
            if not (self._is_resumed and self._has(blob, path)):
                yield blob, path

    def link(self) -> None:
        """Let the paths of local objects lead to them, if they are to: nothing is copied."""
        if not self.links:
            return
        with self._named():
            made = ""
            for blob, path in self._all(is_local=True):
                folder = os.path.dirname(path)
                if folder != made:
                    os.makedirs(folder, exist_ok=True)
                    made = folder
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                os.symlink(blob.key, path)

    def finish(self) -> None:
        """Check that all of it is there, and take the mark away; raise DataError if not."""
        wrong: list[str] = []
        count = 0
        with self._named():
            for blob, path in stoppable(self.survey.wanted(), self._stopped):
                if not self._has(blob, path, linked=self.links):
                    count += 1
                    if len(wrong) < _NAMED:
                        wrong.append(repr(blob.key))
                elif self._is_locked and not os.path.islink(path):
                    _make_read_only(path)
        if count:
            more = ", ..." if count > len(wrong) else ""
            raise DataError(
                f"{self.survey.where}: {count} of {self.survey.files} objects are not there in"
                f" full after the download: {', '.join(wrong)}{more}"
            )
        with self._named():
            if self.survey.lines:
                self._write_lines(*self.survey.lines)
            _mark_finished(self._path, self._version)
            if self._is_locked:
                for folder, _, _ in os.walk(self._path, topdown=False):
                    _make_read_only(folder)

    def _write_lines(self, name: str, lines: list[bytes]) -> None:
        path = os.path.join(self._path, name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with open(path, "xb") as file:
            file.writelines(line + b"\n" for line in lines)
        if self._is_locked:
            _make_read_only(path)

    def _all(self, is_local: bool) -> Iterator[tuple[Blob, str]]:
        """Yield the objects that are local, or the others."""
        for place in self.survey.places:
            if self.survey.is_local(place) == is_local:
                yield from stoppable(self.survey.wanted(place), self._stopped)

    def _has(self, blob: Blob, path: str, *, linked: bool = False) -> bool:
        """Return whether the object is there; a final name never holds a part of one."""
        try:
            found = os.stat(path, follow_symlinks=linked)
        except OSError:
            return False
        is_whole = found.st_size == blob.size_bytes or self.survey.unpacks
        return S_ISREG(found.st_mode) and is_whole

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        with errors_named(self.survey.channel.name, self._path):
            yield


def clear(channel: str, path: str, stopped: Callable[[], bool]) -> None:
    """Remove what an earlier job has left at the path of a channel, which is shown anew."""
    with errors_named(channel, path):
        if os.path.islink(path):
            os.unlink(path)
        elif _earlier(channel, path) is not None:
            _prune(path, _none, stopped)
            _unmark(path)
            with contextlib.suppress(OSError):  # something is mounted there
                os.rmdir(path)


def unlock(path: str) -> None:
    """Let folders be written to again: else their owner could not even remove them."""
    for folder, _, _ in os.walk(path):
        _open_up(folder)


@contextlib.contextmanager
def errors_named(channel: str, path: str) -> Iterator[None]:
    """Turn what the file system says into a DataError that names the channel and the path."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise DataError(f"channel {channel}: {where}: {error.strerror}") from None


def _earlier(channel: str, path: str) -> Left | None:
    """Return what an earlier job has left in a folder, which can then be written to."""
    left = left_by_a_job(path)
    if left is None:
        return None
    if mounts := mounts_below(path):
        raise DataError(
            f"channel {channel}: {mounts[0]} is mounted inside {path}, which an earlier job has"
            " filled and this one would clear"
        )
    _open_up(path)
    return left


def _none(_path: str, _status: os.stat_result) -> bool:
    return False


def _prune(
    top: str, keeps: Callable[[str, os.stat_result], bool], stopped: Callable[[], bool]
) -> tuple[int, str]:
    """Remove all below ``top`` but the files that ``keeps`` says, and the mark.

    Returns how many files that were, and the path of the first.
    """
    folders, mark = [top], f"{top}/{UNFINISHED}"
    count, first = 0, ""
    for folder in folders:  # more are found as it goes
        _open_up(folder)
        with os.scandir(folder) as entries:
            found = list(entries)
        for entry in stoppable(found, stopped):
            path = entry.path
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif path != mark and not keeps(path, entry.stat(follow_symlinks=False)):
                os.unlink(path)
                count, first = count + 1, first or path
    for folder in reversed(folders[1:]):
        with contextlib.suppress(OSError):  # something is kept in it
            os.rmdir(folder)
    return count, first


def _make_read_only(path: str) -> None:
    with contextlib.suppress(OSError):  # not every file system has permissions
        os.chmod(path, os.stat(path).st_mode & ~_WRITABLE)


def _open_up(folder: str) -> None:
    """Let the owner of a folder do everything in it."""
    mode = os.stat(folder).st_mode
    if mode & _OWNER != _OWNER:
        with contextlib.suppress(OSError):
            os.chmod(folder, mode | _OWNER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a folder says of the job that was the last to fill it."""

    version: str
    """What tells its content from any other; empty where the store does not."""
    finished_ns: int | None = None
    """When all was there, in the time of the file system; None: it was not."""


def left_by_a_job(path: str) -> Left | None:
    """Return what an earlier job says of the folder ``path``; None where no job has filled it."""
    try:
        # The script may have put anything there.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(f"{path}/{UNFINISHED}", flags), "rb") as file:
            return Left(version=file.read(100).decode("ascii", "replace"))
    except OSError:
        if os.path.lexists(f"{path}/{UNFINISHED}"):
            return Left(version="")
    try:
        text = os.getxattr(path, ATTRIBUTE).decode("ascii", "replace")
        version, finished, identity = text.split("\n")
        is_same = identity == _identity(path)
        return Left(version=version, finished_ns=int(finished)) if is_same else None
    except (OSError, ValueError):  # no attribute, none of ours, or a file system without any
        return None


def _mark_begun(path: str, version: str) -> None:
    """Mark a folder as one that is being filled."""
    with replaced(f"{path}/{UNFINISHED}") as file:
        os.write(file, version.encode("ascii"))
    _remove_attribute(path)


def _mark_finished(path: str, version: str) -> None:
    """Mark a folder as filled, where the file system has attributes."""
    mark = f"{path}/{UNFINISHED}"
    text = f"{version}\n{_next_tick(mark)}\n{_identity(path)}"
    with contextlib.suppress(OSError):
        os.setxattr(path, ATTRIBUTE, text.encode("ascii"))
    os.unlink(mark)


def _unmark(path: str) -> None:
    """Take all marks away."""
    _remove_attribute(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}/{UNFINISHED}")


def _remove_attribute(path: str) -> None:
    with contextlib.suppress(OSError):
        os.removexattr(path, ATTRIBUTE)


def _identity(path: str) -> str:
    return f"{os.stat(path).st_ino} {'mounted' if is_mounted(path) else ''}"


def _next_tick(path: str) -> int:
    """Return a time of the file system that is later than whatever has been done up to now.

    Its clock may go by ticks of 10 ms. Where it goes by seconds this is not waited for: then what
    was done last will be done again.
    """
    deadline = time.monotonic() + _TICK_SECONDS
    os.utime(path)
    before = os.stat(path).st_ctime_ns
    while (now := os.stat(path).st_ctime_ns) == before and time.monotonic() < deadline:
        time.sleep(0.001)
        os.utime(path)
    return now


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a channel will take."""

    channel: str
    folder: str
    """Where; it need not be there yet."""
    size_bytes: int
    files: int
    bare: int = 0
    """Files that take no block: links, and those that share the blocks of others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """A file system that has not the room for what channels will take."""

    needs: tuple[Need, ...]
    reason: str
    """A sentence."""


def shortage(needs: Iterable[Need]) -> Shortage | None:
    """Return where there is not room for what is needed; None where there is."""
    devices: dict[int, list[Need]] = {}
    for need in needs:
        devices.setdefault(os.stat(_existing(need.folder)).st_dev, []).append(need)
    for device, together in devices.items():
        if reason := _reason(device, together):
            return Shortage(needs=tuple(together), reason=reason)
    return None


def _reason(device: int, needs: list[Need]) -> str | None:
    place = _existing(needs[0].folder)
    found = os.statvfs(place)
    total, files = sum(n.size_bytes for n in needs), sum(n.files for n in needs)
    free = found.f_bavail * found.f_frsize
    # A file takes whole blocks: half of one too much on average.
    blocks = total + files * found.f_frsize // 2
    names = ", ".join(need.channel for need in needs)
    who = f"channel {names} needs" if len(needs) == 1 else f"channels {names} need"
    if blocks > free:
        more = "" if total > free else f" with the blocks of {files} files"
        return (
            f"{who} {human_size(max(total, blocks if more else 0))}{more},"
            f" {place} has {human_size(free)} free{_largest(device)}"
        )
    files += sum(n.bare for n in needs)
    if found.f_files and files > found.f_favail:
        return f"{who} {files} files, {place} has room for {found.f_favail} more"
    return None


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _largest(besides: int) -> str:
    """Return where there is most room, as a remark."""
    best, place = 0, ""
    for folder in _mounted():
        try:
            if not os.path.isdir(folder) or os.stat(folder).st_dev == besides:
                continue
            found = os.statvfs(folder)
        except OSError:
            continue
        free = found.f_bavail * found.f_frsize
        if free > best and not found.f_flag & os.ST_RDONLY:
            best, place = free, folder
    return f" (largest free: {place} {human_size(best)})" if place else ""


def _mounted() -> list[str]:
    """Return the folders that storage is mounted at."""
    import psutil

    try:
        found = psutil.disk_partitions(all=True)
    except OSError:
        return []
    return [each.mountpoint for each in found if each.fstype not in _IN_MEMORY]
