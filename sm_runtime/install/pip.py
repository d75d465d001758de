"""Runs pip: where it may write, what it is told, which index it asks, what its failure means."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sm_runtime import programs
from sm_runtime.code import entry
from sm_runtime.code.fetch import Code, can_write
from sm_runtime.contract.environment import public
from sm_runtime.install.requirements import InstalledDistributions, Line, alias, write
from sm_runtime.job.errors import CodeError, InstallError
from sm_runtime.job.model import Job

log = logging.getLogger(__name__)

Run = Callable[[tuple[str, ...], Mapping[str, str], str], tuple[int, bytes]]
"""Runs argv with an environment in a folder; returns the shell status and the output's tail."""

_STOPPED = "nothing was installed: a stop was requested"
_LOOK_SECONDS = 0.25
"""How often a wait looks whether to stop."""
_TIMEOUT_SECONDS = "8"
_RETRIES = "1"
_OWN_PLACE = frozenset({"target", "prefix", "root", "user"})
_PATIENCE = frozenset({"timeout", "default-timeout"})
_INSTALLED = re.compile(r"(?m)^Successfully installed .+$")
_LOCK_SECONDS = 1800.0
_NOT_CODE = (".git", "__pycache__", "wheels", ".venv", "*.pyc")
_ARN = re.compile(
    r"arn:(?P<partition>[^:]+):codeartifact:(?P<region>[^:]+):(?P<account>[^:]+)"
    r":repository/(?P<domain>[^/]+)/(?P<repository>[^/]+)"
)
_LONGEST = 600
_ERROR = re.compile(r"^\s*(?:ERROR|error):\s*(\S.*)$", re.M)
_CAUSE = re.compile(r"The conflict is caused by:\n((?:[ \t]+\S.*\n?)+)")
_BROKEN = re.compile(r"after connection broken by '.*(\[Errno -?\d+\] [^'\")\]]+|timed out)")
_INDEXES = re.compile(r"Looking in indexes: (\S+?),?(?:\s|$)")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_NO_HELP = ("ResolutionImpossible", "No matching distribution found", "Ignored the following ")
"""What comes beside a line that says more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where pip installs to."""

    options: tuple[str, ...] = ()
    exported: Mapping[str, str] = field(default_factory=dict)
    """Variables by which pip and the script find it; empty for the interpreter's own place."""
    folders: tuple[str, ...] = ()
    """Folders with distributions that are not on our own ``sys.path``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """An index that asks for a token."""

    url: str
    """With the token: never for argv, a file or the log."""
    token: str


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
        self.environ = environ = public(environ)
        self._job = job
        self._folder = code.directory
        self._python = python
        self._run = run
        self.stopped = stopped
        self._told = settings(environ)
        self.place = _place(job, environ, self._told)
        wheels = os.path.join(code.directory, "wheels")
        self._wheels = wheels if _has_archives(wheels) else None
        self._is_alone = is_off((), self._told)
        """Whether no index is asked."""

    def check(self) -> None:
        """Raise InstallError where the interpreter has no pip."""
        from importlib.util import find_spec

        if not self._python or find_spec("pip") is None:
            raise InstallError(
                f"{self._job.options.requirements} has to be installed, and the Python of this"
                f" image ({self._python}) has no pip: add pip to the image, or the packages"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the host's lock: two installers in one site-packages ruin each other's work.

        Raises InstallError when another one holds it for half an hour, or ``stopped`` says so.
        """
        folder = self.environ.get("TMPDIR") or "/tmp"
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
                waiter = threading.Thread(
                    target=fcntl.flock, args=(lock, fcntl.LOCK_EX), daemon=True
                )
                waiter.start()
                deadline = time.monotonic() + _LOCK_SECONDS
                while waiter.is_alive():
                    waiter.join(_LOOK_SECONDS)
                    if self.stopped():
                        raise InstallError(_STOPPED) from None
                    if time.monotonic() > deadline:
                        raise InstallError(
                            f"another installation holds {path} for {_LOCK_SECONDS:.0f} s"
                        ) from None
            yield
        finally:
            os.close(lock)

    def install_file(
        self,
        file: str,
        lines: Sequence[Line],
        present: InstalledDistributions,
        *,
        as_it_is: bool = True,
    ) -> None:
        """Install a requirements file; ``lines`` are what it says, or what of it counts."""
        name = self._job.options.requirements
        self._is_alone = is_off([line.text for line in lines], self._told)
        if as_it_is:
            self._pip(("-r", file), name, present)
            return
        with self._scratch() as scratch:
            self._pip(write(lines, scratch), name, present)

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
            raise InstallError(explain(status, text, name))
        if found := _INSTALLED.findall(text):
            log.info("%s: %s", name, found[-1].strip())

    def _watched(self, action: Callable[[], object]) -> None:
        """Do what may take long in a thread of its own; raise InstallError when to stop."""
        errors: list[BaseException] = []

        def act() -> None:
            try:
                action()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=act, name="index", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_SECONDS)
            if self.stopped():
                raise InstallError(_STOPPED)
        if errors:
            raise errors[0]

    def _environment(self) -> tuple[dict[str, str], str]:
        """Return pip's environment, and the token that is in it, if one is."""
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
        found: list[Private] = []
        try:
            self._watched(lambda: found.append(code_artifact(arn, self.environ)))
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
        can_write(sysconfig.get_path(name)) for name in ("purelib", "platlib")
    ):
        return Place(folders=searched)
    # In /opt/ml rather than /tmp, which is often mounted noexec: no compiled module loads there.
    base = environ.get("PYTHONUSERBASE") or job.paths.under("packages")
    if not can_write(base):
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


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the user has told pip, by option (``index-url``): its files, then PIP_*."""
    import configparser

    found: dict[str, str] = {}
    for path in _files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip will say what is wrong with it
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            found[name[4:].lower().replace("_", "-")] = value
    return found


def _files(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the places of pip's configuration, those that count more later (pip's user guide)."""
    import sys

    own = environ.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return
    for folder in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":"):
        yield os.path.join(folder, "pip", "pip.conf")
    yield "/etc/pip.conf"
    home = environ.get("HOME")
    if home:
        yield os.path.join(home, ".pip", "pip.conf")
        config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
        yield os.path.join(config, "pip", "pip.conf")
    yield os.path.join(sys.prefix, "pip.conf")
    if own:
        yield own


