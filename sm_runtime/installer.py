"""Runs pip: where it may write, what it is told, and what its failure means."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from sm_runtime.environ import public
from sm_runtime.errors import InstallError
from sm_runtime.frozen import dataclass, field
from sm_runtime.model import Job

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from sm_runtime.requirements import Line, Present
    from sm_runtime.source import Code

log = logging.getLogger(__name__)

Run = Callable[[tuple[str, ...], Mapping[str, str], str], tuple[int, bytes]]
"""Runs argv with an environment in a folder; returns the shell status and the output's tail."""

TAIL_BYTES = 64 << 10
_TIMEOUT_SECONDS = "8"
_RETRIES = "1"
_OWN_PLACE = frozenset({"target", "prefix", "root", "user"})
_PATIENCE = frozenset({"timeout", "default-timeout"})
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
        self, job: Job, code: Code, environ: Mapping[str, str], python: str, run: Run
    ) -> None:
        from sm_runtime import index

        self.environ = environ = public(environ)
        self._job = job
        self._folder = code.directory
        self._python = python
        self._run = run
        self._told = index.settings(environ)
        self.place = _place(job, environ, self._told)
        wheels = os.path.join(code.directory, "wheels")
        self.wheels = wheels if _has_archives(wheels) else None

    def check(self) -> None:
        """Raise InstallError where the interpreter has no pip."""
        from importlib.util import find_spec

        if not self._python or find_spec("pip") is None:
            raise InstallError(
                f"{self._job.options.requirements} has to be installed, and the Python of this"
                f" image ({self._python}) has no pip: add pip to the image, or the packages"
            )

    def install_file(self, file: str, lines: Sequence[Line], present: Present) -> None:
        """Install a requirements file; ``lines`` are what it says."""
        name = self._job.options.requirements
        self._check_index(name, lines, present)
        self._pip(("-r", file), name, lines, present)

    def install_package(self, present: Present) -> None:
        """Install the code folder, built from a copy as builds write beside the sources."""
        import shutil

        with self._scratch() as scratch:
            copy = os.path.join(scratch, "package")
            try:
                shutil.copytree(
                    self._folder, copy, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_CODE)
                )
            except shutil.Error as error:
                raise InstallError(f"{self._folder} cannot be copied: {error.args[0][0][2]}") from (
                    error
                )
            for folder, _, _ in os.walk(copy):
                os.chmod(folder, os.stat(folder).st_mode | 0o700)
            # What the build needs is there: then nothing has to be downloaded for it.
            ready = any(present.has_all(needs) for needs in _build_needs(copy))
            options = ("--no-build-isolation",) if ready else ()
            self._pip((*options, copy), "the package in the code folder", (), present)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[str]:
        import tempfile

        with tempfile.TemporaryDirectory(
            prefix="sm-runtime-install-", dir=self.environ.get("TMPDIR")
        ) as folder:
            yield folder

    def _check_index(self, name: str, lines: Sequence[Line], present: Present) -> None:
        """Raise InstallError where the index is needed and nobody answers there."""
        from sm_runtime import index

        private = self.environ.get("CA_REPOSITORY_ARN")
        if self.wheels or private or _PATIENCE & set(self._told) or not present.needs_index(lines):
            return
        address = index.asked([line.text for line in lines], self._told)
        why = index.unreachable(address, self.environ) if address else None
        if why:
            raise InstallError(f"{name}: the package index {address} cannot be reached: {why}")

    def _pip(
        self, what: tuple[str, ...], name: str, lines: Sequence[Line], present: Present
    ) -> None:
        from sm_runtime.explanation import explain

        argv = [self._python, "-m", "pip", "install"]
        argv += ["--disable-pip-version-check", "--no-input", *self.place.options]
        if self.wheels:
            argv += ["--no-index", "--find-links", self.wheels]
        with self._scratch() as scratch:
            env, token = self._environment()
            if not self._job.options.allow_framework_change:
                argv += _keep_frameworks(present, scratch, env)
            status, tail = self._run((*argv, *what), env, self._folder)
        text = tail.decode("utf-8", "replace")
        text = text.replace(token, "***") if token else text
        log.debug("pip ended with status %s; its output:\n%s", status, text)
        if status:
            raise InstallError(explain(status, text, name, lines, offline=self.wheels is not None))

    def _environment(self) -> tuple[dict[str, str], str]:
        """Return pip's environment, and the token that is in it, if one is."""
        from sm_runtime import index

        # Unknown PIP_* variables are ignored by every pip, unknown options are errors.
        env = {"PIP_ROOT_USER_ACTION": "ignore", "PIP_BREAK_SYSTEM_PACKAGES": "1"}
        if not _PATIENCE & set(self._told):
            env["PIP_DEFAULT_TIMEOUT"] = _TIMEOUT_SECONDS
        if "retries" not in self._told:
            env["PIP_RETRIES"] = _RETRIES
        env |= self.environ
        env |= self.place.exported
        arn = self.environ.get("CA_REPOSITORY_ARN")
        if not arn or self.wheels:
            return env, ""
        private = index.code_artifact(arn, self.environ)
        return {**env, "PIP_INDEX_URL": private.url}, private.token


def run_captured(argv: tuple[str, ...], env: Mapping[str, str], cwd: str) -> tuple[int, bytes]:
    """Run a process to its end; return its shell status and the last 64 KiB of its output."""
    import subprocess

    tail = b""
    with subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            while data := os.read(process.stdout.fileno() if process.stdout else -1, 65536):
                tail = (tail + data)[-TAIL_BYTES:]
        except BaseException:
            process.kill()
            raise
    status = process.returncode
    return (128 - status if status < 0 else status), tail


def _keep_frameworks(present: Present, scratch: str, env: dict[str, str]) -> list[str]:
    """Return the options by which pip keeps the installed frameworks as they are."""
    from sm_runtime.requirements import alias

    frameworks = present.frameworks()
    if not frameworks:
        return []
    path = os.path.join(scratch, "installed-frameworks.txt")
    pins = dict(frameworks)
    same = alias(frameworks)
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
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{name}=={version}\n" for name, version in sorted(pins.items()))
    return ["-c", path]


def _place(job: Job, environ: Mapping[str, str], told: Mapping[str, str]) -> Place:
    """Return where pip can write: where Python has its packages, else a folder of our own."""
    import site
    import sysconfig

    if _OWN_PLACE & set(told) or all(
        _can_write(sysconfig.get_path(name)) for name in ("purelib", "platlib")
    ):
        return Place()
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
    scheme = "posix_user" if site.ENABLE_USER_SITE else sysconfig.get_preferred_scheme("prefix")
    options: tuple[str, ...] = ("--user",) if site.ENABLE_USER_SITE else ("--prefix", base)
    variables = {"userbase": base, "base": base, "platbase": base}
    folder, binaries = (sysconfig.get_path(n, scheme, variables) for n in ("purelib", "scripts"))
    exported = {"PATH": binaries + ":" + environ.get("PATH", os.defpath)}
    if site.ENABLE_USER_SITE:
        exported["PYTHONUSERBASE"] = base
    else:
        before = environ.get("PYTHONPATH")
        exported["PYTHONPATH"] = folder + (f":{before}" if before else "")
    return Place(options=options, exported=exported, folders=(folder,))


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
