"""What the Open MPI of this machine is configured with: the parameter files that it reads.

Where they are depends on how it was built, on variables (``OPAL_PREFIX``, ``OMPI_MCA_...``) and on
options. ``ompi_info``, which comes with it, tells; without its plug-ins it takes 10 ms.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping

from sm_runtime.launch.open_mpi import PREFIX, file_variables

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
