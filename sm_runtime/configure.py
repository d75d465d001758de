"""Reads the configuration and turns it into a job.

A value by reference, ``{"$file": "/run/secrets/key"}``, stands for what the file holds: for what
must not be in a request, in a log or in an image's configuration. It is read here, masked
everywhere, and given to the script alone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping

from sm_runtime.code import fetch
from sm_runtime.contract import config_files, environment, load
from sm_runtime.contract.engines import whole_name
from sm_runtime.contract.environment import CLUSTER_SECRET
from sm_runtime.contract.load import Parsed
from sm_runtime.job.dataclass import dataclass, replace
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.model import Job, Paths
from sm_runtime.job.secrets import Mask

log = logging.getLogger(__name__)

HOSTS = "/etc/hosts"
WITHOUT_S3 = (2, 6)
"""The first version of TensorFlow whose wheels have no S3 file system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A job, and what is wrong with its configuration."""

    job: Job
    """The job as far as it can be read."""
    problems: tuple[str, ...] = ()
    unread: frozenset[str] = frozenset()
    """The documents of which nothing can be read, so wrong are they."""


def paths_of(variables: Mapping[str, str]) -> Paths:
    """Return the folders of the job: below ``$SAGEMAKER_BASE_DIR``, else ``/opt/ml``."""
    base = variables.get("SAGEMAKER_BASE_DIR") or Paths().base
    return Paths(os.path.abspath(base))  # the script has another working folder than we


def configure(variables: Mapping[str, str], mask: Mask) -> Job:
    """Return the job, and have its secrets masked from here on.

    Raises ConfigError with every problem that there is.
    """
    found = examine(variables, mask)
    if found.problems:
        raise ConfigError(found.problems)
    return found.job


def examine(variables: Mapping[str, str], mask: Mask) -> Examined:
    """Return the job as far as it can be read, and have its secrets masked from here on."""
    paths = paths_of(variables)
    mask.learn(environment.secrets(None, variables))
    found, unreadable = config_files.collect(paths, variables)
    hostname = os.uname().nodename
    parsed = load.parse(found, variables, paths, hostname, _whole_name(hostname))
    draft, missing = _resolved(parsed.draft, variables)
    job = fetch.as_files(load.redirected(draft, tensorflow_lacks_s3))
    mask.learn(environment.secrets(job, variables))
    logging.getLogger("sm_runtime").setLevel(job.log_level)
    if not (unreadable or parsed.problems or missing):
        _tell(job, parsed)
    return Examined(
        job=job,
        problems=(*unreadable.values(), *parsed.problems, *missing),
        unread=parsed.unread,
    )


def _whole_name(hostname: str) -> str:
    """Return the name of this machine with its domain, without asking a name server."""
    try:
        with open(HOSTS, encoding="utf-8", errors="replace") as file:
            return whole_name(file.read(), hostname)
    except OSError:
        return hostname


def tensorflow_lacks_s3() -> bool:
    """Return whether TensorFlow is installed here without what opens ``s3://``, and we can sync.

    Nothing is imported: TensorFlow's version is that of its metadata.
    """
    from importlib import metadata
    from importlib.util import find_spec

    if find_spec("tensorflow") is None or find_spec("tensorflow_io") is not None:
        return False
    if not (find_spec("boto3") and find_spec("obstore")):
        return False
    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "intel-tensorflow"):
        try:
            major, minor = metadata.version(name).split(".")[:2]
            return (int(major), int(minor)) >= WITHOUT_S3
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return True


def _tell(job: Job, parsed: Parsed) -> None:
    for note in parsed.notes:
        log.info("%s", note)
    for warning in parsed.warnings:
        log.warning("%s", warning)
    if told := load.redirection(job):
        log.info("%s", told)


def _resolved(job: Job, environ: Mapping[str, str]) -> tuple[Job, tuple[str, ...]]:
    """Return ``job`` with the values in the place of references, and what is wrong with these.

    Variables that the script would inherit from ``environ`` become variables of the job.
    """
    problems: list[str] = []
    variables: dict[str, str] = {}
    for name, text in {**environ, **job.environment}.items():
        if name not in CLUSTER_SECRET and (path := config_files.reference(text)) is not None:
            variables[name] = _read(path, f"environment: {name}", problems)
    hyperparameters = {
        key: _read(path, f"hyperparameters: {key}", problems)
        for key, value in job.hyperparameters.items()
        if (path := config_files.reference(value)) is not None
    }
    if not (variables or hyperparameters):
        return job, ()
    secrets = {text for text in (*variables.values(), *hyperparameters.values()) if text}
    return replace(
        job,
        environment={**job.environment, **variables},
        hyperparameters={**job.hyperparameters, **hyperparameters},
        texts={**job.texts, **{key: json.dumps(text) for key, text in hyperparameters.items()}},
        referenced=tuple(sorted(secrets)),
    ), tuple(problems)


def _read(path: str, where: str, problems: list[str]) -> str:
    """Return the text of a file, without the line feed at its end."""
    problem, data = "does not exist", None
    try:
        data = config_files.read_regular(path)
    except ConfigError as error:
        problems.append(f"{where}: {config_files.REFERENCE}: {error}")
        return ""
    if data is not None and b"\0" in data:
        problem, data = "holds a NUL byte, which no program can be given", None
    if data is None:
        problems.append(f"{where}: {config_files.REFERENCE}: {path}: {problem}")
        return ""
    text = data.decode("utf-8", "surrogateescape")
    return text.removesuffix("\n").removesuffix("\r")
