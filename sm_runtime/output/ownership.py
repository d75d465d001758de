"""Gives what a job leaves behind to the one who mounted the folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator

from sm_runtime.contract import config_files
from sm_runtime.job import location
from sm_runtime.job.model import Job

log = logging.getLogger(__name__)


def hand_over(job: Job) -> None:
    """Give all that the job left to ``options.chown``: folders and local artifacts."""
    owner = job.options.chown
    if owner is None:
        return
    checkpoints = job.checkpoints.local_path if job.checkpoints else job.paths.checkpoints
    tops = [job.paths.model, job.paths.output, checkpoints]
    if job.output and location.is_file(job.output.uri):
        from sm_runtime.storage.local import path_of

        destination = path_of(job.output.uri)
        # Below the base folder the destination is ours to give as well; elsewhere only the job's.
        ours = destination.startswith(f"{job.paths.base}/")
        tops.append(destination if ours else os.path.join(destination, job.name or ""))
    failed = ""
    for path in (*_below(tops), *config_files.left_in(job.paths.config)):
        try:
            os.chown(path, *owner, follow_symlinks=False)
        except OSError as error:
            failed = failed or f"{path}: {error.strerror}"
    if failed:
        log.warning("SM_RUNTIME_CHOWN: not everything could be given away: %s", failed)


def _below(tops: Iterable[str]) -> Iterator[str]:
    for top in tops:
        for folder, _, files in os.walk(top):
            yield folder
            yield from (os.path.join(folder, name) for name in files)
