"""The wheel of this checkout, and what has to be in it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = 'root=$1; . "$root/scripts/lib.sh"; have_wheel; printf %s "$wheel"'


def built_wheel() -> Path:
    """Return the wheel that scripts/test installs, built if the sources have changed since."""
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build/wheel.lock", "w") as lock:  # tests run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            ("sh", "-euc", BUILD, "sh", ROOT),
            env={**os.environ, "VENV": sys.prefix},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return Path(done.stdout)


def checkout() -> list[Path]:
    """Return the files that git tracks, or would: relative to the checkout's root."""
    listed = subprocess.run(
        ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    names = (Path(name) for name in listed.stdout.split("\0") if name)
    return sorted(name for name in names if (ROOT / name).exists())


def packages() -> set[str]:
    """Return the packages at the checkout's root: all are for users, but the tests."""
    tops = {path.parts[0] for path in checkout() if path.match("*/__init__.py")}
    return {top for top in tops if (ROOT / top / "__init__.py").exists()} - {"tests"}
