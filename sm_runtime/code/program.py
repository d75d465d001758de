"""Looks at the code folder for what decides how a program is run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sm_runtime.code.entry import Found, module_of
from sm_runtime.job.errors import CodeError

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

_MOST_FILES = 1000


def look(
    program: str | None,
    search_path: tuple[str, ...],
    folder: str,
    requirements: str,
    installed_in: tuple[str, ...] = (),
) -> Found:
    """Look at the code for what the decision about ``program`` needs.

    ``search_path`` are the folders of the code, ``requirements`` the name of the requirements file
    in ``folder``, where the program is to run. ``installed_in`` are folders that the script's
    Python searches, and this one does not.
    """
    path = os.path.join(folder, program or "")
    package = is_package(folder)
    if not program or not os.path.isfile(path):
        module = module_of(program or "")
        origin = _origin(module.name, search_path, installed_in) if module else ""
        return Found(
            folder=folder,
            files=tuple(itertools.islice(walk(folder), _MOST_FILES))
            if os.path.isdir(folder)
            else (),
            folder_exists=os.path.isdir(folder),
            module_here=origin == "here",
            module_installed=origin == "installed",
            module_standard=origin == "standard",
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


def _origin(name: str, search_path: tuple[str, ...], installed_in: tuple[str, ...]) -> str:
    """Return where Python would find a module: ``here``, ``installed``, ``standard``; or nothing.

    Nothing is imported. ``here`` is below ``search_path``, where a folder without ``__init__.py``
    counts only if nothing else has its name, as with Python itself.
    """
    import sys
    from importlib import invalidate_caches
    from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

    invalidate_caches()
    top, *rest = name.split(".")
    if BuiltinImporter.find_spec(top) or FrozenImporter.find_spec(top):
        return "standard"
    spec = PathFinder.find_spec(top, [*search_path, *installed_in, *sys.path])
    if spec is None:
        return "installed" if _is_installed(top) else ""
    if not _is_below(spec, search_path):
        is_standard = top in sys.stdlib_module_names and not _is_below(spec, installed_in)
        return "standard" if is_standard else "installed"
    for part in rest:
        # By its last name alone: the package above it would have to be imported otherwise.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or ()))
        if spec is None:
            return ""
    return "here"


def _is_installed(top: str) -> bool:
    """Whether an import hook, such as that of an editable installation, knows the module."""
    from importlib.util import find_spec

    try:
        return find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _is_below(spec: ModuleSpec, folders: tuple[str, ...]) -> bool:
    places = [spec.origin] if spec.has_location else spec.submodule_search_locations or []
    return any(
        str(place).startswith(folder.rstrip("/") + "/") for place in places for folder in folders
    )


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
    todo = [""]
    while todo:  # os.walk is recursive before Python 3.12
        here = todo.pop()
        folders = []
        for name, is_folder, is_link in _listed(os.path.join(folder, here)):
            if not is_folder:
                yield os.path.join(here, name)
            elif not is_link:
                folders.append(os.path.join(here, name))
        todo += reversed(folders)


def _listed(folder: str) -> list[tuple[str, bool, bool]]:
    """Return name, whether it is a folder and whether it is a link of what may be code."""
    try:
        with os.scandir(folder) as entries:
            found = [(e.name, e.is_dir(), e.is_symlink()) for e in entries if e.name != ".DS_Store"]
    except OSError:
        return []
    return sorted(
        (name, is_folder, is_link)
        for name, is_folder, is_link in found
        if not (is_folder and (name == "__pycache__" or name.startswith(".")))
    )
