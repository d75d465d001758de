"""Where a Python that a job starts finds modules, and this one, started with ``-I``, does not."""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping


def add_user_packages(environ: Mapping[str, str]) -> None:
    """Have this process find what was installed with ``pip install --user``, after all else."""
    folder = user_packages(environ)
    if folder and folder not in sys.path and os.path.isdir(folder):
        sys.path.append(folder)


def user_packages(environ: Mapping[str, str]) -> str | None:
    """Return the folder of ``pip install --user``, if a Python without ``-I`` looks there.

    The rules are those of ``site.check_enableusersite``.
    """
    real, effective = (os.getuid(), os.getgid()), (os.geteuid(), os.getegid())
    if environ.get("PYTHONNOUSERSITE") or real != effective:
        return None
    if sys.prefix != sys.base_prefix and sys.base_prefix not in site.PREFIXES:
        return None  # a virtual environment that sees nothing of the system's Python
    return site.getusersitepackages()


def added_folders(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the folders that a Python started with ``environ`` searches and this one does not."""
    folders = [*environ.get("PYTHONPATH", "").split(os.pathsep), user_packages(environ)]
    return tuple(folder for folder in folders if folder and folder not in sys.path)
