"""Decides how a program is run: as a script, a module, a shell script or any other executable.

``look`` finds in the code folder what the decision needs. It follows the program's name first, as
users of the SageMaker training toolkit expect, but a ``setup.py`` in the code folder never turns a
script that is there into something else.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
import site
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sm_runtime.job.dataclass import dataclass
from sm_runtime.job.errors import CodeError, ConfigError, LaunchError
from sm_runtime.job.text import some

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


_MODULE = re.compile(r"(?:-m\s+)?(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*)"
                     r"(?::(?P<function>[^\W\d]\w*(?:\.[^\W\d]\w*)*))?")  # fmt: skip
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "ksh", "zsh"})
_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a look at the code folder has shown about a program."""

    folder: str
    """The code folder: where the program will run."""
    folder_exists: bool = True
    files: tuple[str, ...] | None = None
    """Files below the folder, relative to it; None: not looked for, as the program is there."""
    is_file: bool = False
    executable: bool = False
    """Whether the kernel may execute the file: its x bit is set, its mount allows it."""
    binary: bool = False
    """Whether the file's first bytes are no text."""
    interpreter: tuple[str, ...] = ()
    """The words after ``#!``: a path and at most one argument."""
    interpreter_exists: bool = False
    dos_lines: bool = False
    """Whether the first line ends in CR LF."""
    shell: str = "/bin/sh"
    """The shell for shell scripts that name none."""
    module_here: bool = False
    """Whether Python would find the module that the program names in the search path's folders."""
    module_installed: bool = False
    """Whether the interpreter has the module's top-level package, and not as one of its own."""
    module_standard: bool = False
    """Whether Python would take a module of its standard library for it."""
    installs: bool = False
    """Whether a package or requirements will be installed before the start."""
    package: bool = False
    """Whether the folder itself is an installable package."""
    elsewhere: str | None = None
    """A folder behind the code folder that has the program, if one has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A program that is a module, or a function of one."""

    name: str
    function: str | None = None
    explicit: bool = True
    """Whether it can be nothing else: ``-m pkg.mod`` or ``pkg.mod:function``."""


def module_of(program: str) -> Module | None:
    """Return the module that a program's name stands for, or None if it cannot stand for one."""
    match = _MODULE.fullmatch(program)
    if match is None:
        return None
    function = match["function"]
    return Module(
        name=match["module"],
        function=function,
        explicit=function is not None or program.startswith("-m"),
    )


def program_words(program: str | None, found: Found, python: str) -> tuple[str, ...]:
    """Return the words that run ``program`` in ``found.folder``, to which arguments are added.

    Raises ConfigError without a program, CodeError where it cannot be found or run, and
    LaunchError where an interpreter is needed and ``python`` is empty.
    """
    if not program:
        raise ConfigError(
            "no program to run: set the environment variable SAGEMAKER_PROGRAM or the"
            f" hyperparameter sagemaker_program to one of the files of {_listed(found)}"
        )
    if _leaves(program):
        raise CodeError(f"program {program!r} is outside of the code folder {found.folder}")
    if found.is_file:
        return _file(program, found, python)
    module = _chosen_module(program, found)
    if module is None:
        raise CodeError(_missing(program, found))
    return _module(module, program, python)


def _chosen_module(program: str, found: Found) -> Module | None:
    module = module_of(program)
    if program.endswith(".py") and not (module and module.explicit):
        # With no such file, the name can only be that of a module of the installed package.
        path = posixpath.normpath(program)[:-3]
        return module_of(path.replace("/", ".")) if found.package else None
    if module is None or found.module_standard:
        return None
    if found.module_here or found.package:
        return module
    # Many packages do nothing, successfully, when they run: a lone word may just be misspelt.
    is_meant = module.explicit or "." in module.name
    return module if is_meant and (found.module_installed or found.installs) else None


def _module(module: Module, program: str, python: str) -> tuple[str, ...]:
    if module.function is None:
        return (_python(python, program), "-m", module.name)
    first, _, rest = module.function.partition(".")
    call = f"_f.{rest}" if rest else "_f"
    # As the scripts that pip makes do; the name at argv[0] is what argparse shows.
    code = f"import sys; sys.argv[0] = {program!r}; from {module.name} import {first} as _f; "
    return (_python(python, program), "-c", code + f"sys.exit({call}())")


def _file(program: str, found: Found, python: str) -> tuple[str, ...]:
    # A name that begins with a dash would be taken for an option of the interpreter.
    if program.endswith(".py"):
        return (_python(python, program), f"./{program}" if program[0] == "-" else program)
    path = program if program.startswith(("/", "./")) else f"./{program}"
    is_shell = program.endswith(".sh")
    if found.interpreter:
        if found.interpreter_exists:
            if found.executable and not found.dos_lines and not is_shell:
                return (path,)
            return _interpreted(found.interpreter, path, found.dos_lines)
        if not is_shell:
            raise CodeError(
                f"program {program!r} asks for the interpreter {found.interpreter[0]}"
                " in its first line, and this image has none there"
            )
    if found.binary:
        is_shell = False
    if is_shell or (found.executable and not found.binary):
        # Text without a first line that says more is for the shell, as execvp(3) has it.
        return _interpreted((found.shell,), path, found.dos_lines)
    if not found.executable:
        raise CodeError(
            f"program {program!r} in {found.folder} cannot be executed: set its x bit"
            " (chmod +x), or give it a first line such as #!/bin/sh"
        )
    return (path,)


def _interpreted(words: tuple[str, ...], path: str, dos_lines: bool) -> tuple[str, ...]:
    if dos_lines and any(posixpath.basename(word) in _SHELLS for word in words):
        # Shells take the CR for a part of the command; the file itself may be read-only.
        return (*words, "-c", 'eval "$(tr -d "\\015" < "$0")"', path)
    return (*words, path)


def _python(python: str, program: str) -> str:
    if not python:
        raise LaunchError(f"program {program!r} needs Python, and sys.executable is empty")
    return python


def _leaves(program: str) -> bool:
    return not program.startswith("/") and posixpath.normpath(program).split("/")[0] == ".."


def _missing(program: str, found: Found) -> str:
    import difflib

    text = f"program {program!r} is not in {_listed(found)}"
    names = {posixpath.basename(file): file for file in reversed(found.files or ())}
    near = difflib.get_close_matches(posixpath.basename(program), names, n=1)
    if found.elsewhere is not None:
        text += (
            f"; {found.elsewhere} has it, but the submitted code is used"
            " (SM_RUNTIME_CODE_PREFERENCE=image changes that)"
        )
    elif found.module_standard:
        text += "; a module of Python's standard library is not run in its place"
    elif near:
        text += f"; did you mean {names[near[0]]!r}?"
    elif found.module_installed and module_of(program):
        text += f"; to run the installed module, write '-m {program}'"
    elif " " in program.strip():
        text += "; arguments are given as hyperparameters, not with the program's name"
    return text


def _listed(found: Found) -> str:
    if not found.folder_exists:
        return f"{found.folder}, which does not exist"
    if not found.files:
        return found.folder + ("" if found.files is None else ", which has no files")
    return f"{found.folder}, which has {some(found.files, _SHOWN)}"


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
        for name, is_folder, is_link in _scanned(os.path.join(folder, here)):
            if not is_folder:
                yield os.path.join(here, name)
            elif not is_link:
                folders.append(os.path.join(here, name))
        todo += reversed(folders)


def _scanned(folder: str) -> list[tuple[str, bool, bool]]:
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
