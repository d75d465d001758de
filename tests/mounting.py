"""Says whether FastFile channels can be mounted on this machine; elsewhere they have to say so."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

_SYS_ADMIN = 21
"""The number of the right to mount, see capabilities(7)."""


def can_mount() -> bool:
    """Return whether the programs, the device and the right to mount are all there."""
    path = f"{os.environ['PATH']}:{Path(sys.executable).parent}"
    programs = [shutil.which(name, path=path) for name in ("rclone", "fusermount3")]
    with open("/proc/self/status") as file:
        rights = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    return all(programs) and os.path.exists("/dev/fuse") and bool(rights >> _SYS_ADMIN & 1)
