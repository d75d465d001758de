"""Puts code where it is to run: copied or unpacked beside it first, then moved."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch

from sm_runtime.code.archive import MAX_DEPTH, extract, kind_of, shown
from sm_runtime.job.errors import CodeError
from sm_runtime.storage.writing import Room

STAGING = ".sm-runtime-unpacking-"
"""How the names begin of folders that hold what is not complete yet."""
CLUTTER = frozenset({"lost+found", ".DS_Store"})
"""What a folder may hold that no one put there."""
_ARCHIVE_NAMES = (
    ".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip",
)  # fmt: skip
_CHUNK = 1 << 20


def fill(
    source: str,
    target: str,
    max_bytes: int,
    *,
    replace: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Make ``target`` hold what the folder, archive or file ``source`` holds: all or nothing.

    ``replace``: what ``target`` held before goes; else it is filled where it is, as it may be a
    mount point or some process's cwd. Raises CodeError, also when ``stopped`` says so.
    """
    if (os.path.realpath(target) + "/").startswith(os.path.realpath(source).rstrip("/") + "/"):
        raise CodeError(
            f"sagemaker_submit_directory: {source} holds the job's own folder {target};"
            " name the folder of the code"
        )
    try:
        if replace or not os.path.isdir(target):
            with _staging(os.path.dirname(target)) as staging:
                _collect(source, staging, max_bytes, stopped)
                if os.path.lexists(target):
                    shutil.rmtree(target)
                os.rename(staging, target)
        else:
            with _staging(target) as staging:
                _collect(source, staging, max_bytes, stopped)
                _move(staging, target)
    except OSError as error:
        raise CodeError(f"{source} cannot be put into {target}: {error}") from error


@contextlib.contextmanager
def _staging(around: str) -> Iterator[str]:
    """Yield a path, on the mount of the folder ``around``, where a folder can be made."""
    os.makedirs(around, exist_ok=True)
    for name in os.listdir(around):
        if name.startswith(STAGING):  # of a job that was killed
            shutil.rmtree(os.path.join(around, name), ignore_errors=True)
    holder = tempfile.mkdtemp(prefix=STAGING, dir=around)
    try:
        yield os.path.join(holder, "code")
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _collect(source: str, staging: str, max_bytes: int, stopped: Callable[[], bool]) -> None:
    if os.path.isdir(source):
        copy_folder(source, staging, stopped)
        return
    if not os.path.isfile(source):
        raise CodeError(f"sagemaker_submit_directory: {source} is neither a folder nor a file")
    if kind_of(source) is not None or source.endswith(_ARCHIVE_NAMES):
        extract(source, staging, max_bytes, stopped=stopped)
        return
    room = Room(os.path.dirname(staging))
    room.take(os.path.getsize(source))
    room.check(source)
    os.mkdir(staging)
    _copy_file(source, os.path.join(staging, os.path.basename(source)), stopped)


def copy_folder(
    source: str, target: str, stopped: Callable[[], bool], ignored: tuple[str, ...] = ()
) -> None:
    """Copy a folder to ``target``, which must not exist yet, but for names that are ``ignored``.

    A relative link that would lead elsewhere is made absolute. Raises CodeError or OSError.
    """
    root = os.path.realpath(source)
    entries = list(_entries(root, stopped, ignored))
    room = Room(os.path.dirname(target))
    for _, found in entries:
        room.take(0 if stat.S_ISDIR(found.st_mode) else found.st_size)
    room.check(source)
    os.mkdir(target)
    folders = [""]
    for name, found in entries:
        original, place = os.path.join(root, name), os.path.join(target, name)
        if stat.S_ISDIR(found.st_mode):
            os.mkdir(place)
            folders.append(name)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(_target(original, root), place)
            shutil.copystat(original, place, follow_symlinks=False)
        else:
            _copy_file(original, place, stopped)
    for name in reversed(folders):  # last, as what is put into a folder alters its time
        place = os.path.join(target, name)
        shutil.copystat(os.path.join(root, name), place)
        os.chmod(place, os.stat(place).st_mode | 0o700)  # else it cannot be moved


def _entries(
    root: str, stopped: Callable[[], bool], ignored: tuple[str, ...]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield all that is below ``root``, relative to it, a folder before what it holds."""
    todo = [""]
    while todo:
        folder = todo.pop()
        _check_stop(root, stopped)
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if any(fnmatch(entry.name, pattern) for pattern in ignored):
                    continue
                name = os.path.join(folder, entry.name)
                found = entry.stat(follow_symlinks=False)
                if name.count("/") > MAX_DEPTH:
                    raise CodeError(f"{shown(root)} is more than {MAX_DEPTH} folders deep")
                if stat.S_ISDIR(found.st_mode):
                    todo.append(name)
                elif not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
                    raise CodeError(
                        f"{entry.path} cannot be copied: it is neither a file, a folder nor a link"
                    )
                yield name, found


def _target(link: str, root: str) -> str:
    """Return where a copy of ``link`` has to lead."""
    target = os.readlink(link)
    if os.path.isabs(target):
        return target
    where = os.path.realpath(link)
    return target if where == root or where.startswith(root + "/") else where


def _copy_file(source: str, place: str, stopped: Callable[[], bool]) -> None:
    with open(source, "rb", buffering=0) as file, open(place, "xb", buffering=0) as out:
        while chunk := file.read(_CHUNK):
            _check_stop(source, stopped)
            rest = memoryview(chunk)
            while rest:
                rest = rest[out.write(rest) :]
    shutil.copystat(source, place)


def _check_stop(source: str, stopped: Callable[[], bool]) -> None:
    if stopped():
        raise CodeError(f"{source} was not copied: a stop was requested")


def _move(staging: str, target: str) -> None:
    """Move what is in ``staging`` into ``target``, or nothing of it."""
    moved: list[str] = []
    try:
        for name in os.listdir(staging):
            place = os.path.join(target, name)
            if name in CLUTTER and os.path.lexists(place):
                continue
            os.rename(os.path.join(staging, name), place)
            moved.append(name)
    except BaseException:
        for name in moved:
            os.rename(os.path.join(target, name), os.path.join(staging, name))
        raise
