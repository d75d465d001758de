"""What is mounted where, and bind mounts in a mount namespace of the job's own.

What ``bound`` mounts is seen by the thread that calls it and by the processes that it starts from
then on, and by no other: the kernel takes it away with the last of them, also after a SIGKILL, and
an ``rm -rf`` of the base folder never reaches a user's data through it. It takes CAP_SYS_ADMIN,
which containers have where it was given to them (mount_namespaces(7)).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from shutil import which
from typing import TYPE_CHECKING

from sm_runtime.channels import Bind
from sm_runtime.job.errors import DataError

if TYPE_CHECKING:
    from ctypes import CDLL

log = logging.getLogger(__name__)

HELPERS = ("fusermount3", "fusermount")
"""The programs that may mount and unmount for FUSE, the first that is there counts."""
_SECONDS = 10.0
_ERRORS = "surrogateescape"
_ESCAPED = re.compile(r"\\([0-7]{3})")
"""Blanks, tabs, newlines and backslashes, as octal numbers."""
_CLONE_NEWNS = 0x20000
_MS_RDONLY = 0x1
_MS_REMOUNT = 0x20
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_MS_SLAVE = 0x80000
_MNT_DETACH = 0x2
_KEPT = {
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "nosymfollow": 0x100,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "relatime": 0x200000,
}
"""What a mount must keep when it becomes read-only, in user namespaces (<linux/mount.h>)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Something that is mounted, as this thread sees it."""

    id: str
    parent: str
    """What it is mounted upon, by its id."""
    path: str
    options: frozenset[str]


def is_mounted(path: str) -> bool:
    """Return whether something is mounted at ``path``, also where nobody serves it any more."""
    real = _real(path)
    return any(mount.path == real for mount in mounts())


def mounts_below(path: str) -> list[str]:
    """Return where something is mounted below ``path``, ``path`` itself left out."""
    begin = _real(path) + "/"
    return [mount.path for mount in mounts() if mount.path.startswith(begin)]


def mounts_of(path: str) -> list[Mount]:
    """Return what was mounted last at ``path``, and what is mounted upon that."""
    real = _real(path)
    found: list[Mount] = []
    ids: set[str] = set()
    for mount in mounts():
        if mount.path == real:
            found, ids = [mount], {mount.id}
        elif mount.parent in ids:
            found.append(mount)
            ids.add(mount.id)
    return found


def mounts() -> Iterator[Mount]:
    """Yield all that is mounted, each after what it is mounted upon (proc(5), mountinfo)."""
    path = "/proc/thread-self/mountinfo"
    # Without /proc nothing is known.
    with suppress(FileNotFoundError), open(path, encoding="utf-8", errors=_ERRORS) as file:
        for line in file:
            number, parent, _, _, place, options, _ = line.split(" ", 6)
            yield Mount(
                id=number,
                parent=parent,
                path=_ESCAPED.sub(_character, place),
                options=frozenset(options.split(",")),
            )


def _character(found: re.Match[str]) -> str:
    return chr(int(found[1], 8))


def _real(path: str) -> str:
    """Return the path, links followed but in its last part: it may not be reachable."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def detach(path: str) -> None:
    """Unmount ``path`` at once for all that is opened from now on."""
    helper = next((found for name in HELPERS if (found := which(name))), HELPERS[0])
    try:
        done = subprocess.run(
            (helper, "-u", "-z", "--", path),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
        said = done.stderr.decode("utf-8", "replace").strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if is_mounted(path):
        log.warning("%s cannot be unmounted: %s", path, said)


@contextlib.contextmanager
def bound(binds: Sequence[Bind]) -> Iterator[None]:
    """Mount all while the block lasts, for this thread and what it starts; raise DataError."""
    with contextlib.ExitStack() as undo:
        libc = _libc()
        for bind in binds:
            try:
                if bind is binds[0]:
                    _enter_namespace(libc)
                if make_folder(bind.path):
                    undo.callback(remove_folder, bind.path)
                _mount(libc, bind)
            except OSError as error:
                raise DataError(
                    f"channel {bind.channel}: {bind.source} cannot be mounted at {bind.path}:"
                    f" {error.strerror}"
                ) from None
            undo.callback(_unmount, libc, bind.path)
            if bind.source != bind.path:
                how = "read-only" if bind.is_read_only else "and can be written to"
                log.info("channel %s: %s is mounted, %s", bind.channel, bind.source, how)
        yield


def obstacles(binds: Sequence[Bind]) -> dict[str, str]:
    """Return, by the channel's name, why what cannot be mounted here cannot be.

    All of it is tried, in a namespace that is gone after that: it belongs to a thread.
    """
    found: dict[str, str] = {}

    def attempt() -> None:
        try:
            libc = _libc()
            _enter_namespace(libc)
        except (OSError, ImportError, AttributeError) as error:  # no ctypes, another C library
            found.update((bind.channel, _why(error)) for bind in binds)
            return
        for bind in binds:
            try:
                _mount(libc, bind)
            except OSError as error:
                found[bind.channel] = _why(error)

    with contextlib.ExitStack() as undo:
        for bind in binds:
            try:
                if make_folder(bind.path):
                    undo.callback(remove_folder, bind.path)
            except OSError as error:
                reason = f"channel {bind.channel}: {bind.path}: {_why(error)}"
                raise DataError(reason) from None
        thread = threading.Thread(target=attempt, name="mount")
        thread.start()
        thread.join()
    return found


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _libc() -> CDLL:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    text = ctypes.c_char_p
    libc.mount.argtypes = (text, text, text, ctypes.c_ulong, text)
    libc.umount2.argtypes = (text, ctypes.c_int)
    libc.unshare.argtypes = (ctypes.c_int,)
    return libc


def _check(result: int) -> None:
    """Raise the OSError that a call of the C library has left."""
    if result:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _enter_namespace(libc: CDLL) -> None:
    """Give this thread a view of its own, into which others' mounts still come."""
    _check(libc.unshare(_CLONE_NEWNS))
    _check(libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None))


def _mount(libc: CDLL, bind: Bind) -> None:
    """Mount a folder with all that is mounted below it; raise OSError, with nothing mounted."""
    path = os.fsencode(bind.path)
    _check(libc.mount(os.fsencode(bind.source), path, None, _MS_BIND | _MS_REC, None))
    try:
        _check(libc.mount(b"none", path, None, _MS_REC | _MS_PRIVATE, None))
        for mount in mounts_of(bind.path) if bind.is_read_only else ():
            flags = sum(_KEPT.get(option, 0) for option in mount.options)
            flags |= _MS_REMOUNT | _MS_BIND | _MS_RDONLY
            _check(libc.mount(b"none", os.fsencode(mount.path), None, flags, None))
    except OSError:
        libc.umount2(path, _MNT_DETACH)
        raise


def _unmount(libc: CDLL, path: str) -> None:
    """Unmount at once, whatever is still open there."""
    try:
        _check(libc.umount2(os.fsencode(path), _MNT_DETACH))
    except OSError as error:
        log.warning("%s cannot be unmounted: %s", path, error.strerror)


def make_folder(path: str) -> bool:
    """Make a folder; return whether there was none. A link of an earlier job goes."""
    if os.path.islink(path):
        os.unlink(path)
    if os.path.isdir(path):
        return False
    os.makedirs(path)
    return True


def remove_folder(path: str) -> None:
    """Remove a folder that ``make_folder`` has made, if nothing is in it."""
    with contextlib.suppress(OSError):
        os.rmdir(path)
