"""Installs what the user's code asks for, once per host, and only what is not there already.

What the runtime itself needs is not its business.

pip overwrites the files of another package silently, and has no option to leave out a package that
a requirement depends on. What a package with the same command or module names has replaced of this
one is therefore put back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sm_runtime.code.entry import has_project
from sm_runtime.code.fetch import Code, channel_at
from sm_runtime.job.dataclass import dataclass, field
from sm_runtime.job.errors import InstallError
from sm_runtime.job.model import Job, Options
from sm_runtime.job.text import some

if TYPE_CHECKING:
    from sm_runtime.install.pip import Pip, Run
    from sm_runtime.install.requirements import InstalledDistributions, Line

log = logging.getLogger(__name__)

OWN_NAME = "sm-runtime"
"""The name of this package, as pip knows it."""
_COMMANDS = ("train", "sm-runtime")
_MARKS = (b"sm_runtime", b"sm-runtime")
_HEAD_BYTES = 8192
_NAMED = 5
_PATH = re.compile(r"[^\s=]*/[^\s=]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What was done, and what the script's environment needs for it."""

    summary: str
    environ: Mapping[str, str] = field(default_factory=dict)
    """Variables that replace those of the same name."""


def install(
    job: Job,
    code: Code,
    environ: Mapping[str, str],
    python: str,
    run: Run,
    stopped: Callable[[], bool] = lambda: False,
    *,
    package: bool = True,
) -> Installed:
    """Install the requirements file and, with ``package``, the one at the code folder's root.

    One rule for every kind of program. Raises InstallError in one sentence, also when ``stopped``
    says so; pip is not started where everything is installed.
    """
    name = job.options.requirements
    file = os.path.join(code.directory, name)
    package = package and _is_package(job, code)
    if not os.path.isfile(file):
        if job.options.install and name != Options().requirements:
            raise InstallError(f"SM_RUNTIME_REQUIREMENTS: {name} is not in {code.directory}")
        file = ""
    if not file and not package:
        return Installed(summary=f"no {name} in {code.directory}")
    if not job.options.install:
        what = name if file else "the package in the code folder"
        return Installed(summary=f"{what} is not installed (SM_RUNTIME_INSTALL is off)")
    from sm_runtime.install.pip import Pip

    try:
        return _install(job, code, file, package, Pip(job, code, environ, python, run, stopped))
    except OSError as error:
        raise InstallError(f"{name} cannot be installed: {error}") from error


def needs_channels(job: Job, code: Code, environ: Mapping[str, str]) -> bool:
    """Whether the requirements file, a word in it or a setting of pip is a path in a channel.

    Such as a folder of wheels, which has to be there before pip looks for it.
    """
    if not job.options.install or not any(channel.source for channel in job.channels):
        return False
    from sm_runtime.install import pip, requirements

    file = os.path.join(code.directory, job.options.requirements)
    texts = [file, *pip.settings(environ).values()]
    with contextlib.suppress(OSError):
        texts += [line.text for line in requirements.read(file, environ)]
    words = (word for text in texts for word in _PATH.findall(text))
    return any(channel_at(job, word, code.directory) is not None for word in words)


def _is_package(job: Job, code: Code) -> bool:
    folder, program = code.directory, job.program or ""
    if program.endswith(".sh"):
        return False  # as with the SageMaker training toolkit
    if os.path.isfile(os.path.join(folder, "setup.py")):
        return True
    # Many keep a pyproject.toml for their tools beside a script; only a module needs it installed.
    is_script = os.path.isfile(os.path.join(folder, program))
    return not is_script and has_project(folder)


def _install(job: Job, code: Code, file: str, package: bool, pip: Pip) -> Installed:
    from sm_runtime.install import requirements

    name = job.options.requirements
    lines = requirements.read(file, pip.environ) if file else []
    present = requirements.InstalledDistributions(pip.place.folders)
    if not job.options.allow_framework_change:
        _refuse_framework_change(lines, present)
    held = present.held_back(lines)
    wanted = [line for line in lines if line not in held]
    for line in held:
        log.warning(
            "%s: %s is held back, as its files or its command are those of sm-runtime"
            " (see docs/migration.md)",
            line.place,
            line.text,
        )
    if not package and present.missing(wanted) is None:
        return Installed(
            summary=f"all that {name} asks for is installed already", environ=pip.place.exported
        )
    pip.check()
    started = time.monotonic()
    done: list[str] = []
    with pip.locked(), own_files_kept():
        # Another runtime on this host may have installed it in the meantime.
        present = requirements.InstalledDistributions(pip.place.folders)
        if present.missing(wanted) is not None:
            pip.install_file(file, wanted, present, as_it_is=not held)
            done.append(name)
        if package:
            pip.install_package(present)
            done.append("the package in the code folder")
    what = " and ".join(done) or f"all that {name} asks for"
    seconds = time.monotonic() - started
    return Installed(summary=f"{what} installed in {seconds:.1f} s", environ=pip.place.exported)


