"""Runs pip: where it may write, what it is told, and what its failure means."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sm_runtime import programs
from sm_runtime.code import entry
from sm_runtime.contract.environment import public
from sm_runtime.job.errors import CodeError, InstallError
from sm_runtime.job.model import Job

if TYPE_CHECKING:
    from sm_runtime.code.fetch import Code
    from sm_runtime.install.requirements import InstalledDistributions, Line

log = logging.getLogger(__name__)

Run = Callable[[tuple[str, ...], Mapping[str, str], str], tuple[int, bytes]]
"""Runs argv with an environment in a folder; returns the shell status and the output's tail."""

STOPPED = "nothing was installed: a stop was requested"
LOOK_SECONDS = 0.25
"""How often a wait looks whether to stop."""
_TIMEOUT_SECONDS = "8"
_RETRIES = "1"
_OWN_PLACE = frozenset({"target", "prefix", "root", "user"})
_PATIENCE = frozenset({"timeout", "default-timeout"})
_INSTALLED = re.compile(r"(?m)^Successfully installed .+$")
_NOT_CODE = (".git", "__pycache__", "wheels", ".venv", "*.pyc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where pip installs to."""

    options: tuple[str, ...] = ()
    exported: Mapping[str, str] = field(default_factory=dict)
    """Variables by which pip and the script find it; empty for the interpreter's own place."""
    folders: tuple[str, ...] = ()
    """Folders with distributions that are not on our own ``sys.path``."""


class Pip:
    """pip of one interpreter, for the code of one job."""

    def __init__(
        self,
        job: Job,
        code: Code,
        environ: Mapping[str, str],
        python: str,
        run: Run,
        stopped: Callable[[], bool],
    ) -> None:
        from sm_runtime.install import index

        self.environ = environ = public(environ)
        self._job = job
        self._folder = code.directory
        self._python = python
        self._run = run
        self.stopped = stopped
        self._told = index.settings(environ)
        self.place = _place(job, environ, self._told)
        wheels = os.path.join(code.directory, "wheels")
        self._wheels = wheels if _has_archives(wheels) else None
        self._is_alone = index.is_off((), self._told)
        """Whether no index is asked."""

    def check(self) -> None:
        """Raise InstallError where the interpreter has no pip."""
        from importlib.util import find_spec

        if not self._python or find_spec("pip") is None:
            raise InstallError(
                f"{self._job.options.requirements} has to be installed, and the Python of this"
                f" image ({self._python}) has no pip: add pip to the image, or the packages"
            )

    def install_file(
        self,
        file: str,
        lines: Sequence[Line],
        present: InstalledDistributions,
        *,
        as_it_is: bool = True,
    ) -> None:
        """Install a requirements file; ``lines`` are what it says, or what of it counts."""
        from sm_runtime.install import index, requirements

        name = self._job.options.requirements
        self._is_alone = index.is_off([line.text for line in lines], self._told)
        if as_it_is:
            self._pip(("-r", file), name, present)
            return
        with self._scratch() as scratch:
            self._pip(requirements.write(lines, scratch), name, present)

    def install_package(self, present: InstalledDistributions) -> None:
        """Install the code folder, built from a copy as builds write beside the sources."""
        from sm_runtime.code.placing import copy_folder

        name = "the package in the code folder"
        with self._scratch() as scratch:
            copy = os.path.join(scratch, "package")
            try:
                copy_folder(self._folder, copy, self.stopped, _NOT_CODE)
            except CodeError as error:
                raise InstallError(str(error)) from error
            # What the build needs is there: then nothing has to be downloaded for it.
            ready = any(present.has_all(needs) for needs in _build_needs(copy))
            options = ("--no-build-isolation",) if ready else ()
            self._pip((*options, copy), name, present)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[str]:
        import tempfile

        with tempfile.TemporaryDirectory(
            prefix="sm-runtime-install-", dir=self.environ.get("TMPDIR")
        ) as folder:
            yield folder

    def _pip(self, what: tuple[str, ...], name: str, present: InstalledDistributions) -> None:
        env, token = self._environment()
        argv = [*programs.start(self._python, "pip"), "install"]
        argv += ["--disable-pip-version-check", "--no-input", *self.place.options]
        if self._wheels:
            argv += ["--find-links", self._wheels]
        if self._is_alone:
            argv += ["--no-index"]
        with self._scratch() as scratch:
            pins = present.own()
            if not self._job.options.allow_framework_change:
                pins |= _frameworks(present, scratch, env)
            argv += _constraints(pins, scratch)
            status, tail = self._run((*argv, *what), env, self._folder)
        text = tail.decode("utf-8", "replace")
        text = text.replace(token, "***") if token else text
        log.debug("pip ended with status %s; its output:\n%s", status, text)
        if status:
            from sm_runtime.install.explanation import explain

            raise InstallError(explain(status, text, name))
        if found := _INSTALLED.findall(text):
            log.info("%s: %s", name, found[-1].strip())

    def _watched(self, action: Callable[[], object]) -> None:
        """Do what may take long in a thread of its own; raise InstallError when to stop."""
        import threading

        errors: list[BaseException] = []

        def act() -> None:
            try:
                action()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=act, name="index", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            if self.stopped():
                raise InstallError(STOPPED)
        if errors:
            raise errors[0]

    def _environment(self) -> tuple[dict[str, str], str]:
        """Return pip's environment, and the token that is in it, if one is."""
        from sm_runtime.install import index

        # Unknown PIP_* variables are ignored by every pip, unknown options are errors.
        env = {"PIP_ROOT_USER_ACTION": "ignore", "PIP_BREAK_SYSTEM_PACKAGES": "1"}
        if not _PATIENCE & set(self._told):
            env["PIP_DEFAULT_TIMEOUT"] = _TIMEOUT_SECONDS
        if "retries" not in self._told:
            env["PIP_RETRIES"] = _RETRIES
        env |= self.environ
        env |= self.place.exported
        arn = self.environ.get("CA_REPOSITORY_ARN")
        if not arn or self._is_alone:
            return env, ""
        found: list[index.Private] = []
        try:
            self._watched(lambda: found.append(index.code_artifact(arn, self.environ)))
        except InstallError as error:
            if not self._wheels or self.stopped():
                raise
            self._is_alone = True
            log.warning("%s; packages come from wheels/ alone", error)
            return env, ""
        return {**env, "PIP_INDEX_URL": found[0].url}, found[0].token


def _frameworks(
    present: InstalledDistributions, scratch: str, env: dict[str, str]
) -> dict[str, str]:
    """Return the versions at which pip keeps the installed frameworks as they are."""
    from sm_runtime.install.requirements import alias

    pins = present.frameworks()
    same = alias(pins)
    if same is not None:
        name, version = same
        pins[name] = version
        # pip takes it for installed, as what it describes is: under another name.
        info = os.path.join(scratch, "alias", f"{name}-{version}.dist-info")
        os.makedirs(info)
        with open(os.path.join(info, "METADATA"), "w", encoding="utf-8") as file:
            file.write(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        with open(os.path.join(info, "INSTALLER"), "w", encoding="utf-8") as file:
            file.write("sm-runtime\n")
        before = env.get("PYTHONPATH")
        env["PYTHONPATH"] = os.path.dirname(info) + (f":{before}" if before else "")
    return pins


def _constraints(pins: Mapping[str, str], scratch: str) -> list[str]:
    """Return the options by which pip leaves what is installed at these versions."""
    if not pins:
        return []
    path = os.path.join(scratch, "installed.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{name}=={version}\n" for name, version in sorted(pins.items()))
    return ["-c", path]


def _place(job: Job, environ: Mapping[str, str], told: Mapping[str, str]) -> Place:
    """Return where pip can write: where Python has its packages, else a folder of our own."""
    import sysconfig

    searched = entry.added_folders(environ)
    if _OWN_PLACE & set(told) or all(
        _can_write(sysconfig.get_path(name)) for name in ("purelib", "platlib")
    ):
        return Place(folders=searched)
    # In /opt/ml rather than /tmp, which is often mounted noexec: no compiled module loads there.
    base = environ.get("PYTHONUSERBASE") or job.paths.under("packages")
    if not _can_write(base):
        import tempfile

        uid = os.getuid()
        base = os.path.join(environ.get("TMPDIR") or "/tmp", f"sm-runtime-packages-{uid}")
        with contextlib.suppress(FileExistsError):
            os.mkdir(base, 0o700)
        if os.path.islink(base) or os.stat(base).st_uid != uid:
            base = tempfile.mkdtemp(prefix="sm-runtime-packages-")
    # A virtual environment may have no user site.
    is_user = entry.user_packages(environ) is not None
    scheme = "posix_user" if is_user else sysconfig.get_preferred_scheme("prefix")
    options: tuple[str, ...] = ("--user",) if is_user else ("--prefix", base)
    variables = {"userbase": base, "base": base, "platbase": base}
    folder, binaries = (sysconfig.get_path(n, scheme, variables) for n in ("purelib", "scripts"))
    exported = {"PATH": binaries + ":" + environ.get("PATH", os.defpath)}
    if is_user:
        exported["PYTHONUSERBASE"] = base
    else:
        before = environ.get("PYTHONPATH")
        exported["PYTHONPATH"] = folder + (f":{before}" if before else "")
    return Place(options=options, exported=exported, folders=(folder, *searched))


def _can_write(folder: str) -> bool:
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return os.access(folder, os.W_OK | os.X_OK)


def _has_archives(folder: str) -> bool:
    try:
        return any(name.endswith((".whl", ".tar.gz", ".zip")) for name in os.listdir(folder))
    except OSError:
        return False


def _build_needs(folder: str) -> list[list[str]]:
    """Return the requirements of a package's build (PEP 518): one of these lists is enough."""
    from importlib import import_module

    # From 70.1 on setuptools makes wheels without the package wheel.
    usual = [["setuptools>=70.1"], ["setuptools>=40.8", "wheel"]]
    path = os.path.join(folder, "pyproject.toml")
    if not os.path.isfile(path):
        return usual
    for name in ("tomllib", "pip._vendor.tomli"):
        try:
            with open(path, "rb") as file:
                system = import_module(name).load(file).get("build-system", {})
        except ImportError:
            continue
        except ValueError:
            return usual  # pip will say what is wrong with it
        return [[str(need) for need in system["requires"]]] if "requires" in system else usual
    return usual
