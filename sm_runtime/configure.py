"""Reads the configuration and turns it into a job."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from sm_runtime.code import fetch
from sm_runtime.contract import config_files, environment, load, references
from sm_runtime.contract.engines import whole_name
from sm_runtime.contract.load import Parsed
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
    draft, missing = references.resolved(parsed.draft, variables)
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
