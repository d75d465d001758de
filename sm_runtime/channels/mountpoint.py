"""Tells what is mounted, and unmounts it."""

from __future__ import annotations

import logging
import os
import subprocess
from shutil import which

log = logging.getLogger(__name__)

HELPERS = ("fusermount3", "fusermount")
"""The programs that may mount and unmount for FUSE, the first that is there counts."""
_SECONDS = 10.0


def is_mounted(path: str) -> bool:
    """Return whether something is mounted at ``path``, also where nobody serves it any more."""
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    wanted = real.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return any(line.split(" ", 5)[4] == wanted.replace("\n", "\\012") for line in file)


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