def _refuse_framework_change(lines: list[Line], present: InstalledDistributions) -> None:
    found = present.conflict(lines)
    if found is not None:
        line, name, version = found
        raise InstallError(
            f"{line.place}: {line.text} conflicts with the installed {name} {version};"
            " set SM_RUNTIME_ALLOW_FRAMEWORK_CHANGE=1 to let it be replaced"
        )


@contextlib.contextmanager
def own_files_kept() -> Iterator[None]:
    """Put back, at the end of the block, the files of this package that it altered or removed."""
    before = _contents()
    try:
        yield
    finally:
        _put_back(before)


def problems(path: str | None) -> list[str]:
    """Return a sentence for each command of this package that another one has taken or removed.

    ``path`` is that of the environment: what it finds as ``train`` is what platforms start.
    """
    import shutil

    again = f"install {OWN_NAME} again (see docs/migration.md)"
    found = []
    train = shutil.which("train", path=path)
    if train is not None and not _is_ours(train):
        owner = _owner(train)
        whose = f"is that of {owner}" if owner else f"is not that of {OWN_NAME}"
        first = "uninstall that" if owner else "remove it"
        found.append(f"the command train on PATH, {train}, {whose}: {first}, then {again}")
    for script in _scripts():
        if not os.path.exists(script):
            found.append(f"{script} is gone: {again}")
        elif script != train and not _is_ours(script):
            found.append(f"{script} is no longer that of {OWN_NAME}: {again}")
    return found


def _own() -> Any:
    """Return this package's distribution, or None where it is not installed as one."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return distribution(OWN_NAME)
    except PackageNotFoundError:
        return None


def _files() -> Iterator[tuple[str, Any]]:
    """Yield the path of each of this package's files, and the hash that pip has recorded."""
    own = _own()
    for file in (own.files or ()) if own is not None else ():
        if not file.name.endswith(".pyc"):
            yield os.path.normpath(str(own.locate_file(file))), file.hash


def _scripts() -> list[str]:
    paths = [path for path, _ in _files() if os.path.basename(path) in _COMMANDS]
    return [path for path in paths if os.path.basename(os.path.dirname(path)) == "bin"]


def _is_ours(path: str) -> bool:
    """Whether a command starts this package: pip's script for it, or a wrapper that names it."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return True  # nothing can be said against it
    return any(mark in head for mark in _MARKS)


def _contents() -> dict[str, tuple[bytes, int]]:
    """Return the content and the mode of this package's files that are as pip put them there."""
    found: dict[str, tuple[bytes, int]] = {}
    for path, recorded in _files():
        with contextlib.suppress(OSError), open(path, "rb") as file:
            content, mode = file.read(), os.fstat(file.fileno()).st_mode
            if recorded is None or _has_hash(content, recorded):
                found[path] = (content, mode)
    return found


def _has_hash(content: bytes, recorded: Any) -> bool:
    import base64
    import hashlib

    digest = hashlib.new(recorded.mode, content).digest()
    return bool(base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == recorded.value)


def _put_back(before: dict[str, tuple[bytes, int]]) -> None:
    replaced = [path for path, (content, _) in before.items() if _read(path) != content]
    if not replaced:
        return
    owners = sorted({owner for path in replaced if (owner := _owner(path))})
    try:
        for path in replaced:
            content, mode = before[path]
            _write(path, content, mode)
    except OSError as error:
        raise InstallError(
            f"a file of {OWN_NAME} was replaced, and cannot be put back: {error}"
        ) from error
    log.warning(
        "%s replaced files of %s, which were put back: %s (see docs/migration.md)",
        " and ".join(owners) or "the installation",
        OWN_NAME,
        some(replaced, _NAMED),
    )


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _write(path: str, content: bytes, mode: int) -> None:
    from sm_runtime.storage.writing import replaced

    os.makedirs(os.path.dirname(path), exist_ok=True)
    with replaced(path) as descriptor, open(descriptor, "wb", closefd=False) as file:
        file.write(content)
        os.fchmod(descriptor, mode & 0o7777)


def _owner(path: str) -> str | None:
    """Return the name and the version of another distribution whose files include ``path``."""
    import importlib
    from importlib.metadata import distributions

    importlib.invalidate_caches()
    for each in distributions():
        name = each.metadata["Name"] or ""
        record = each.read_text("RECORD") or ""
        inside = os.path.relpath(path, str(each.locate_file("")))
        if name.lower().replace("_", "-") != OWN_NAME and f"\n{inside}," in f"\n{record}":
            return f"{name} {each.version}"
    return None
