"""Puts code where it is to run: copied or unpacked beside it first, then moved."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from sm_runtime.archive import extract
from sm_runtime.errors import CodeError
from sm_runtime.members import kind_of

STAGING = ".sm-runtime-unpacking-"
"""How the names begin of folders that hold what is not complete yet."""
CLUTTER = frozenset({"lost+found", ".DS_Store"})
"""What a folder may hold that no one put there."""
_ARCHIVE_NAMES = (
    ".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip",
)  # fmt: skip


def fill(source: str, target: str, max_bytes: int, *, replace: bool = False) -> None:
    """Make ``target`` hold what the folder, archive or file ``source`` holds: all or nothing.

    ``replace``: what ``target`` held before goes; else it is filled where it is, as it may be a
    mount point or some process's cwd. Raises CodeError.
    """
    if (os.path.realpath(target) + "/").startswith(os.path.realpath(source).rstrip("/") + "/"):
        raise CodeError(
            f"sagemaker_submit_directory: {source} holds the job's own folder {target};"
            " name the folder of the code"
        )
    try:
        if replace or not os.path.isdir(target):
            with _staging(os.path.dirname(target)) as staging:
                _collect(source, staging, max_bytes)
                if os.path.lexists(target):
                    shutil.rmtree(target)
                os.rename(staging, target)
        else:
            with _staging(target) as staging:
                _collect(source, staging, max_bytes)
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


def _collect(source: str, staging: str, max_bytes: int) -> None:
    if os.path.isdir(source):
        _copy_folder(source, staging)
        return
    if not os.path.isfile(source):
        raise CodeError(f"sagemaker_submit_directory: {source} is neither a folder nor a file")
    if kind_of(source) is not None or source.endswith(_ARCHIVE_NAMES):
        extract(source, staging, max_bytes)
    else:
        os.mkdir(staging)
        shutil.copy2(source, staging)


def _copy_folder(source: str, staging: str) -> None:
    """Copy a folder; a relative link that would lead elsewhere is made absolute."""
    try:
        shutil.copytree(source, staging, symlinks=True)
    except shutil.Error as error:
        (_, _, why), *more = error.args[0]
        others = f" (and {len(more)} more)" if more else ""
        raise CodeError(f"{source} cannot be copied: {why}{others}") from error
    root = os.path.realpath(source)
    for folder, folders, files in os.walk(staging):
        os.chmod(folder, os.stat(folder).st_mode | 0o700)  # else it cannot be moved
        for name in folders + files:
            link = os.path.join(folder, name)
            if not os.path.islink(link) or os.path.isabs(os.readlink(link)):
                continue
            original = os.path.join(root, os.path.relpath(link, staging))
            where = os.path.realpath(original)
            if not where.startswith(root + "/") and where != root:
                os.unlink(link)
                os.symlink(where, link)


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
