"""Says which folders of a job are synced, with which place, and how."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sm_runtime.job import location
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.model import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A local folder that is kept in step with a place."""

    what: str
    path: str
    uri: str
    parts: tuple[str, ...] = ()
    """The place is so much deeper than ``uri``."""
    setting: str
    """The key of the request, or the hyperparameter, that wants it."""
    restores: bool = False
    """Whether what is in the place is fetched before the script starts."""
    deletes: bool = False
    """Whether a file that is deleted here is deleted there."""
    grows: bool = False
    """Whether files are sent while they are still written to: logs that only grow."""
    required: bool = False
    """Whether the job fails when not everything gets there."""
    uploads: bool = True
    """Whether this host sends anything."""

    @property
    def place(self) -> str:
        """The URI of the place, which ends in a slash."""
        from urllib.parse import quote

        parts = self.parts if location.is_s3(self.uri) else map(quote, self.parts)
        return "/".join((self.uri.rstrip("/"), *parts, ""))

    @property
    def prefix(self) -> str | None:
        """What the keys of the place begin with, where it is one of an object store."""
        return location.parse(self.place).path if location.is_s3(self.place) else None


def folders(job: Job) -> tuple[Folder, ...]:
    """Return the folders of ``job`` that are synced.

    Raises ConfigError where a setting wants a place of an unknown kind.
    """
    found = []
    if job.checkpoints:
        found.append(
            Folder(
                what="checkpoints",
                path=os.path.normpath(job.checkpoints.local_path),
                uri=job.checkpoints.uri,
                setting="CheckpointConfig.S3Uri",
                restores=True,
                deletes=True,
                required=True,
            )
        )
    if job.model_dir:
        found.append(
            Folder(
                what="model_dir",
                path=job.model_dir.local_path,
                uri=job.model_dir.uri,
                setting="hyperparameters: model_dir",
                restores=True,
                deletes=True,
                required=True,
                # All hosts are given the same one: others' files would take the place of these.
                uploads=job.cluster.is_first,
            )
        )
    if job.tensorboard:
        found.append(
            Folder(
                what="TensorBoard logs",
                path=os.path.normpath(job.tensorboard.local_path),
                uri=job.tensorboard.uri,
                # where the SageMaker SDK looks for them (latest_job_tensorboard_artifacts_path)
                parts=(*([job.name] if job.name else []), "tensorboard-output"),
                setting="TensorBoardOutputConfig.S3OutputPath",
                grows=True,
            )
        )
    return (*found, *_intermediate(job))


def _intermediate(job: Job) -> tuple[Folder, ...]:
    """Return the folder of intermediate output, if it is ours to sync.

    Where the folder is there already, the platform syncs it (SageMaker training toolkit).
    """
    uri = job.reserved.get("sagemaker_s3_output")
    if not uri or os.path.lexists(job.paths.intermediate):
        return ()
    setting = "hyperparameters: sagemaker_s3_output"
    if not (location.is_s3(uri) or location.is_file(uri)):
        raise ConfigError(f"{setting}: {uri!r} is no s3:// or file:// URI")
    return (
        Folder(
            what="intermediate output",
            path=job.paths.intermediate,
            uri=str(uri),
            parts=(*([job.name] if job.name else []), "output", "intermediate"),
            setting=setting,
            # A file: URI means a folder that whoever set it collects (SageMaker training toolkit).
            uploads=location.is_s3(uri),
        ),
    )
