"""Keeps folders of a running job in step with object storage: checkpoints, logs, ``model_dir``.

This file is on the path of every job; what does the work is imported for a job that wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sm_runtime.job.model import Job

if TYPE_CHECKING:
    from sm_runtime.sync.folders import Syncs


def open_syncs(job: Job, environ: Mapping[str, str]) -> Syncs | None:
    """Return what syncs the job's folders; None where nothing is synced.

    ``environ`` says how storage is reached, as for ``storage.open_store``; nothing is done yet, and
    no request sent. Raises ConfigError where a place can be seen to be unusable.
    """
    intermediate = job.reserved.get("sagemaker_s3_output")
    if not (job.checkpoints or job.tensorboard or job.model_dir or intermediate):
        return None
    from sm_runtime.sync.folders import Syncs

    return Syncs.of(job, environ)
