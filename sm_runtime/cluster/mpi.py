"""Open MPI as a launcher of ranks: how its daemons are started, and what it says of its end.

Also what it is configured with here: where its parameter files are depends on how it was built, on
variables (``OPAL_PREFIX``, ``OMPI_MCA_...``) and on options. ``ompi_info``, which comes with it,
tells; without its plug-ins it takes 10 ms.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sm_runtime.cluster.ranks import Launcher
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Command, Ended
from sm_runtime.launch.open_mpi import PREFIX, file_variables, restored_names, unmanaged

if TYPE_CHECKING:
    from sm_runtime.launch.open_mpi import HostParameters

log = logging.getLogger(__name__)

ASK_SECONDS = 10.0
FILE_BYTES = 2**20
"""What is read of a file: the one that comes with Open MPI has 3 KiB."""

_QUESTION = ("--parsable", "--level", "9", "--param", "mca", "base")
_NO_PLUGINS = f"{PREFIX}mca_base_component_disable_dlopen"
_FILES = (
    "mca_base_override_param_file", "mca_base_envar_file_prefix", "mca_base_param_files",
)  # fmt: skip
"""The parameters that name files, the ones that count most first."""
_ANSWER = re.compile(r'^mca:mca:base:param:(\w+):value:"?(.*?)"?$', re.MULTILINE)
_NAME = "openmpi-mca-params.conf"
_ABORTED = re.compile(rb"MPI_ABORT was invoked on rank (\d+) .*?errorcode (-?\d+)", re.DOTALL)
_IMPROPER = re.compile(rb"process rank (\d+) with PID \d+ on\s+node \S+ exiting improperly")
_PARAGRAPH = re.compile(rb"^-{20,}\n(.+?)(?:\n\s*\n|\n-{20,}$)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenMpiSettings:
    """What a host knows of its Open MPI before the launch."""

    files: Mapping[str, str]
    """The variables that say the same as its parameter files."""
    names: Mapping[str, str]
    """What Open MPI calls each host."""
    host: HostParameters
    """What is decided for the processes of this host."""

    @property
    def other_names(self) -> str:
        """The hosts that are called otherwise than they are, and how."""
        pairs = self.names.items()
        return ", ".join(f"{name} for {host}" for host, name in pairs if name != host)


class OpenMpi(Launcher):
    """Open MPI: ``mpirun`` on the leader, and a daemon on each other host.

    ``rank_variables`` are what a rank needs of this host, where Open MPI brings the leader's, and
    ``variables`` what Open MPI's processes need in their environment.
    """

    rank_variable = "OMPI_COMM_WORLD_RANK"
    daemon = "orted"

    def __init__(
        self,
        settings: OpenMpiSettings,
        *,
        host: str,
        hosts: tuple[str, ...],
        expected: int,
        rank_variables: Mapping[str, str],
        variables: Mapping[str, str],
    ) -> None:
        self.expected = expected
        self._settings, self._host, self._hosts = settings, host, hosts
        self._rank_variables, self._variables = rank_variables, variables

    def environment(self, found: dict[str, str]) -> dict[str, str]:
        """Return a rank's environment: this host's own where Open MPI brings the leader's."""
        return {**self._settings.host.applied(found), **self._rank_variables}

    def prefix(self, rank: int, stream: str) -> bytes:
        """Return what a rank's lines begin with, as Open MPI and SageMaker's toolkit write it."""
        return f"[1,mpirank:{rank},{self._host}]<{stream}>:".encode()

    def daemon_command(self, words: Sequence[str], script: Command) -> Command:
        """Return how ``orted`` is started; the words are meant for a shell, and get none."""
        argv = self._settings.host.without(tuple(shlex.split(" ".join(words))))
        own = unmanaged(script.env)
        env = {**own, **self._variables, **self._settings.host.variables}
        return Command(argv=argv, cwd=script.cwd, env=env, name="orted")

    def host_of(self, name: str) -> str:
        """Return the host that Open MPI calls so."""
        return next((h for h, called in self._settings.names.items() if called == name), name)

    def missing(self, hosts: Sequence[str], asked: Sequence[str]) -> str:
        """Return, in words, what is waited for while no rank has begun."""
        return f"Open MPI's daemons on {', '.join(asked)}" if asked else "mpirun"

    def explain_success(self, ended: Ended) -> Failure | None:
        """Return what mpirun has done to ranks: MPI_Abort with an error code of 0 ends it well."""
        said = _ABORTED.search(ended.tail)
        return self._abort(said) if said else None

    def explain_failure(self, found: Failure, ended: Ended) -> Failure:
        """Return why Open MPI has ended: it says so itself, in a paragraph of its own."""
        if aborted := self.explain_success(ended):
            return aborted
        if improper := _IMPROPER.search(ended.tail):
            rank = int(improper[1])
            message = "ended without MPI_Finalize, though the others are not done"
            return replace(found, message=message, rank=rank, host=self._host_of_rank(rank))
        if said := _PARAGRAPH.search(ended.tail):
            text = " ".join(said[1].decode("utf-8", "replace").split())
            return replace(found, message=f"mpirun: {restored_names(text, self._settings.names)}")
        return found

    def _abort(self, said: re.Match[bytes]) -> Failure:
        rank, code = int(said[1]), int(said[2])
        return Failure(
            name="MPIAbort",
            message=f"called MPI_Abort with error code {code}",
            phase="train",
            status=code & 0xFF or 1,
            rank=rank,
            host=self._host_of_rank(rank),
        )

    def _host_of_rank(self, rank: int) -> str:
        """Return the host of a rank: ranks fill the hosts one by one, unless options say else."""
        return self._hosts[min(rank // max(1, self.expected or 1), len(self._hosts) - 1)]


def file_parameters(environ: Mapping[str, str], folder: str) -> dict[str, str]:
    """Return the variables that say the same as the parameter files that ``mpirun`` would read.

    ``environ`` and ``folder``, its working folder, are those of ``mpirun``. Nothing where there is
    no Open MPI; what cannot be read is left out, as Open MPI does it.
    """
    mpirun = shutil.which("mpirun", path=environ.get("PATH"))
    if mpirun is None:
        return {}
    found: dict[str, str] = {}
    for path in _paths(mpirun, environ, folder):
        try:
            with open(os.path.join(folder, path), encoding="utf-8", errors="replace") as file:
                found = file_variables(file.read(FILE_BYTES)) | found
        except OSError:
            continue
    return found


def _paths(mpirun: str, environ: Mapping[str, str], folder: str) -> Iterator[str]:
    """Yield the parameter files, those that count most first."""
    said = _asked(mpirun, environ, folder)
    if not said:
        yield from _usual(mpirun, environ)
    for parameter in _FILES:
        yield from re.split("[,:]", said.get(parameter, ""))


def _asked(mpirun: str, environ: Mapping[str, str], folder: str) -> dict[str, str]:
    """Return what the ``ompi_info`` beside ``mpirun`` says of MCA's own parameters."""
    program = os.path.join(os.path.dirname(mpirun), "ompi_info")
    if not os.access(program, os.X_OK):
        return {}
    try:
        done = subprocess.run(
            (program, *_QUESTION),
            env={**environ, _NO_PLUGINS: "1"},
            cwd=folder if os.path.isdir(folder) else "/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=ASK_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s does not tell where Open MPI's parameter files are: %s", program, error)
        return {}
    return dict(_ANSWER.findall(done.stdout.decode("utf-8", "replace")))


def _usual(mpirun: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the files of an Open MPI that cannot be asked."""
    yield os.path.join(environ.get("HOME", "/"), ".openmpi", "mca-params.conf")
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(mpirun)))
    yield os.path.join(prefix, "etc", _NAME)
    if prefix == "/usr":
        yield f"/etc/openmpi/{_NAME}"
