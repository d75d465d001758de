"""Gives what a job leaves behind to the one who mounted the folders."""

from __future__ import annotations

import logging
import os

from sm_runtime.model import Job

log = logging.getLogger(__name__)


def hand_over(job: Job) -> None:
    """Give the model, the output and the checkpoints to ``options.chown``; never raises OSError."""
    owner = job.options.chown
    if owner is None:
        return
    checkpoints = job.checkpoints.local_path if job.checkpoints else job.paths.checkpoints
    failed = ""
    for top in (job.paths.model, job.paths.output, checkpoints):
        for folder, _, files in os.walk(top):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                try:
                    os.chown(path, *owner, follow_symlinks=False)
                except OSError as error:
                    failed = failed or f"{path}: {error.strerror}"
    if failed:
        log.warning("SM_RUNTIME_CHOWN: not everything could be given away: %s", failed)
