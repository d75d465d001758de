"""Looks at the code folder for what decides how a program is run."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

from sm_runtime.errors import CodeError
from sm_runtime.launch.script import Found, module_of

_MOST_FILES = 1000


def look(
    program: str | None, search_path: tuple[str, ...], folder: str, requirements: str
) -> Found:
    """Look at the code for what the decision about ``program`` needs.

    ``search_path`` are the folders of PYTHONPATH, ``requirements`` the name of the requirements
    file in ``folder``, where the program is to run.
    """
    path = os.path.join(folder, program or "")
    package = is_package(folder)
    if not program or not os.path.isfile(path):
        module = module_of(program or "")
        name = module.name if module else ""
        return Found(
            folder=folder,
            files=tuple(itertools.islice(walk(folder), _MOST_FILES))
            if os.path.isdir(folder)
            else (),
            folder_exists=os.path.isdir(folder),
            module_here=bool(name) and any(_has_module(f, name) for f in search_path),
            module_installed=bool(name) and _is_installed(name.partition(".")[0]),
            installs=package or os.path.isfile(os.path.join(folder, requirements)),
            package=package,
            elsewhere=next(
                (f for f in search_path[1:] if os.path.isfile(os.path.join(f, program or ""))),
                None,
            ),
        )
    if program.endswith(".py"):
        return Found(folder=folder, is_file=True, package=package)
    return _look_inside(folder, path)


def _look_inside(folder: str, path: str) -> Found:
    """Look at the beginning of a file that is not Python's to run."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise CodeError(f"program {path} cannot be read: {error}") from error
    line, newline, _ = head.partition(b"\n")
    words: tuple[str, ...] = ()
    if line.startswith(b"#!"):
        # As the kernel does: the rest of the line is one argument (execve(2)).
        parts = os.fsdecode(line[2:]).strip().split(None, 1)
        words = tuple(part.strip() for part in parts)
    return Found(
        folder=folder,
        is_file=True,
        executable=os.access(path, os.X_OK),
        binary=b"\0" in head,
        interpreter=words,
        interpreter_exists=bool(words) and os.access(words[0], os.X_OK),
        dos_lines=bool(newline) and line.endswith(b"\r"),
        shell="/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh",
    )


def _has_module(folder: str, name: str) -> bool:
    """Whether a module is below ``folder``: a folder, a source file or an extension module."""
    parent, _, last = os.path.join(folder, *name.split(".")).rpartition("/")
    if os.path.isdir(os.path.join(parent, last)):
        return True
    with contextlib.suppress(OSError):
        return any(
            found.startswith(last + ".") and found.endswith((".py", ".pyc", ".so"))
            for found in os.listdir(parent)
        )
    return False


def _is_installed(top: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def is_package(folder: str) -> bool:
    """Whether pip can install ``folder``: it has a setup.py, or a pyproject.toml that says how."""
    return os.path.isfile(os.path.join(folder, "setup.py")) or has_project(folder)


def has_project(folder: str) -> bool:
    """Whether ``folder`` has a pyproject.toml that describes a package, not only tools."""
    import re

    try:
        with open(os.path.join(folder, "pyproject.toml"), encoding="utf-8", errors="replace") as f:
            return re.search(r"(?m)^\s*\[(project|build-system)\]", f.read()) is not None
    except OSError:
        return False


def walk(folder: str) -> Iterator[str]:
    """Yield the files below ``folder``, relative to it, in order, those at its root first."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(n for n in folders if n != "__pycache__" and not n.startswith("."))
        for name in sorted(files):
            if name != ".DS_Store":
                yield os.path.relpath(os.path.join(here, name), folder)
