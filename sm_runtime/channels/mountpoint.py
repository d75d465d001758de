"""Tells what is mounted, and unmounts it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from shutil import which

log = logging.getLogger(__name__)

HELPERS = ("fusermount3", "fusermount")
"""The programs that may mount and unmount for FUSE, the first that is there counts."""
_SECONDS = 10.0
_ERRORS = "surrogateescape"
_ESCAPED = re.compile(r"\\([0-7]{3})")
"""Blanks, tabs, newlines and backslashes, as octal numbers."""


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
    # Without /proc nothing can be told.
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
