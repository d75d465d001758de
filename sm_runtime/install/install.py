"""Installs what the user's code asks for, once per host, and only what is not there already."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sm_runtime.code.entry import has_project
from sm_runtime.code.fetch import Code, channel_at
from sm_runtime.install.pip import LOOK_SECONDS, STOPPED, Pip, Run
from sm_runtime.job.errors import InstallError
from sm_runtime.job.model import Job, Options

if TYPE_CHECKING:
    from sm_runtime.install.requirements import InstalledDistributions, Line

log = logging.getLogger(__name__)

_LOCK_SECONDS = 1800.0
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
) -> Installed:
    """Install the requirements file and the package at the root of the code folder.

    One rule for every kind of program. Raises InstallError in one sentence, also when ``stopped``
    says so; pip is not started where everything is installed.
    """
    name = job.options.requirements
    file = os.path.join(code.directory, name)
    package = _is_package(job, code)
    if not os.path.isfile(file):
        if job.options.install and name != Options().requirements:
            raise InstallError(f"SM_RUNTIME_REQUIREMENTS: {name} is not in {code.directory}")
        file = ""
    if not file and not package:
        return Installed(summary=f"no {name} in {code.directory}")
    if not job.options.install:
        what = name if file else "the package in the code folder"
        return Installed(summary=f"{what} is not installed (SM_RUNTIME_INSTALL is off)")
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
    from sm_runtime.install import index, requirements

    file = os.path.join(code.directory, job.options.requirements)
    texts = [file, *index.settings(environ).values()]
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
    from sm_runtime.install.own_files import kept

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
    with _lock(pip.environ, pip.stopped), kept():
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
def _lock(environ: Mapping[str, str], stopped: Callable[[], bool]) -> Iterator[None]:
    """Hold the host's lock: two installers in one site-packages ruin each other's work.

    Raises InstallError when another one holds it for half an hour, or ``stopped`` says so.
    """
    import fcntl
    import threading

    folder = environ.get("TMPDIR") or "/tmp"
    path = os.path.join(folder, f"sm-runtime-install-{os.getuid()}.lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        lock = os.open(path, flags, 0o600)
    except OSError as error:
        log.warning("installing without a lock: %s", error)
        yield
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another installation on this host")
            waiter = threading.Thread(target=fcntl.flock, args=(lock, fcntl.LOCK_EX), daemon=True)
            waiter.start()
            deadline = time.monotonic() + _LOCK_SECONDS
            while waiter.is_alive():
                waiter.join(LOOK_SECONDS)
                if stopped():
                    raise InstallError(STOPPED) from None
                if time.monotonic() > deadline:
                    raise InstallError(
                        f"another installation holds {path} for {_LOCK_SECONDS:.0f} s"
                    ) from None
        yield
    finally:
        os.close(lock)
