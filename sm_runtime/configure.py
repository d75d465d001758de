"""Reads the configuration and turns it into a job."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from sm_runtime import contract, documents, environ, redirect
from sm_runtime.errors import ConfigError
from sm_runtime.model import Job
from sm_runtime.paths import Paths
from sm_runtime.redact import Mask

log = logging.getLogger(__name__)


def paths_of(variables: Mapping[str, str]) -> Paths:
    """Return the folders of the job: below ``$SAGEMAKER_BASE_DIR``, else ``/opt/ml``."""
    base = variables.get("SAGEMAKER_BASE_DIR") or Paths().base
    return Paths(os.path.abspath(base))  # the script has another working folder than we


def configure(variables: Mapping[str, str], mask: Mask) -> Job:
    """Return the job, and have its secrets masked from here on.

    Raises ConfigError with every problem that there is.
    """
    paths = paths_of(variables)
    mask.learn(environ.secrets(None, variables))
    parsed = contract.parse(documents.read(paths, variables), variables, paths, os.uname().nodename)
    if parsed.job is None:
        raise ConfigError(parsed.problems)
    job = redirect.redirected(parsed.job)
    mask.learn(environ.secrets(job, variables))
    logging.getLogger("sm_runtime").setLevel(parsed.job.log_level)
    for note in parsed.notes:
        log.info("%s", note)
    for warning in parsed.warnings:
        log.warning("%s", warning)
    if told := redirect.note(job):
        log.info("%s", told)
    return job
