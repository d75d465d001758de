"""Reads the files that describe a job, as bytes: what they say is ``contract.parse``'s business."""

from __future__ import annotations

from collections.abc import Mapping

from sm_runtime.contract import config_files, regular
from sm_runtime.contract.reader import Document
from sm_runtime.job import location
from sm_runtime.job.errors import ConfigError, DataError
from sm_runtime.job.model import Paths

_FILES = {
    "hyperparameters": "hyperparameters.json",
    "inputdataconfig": "inputdataconfig.json",
    "resourceconfig": "resourceconfig.json",
    "job": "job.json",
    "checkpointconfig": "checkpointconfig.json",
}
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION", "SAGEMAKER_REGION")
VARIABLE = "SM_RUNTIME_JOB"
"""Names the request, or holds it, instead of ``input/config/job.json``."""
INSIDE = "SM_RUNTIME_INSIDE"
"""Names the base folder whose job runs an entry point: for a runtime that this one starts."""


def read(paths: Paths, environ: Mapping[str, str]) -> dict[str, Document]:
    """Return the documents that exist, by ``hyperparameters``, ``inputdataconfig``,
    ``resourceconfig``, ``job`` and ``checkpointconfig``.

    Raises ConfigError, naming every file that exists and cannot be read.
    """
    found, problems = collect(paths, environ)
    if problems:
        raise ConfigError(problems.values())
    return found


def collect(paths: Paths, environ: Mapping[str, str]) -> tuple[dict[str, Document], dict[str, str]]:
    """Return the documents that exist, and a sentence for each one that cannot be read.

    What an earlier job has written is as it was before that: see ``configfiles``.
    """
    found: dict[str, Document] = {}
    problems: dict[str, str] = {}
    inside = is_inside(paths, environ)
    for key, name in _FILES.items():
        path = f"{paths.config}/{name}"
        try:
            if key == "job" and inside:
                continue
            if key == "job" and environ.get(VARIABLE, "").strip():
                found[key] = _named(environ[VARIABLE].strip(), environ)
                continue
            if key == "checkpointconfig" and "job" not in found:
                continue  # a platform's, of which only the script makes something
            data = regular.read(path)
            if data is not None:
                found[key] = Document(path, data)
        except ConfigError as error:
            found[key] = Document(path, None)
            problems[key] = str(error)
    record = config_files.Record() if inside else config_files.read_record(paths.config)
    for key in record.files.keys() & found.keys() - problems.keys():
        data = record.original(key, found[key].data)
        if data is None:
            del found[key]
        else:
            found[key] = Document(found[key].path, data)
    return found, problems


def is_inside(paths: Paths, environ: Mapping[str, str]) -> bool:
    """Return whether a runtime has started this one as the entry point of its request.

    To it that one is the platform: the files are there, the data is placed, and what is left will
    be saved. With the request it would start itself again, without an end.
    """
    return environ.get(INSIDE) == paths.base


def request_file(paths: Paths, environ: Mapping[str, str]) -> str | None:
    """Return the file in the folder of the configuration that holds the request, if one does."""
    return None if environ.get(VARIABLE, "").strip() else f"{paths.config}/job.json"


def _named(value: str, environ: Mapping[str, str]) -> Document:
    """Return the request that ``SM_RUNTIME_JOB`` names or holds."""
    if value.startswith("{"):
        return Document(VARIABLE, value.encode("utf-8", "surrogateescape"))
    if "{" in value:  # not shown: what is meant for JSON may hold secrets
        raise ConfigError(f"environment: {VARIABLE}: is neither a path, a URI nor a JSON object")
    if location.scheme(value) and not location.is_file(value):
        return Document(value, _fetch(value, environ))
    try:
        path = location.parse(value).path if location.is_file(value) else value
    except ValueError as error:
        raise ConfigError(f"environment: {VARIABLE}: {error}") from None
    data = regular.read(path)
    if data is None:
        raise ConfigError(f"environment: {VARIABLE}: the file {path!r} does not exist")
    return Document(path, data)


def _fetch(uri: str, environ: Mapping[str, str]) -> bytes:
    """Return the request from object storage, with the credentials that ``environ`` leads to."""
    if not location.is_s3(uri):
        raise ConfigError(
            f"environment: {VARIABLE}: {uri!r} must be a path, a file:// or s3:// URI, or a JSON"
            " object"
        )
    from sm_runtime.storage import s3

    region = next((environ[name] for name in _REGIONS if environ.get(name)), "")
    try:
        return s3.read(uri, environ, region, regular.MAX_BYTES)
    except DataError as error:
        raise ConfigError(f"environment: {VARIABLE}: {error}") from error
