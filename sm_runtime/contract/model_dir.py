"""Gives TensorFlow a local ``model_dir`` where the job's is in object storage.

TensorFlow's wheels lost their S3 file system in 2.6 (tensorflow/io has it): a script that writes
to ``s3://`` fails there, or writes without the retries and the encryption that this runtime has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

from sm_runtime.job import location
from sm_runtime.job.model import Job, Sync

WITHOUT_S3 = (2, 6)
"""The first version of TensorFlow whose wheels have no S3 file system."""
_ENDPOINTS = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def redirected(job: Job, lacks_s3: Callable[[], bool]) -> Job:
    """Return ``job`` with a local ``model_dir`` that is synced with the one that was given.

    A managed job, whose arguments are the toolkit's, is left as it is where
    ``Options.redirect_model_dir`` says so, or says nothing and TensorFlow opens ``s3://`` itself
    (not so where ``lacks_s3``, which is asked then).
    """
    uri = _remote(job)
    wanted = job.options.redirect_model_dir
    if uri is None or wanted is False:
        return job
    by_itself = job.managed and wanted is None
    if by_itself and not lacks_s3():
        return job
    # Where the SageMaker SDK has it in local mode.
    path = job.paths.under("shared", "model")
    return replace(
        job,
        hyperparameters={**job.hyperparameters, "model_dir": path},
        texts={**job.texts, "model_dir": json.dumps(path)},
        hyperparameter_config={**job.hyperparameter_config, "model_dir": json.dumps(path)},
        model_dir=Sync(local_path=path, uri=uri, optional=by_itself),
    )


def tensorflow_lacks_s3() -> bool:
    """Return whether TensorFlow is installed here without what opens ``s3://``, and we can sync.

    Nothing is imported: TensorFlow's version is that of its metadata.
    """
    from importlib.util import find_spec

    if find_spec("tensorflow") is None or find_spec("tensorflow_io") is not None:
        return False
    if not (find_spec("boto3") and find_spec("obstore")):
        return False
    from importlib import metadata

    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "intel-tensorflow"):
        try:
            major, minor = metadata.version(name).split(".")[:2]
            return (int(major), int(minor)) >= WITHOUT_S3
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return True


def note(job: Job) -> str | None:
    """Return the sentence that tells of the redirection, if there is one."""
    if job.model_dir is None:
        return None
    why = "TensorFlow has no S3 file system here: " if job.model_dir.optional else ""
    return (
        f"{why}model_dir is {job.model_dir.local_path} to the script and is synced with"
        f" {job.model_dir.uri} (SM_RUNTIME_REDIRECT_MODEL_DIR=0: the script gets the URI)"
    )


def tensorflow_variables(job: Job, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what TensorFlow's S3 file system needs to know, where the script is given an S3 URI.

    The first three are those of the SageMaker TensorFlow training toolkit; what ``environ`` or the
    job's environment has is left alone.
    """
    if _remote(job) is None:
        return {}
    endpoint = next((environ[name] for name in _ENDPOINTS if environ.get(name)), "")
    host = endpoint.rpartition("://")[2].rstrip("/")
    found = {
        "S3_REGION": job.region,
        "S3_USE_HTTPS": "0" if endpoint.startswith("http://") else "1",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "S3_REQUEST_TIMEOUT_MSEC": "60000",  # its 3 s are too few for a large file
        "AWS_LOG_LEVEL": "3",  # else each file that does not exist yet is an error in the log
        "S3_ENDPOINT": host,
    }
    return {
        name: value
        for name, value in found.items()
        if value and not environ.get(name) and name not in job.environment
    }


def _remote(job: Job) -> str | None:
    uri = job.hyperparameters.get("model_dir")
    return str(uri) if location.is_s3(uri) else None