def is_off(texts: Iterable[str], told: Mapping[str, str]) -> bool:
    """Whether the user, in the lines of a file or in pip's settings, wants no index to be asked."""
    asked_off = told.get("no-index", "").lower() in ("1", "true", "yes", "on", "t", "y")
    return asked_off or any(re.match(r"--no-index(\s|$)", text) for text in texts)


def code_artifact(arn: str, environ: Mapping[str, str]) -> Private:
    """Return the index of an AWS CodeArtifact repository, with a fresh token.

    Raises InstallError where the ARN is none, boto3 is not installed, or AWS refuses.
    """
    match = _ARN.fullmatch(arn)
    if match is None:
        raise InstallError(
            f"CA_REPOSITORY_ARN: {arn!r} is not"
            " arn:<partition>:codeartifact:<region>:<account>:repository/<domain>/<repository>"
        )
    from importlib import import_module

    try:
        boto3 = import_module("boto3")
    except ImportError as error:
        raise InstallError(
            "CA_REPOSITORY_ARN is set, and boto3, which fetches its token, is not installed"
        ) from error
    owner = {"domain": match["domain"], "domainOwner": match["account"]}
    try:
        client = boto3.client(
            "codeartifact",
            region_name=match["region"],
            endpoint_url=environ.get("AWS_ENDPOINT_URL_CODEARTIFACT"),
        )
        token = client.get_authorization_token(**owner)["authorizationToken"]
        endpoint = client.get_repository_endpoint(
            **owner, repository=match["repository"], format="pypi"
        )["repositoryEndpoint"]
    except Exception as error:  # botocore makes its classes at run time
        why = " ".join(str(error).split())
        raise InstallError(f"CA_REPOSITORY_ARN: no token for {arn}: {why}") from error
    scheme, _, rest = endpoint.partition("://")
    return Private(url=f"{scheme}://aws:{token}@{rest.rstrip('/')}/simple/", token=token)


def explain(status: int, output: str, name: str) -> str:
    """Return the sentence for a pip that ended with ``status`` and printed ``output``.

    ``name`` is what was installed.
    """
    output = _CREDENTIALS.sub("***@", output)
    errors = [match.strip() for match in _ERROR.findall(output)]
    if status > 128 and not errors:
        return f"{name}: pip was ended by signal {status - 128}"
    said = [text for text in errors if not text.startswith(_NO_HELP)] or errors
    why = "; ".join(dict.fromkeys(said[-3:])) or _last_line(output)
    hint = ""
    if broken := _BROKEN.search(output):
        index = _INDEXES.search(output)
        where = f" {index[1]}" if index else ""
        why = f"the package index{where} cannot be reached: {broken[1]}; {why}"
    elif cause := _CAUSE.search(output):
        why += " " + "; ".join(line.strip() for line in cause[1].splitlines())
        if "(constraint)" in why:
            hint = "; SM_RUNTIME_ALLOW_FRAMEWORK_CHANGE=1 lets an installed framework be replaced"
    text = f"{name}: pip ended with status {status}: {why}"
    return (text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...") + hint


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"
