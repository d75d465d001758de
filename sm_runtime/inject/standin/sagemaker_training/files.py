"""Files of the job, and the code where the runtime has not placed it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from typing import Any, Iterator
from urllib.parse import urlparse

from . import environment, errors, params


def write_success_file() -> None:
    """Do nothing: the runtime writes ``success`` when the job has succeeded, and not before."""


def write_failure_file(failure_msg: str) -> None:
    """Write the job's reason to fail, unless there is one: the runtime keeps it."""
    path = os.path.join(environment.output_dir, "failure")
    if not os.path.exists(path):
        write_file(path, failure_msg)


@contextlib.contextmanager
def tmpdir(suffix: str = "", prefix: str = "tmp", directory: str | None = None) -> Iterator[str]:
    """Yield a folder that is removed at the end."""
    made = tempfile.mkdtemp(suffix=suffix, prefix=prefix, dir=directory)
    try:
        yield made
    finally:
        shutil.rmtree(made)


def write_file(path: str, data: Any, mode: str = "w") -> None:
    """Write a file; ``mode`` is that of ``open``."""
    with open(path, mode) as file:
        file.write(data)


def read_file(path: str, mode: str = "r") -> Any:
    """Return what is in a file; ``mode`` is that of ``open``."""
    with open(path, mode) as file:
        return file.read()


def read_json(path: str) -> Any:
    """Return what is in a JSON file."""
    with open(path) as file:
        return json.load(file)


def download_and_extract(uri: str, path: str) -> None:
    """Place the code in ``path`` if that is empty; where the runtime has done so it is not.

    ``uri`` may be an archive in S3 (with boto3), or a folder, an archive or a file here.
    """
    os.makedirs(path, exist_ok=True)
    if os.listdir(path) or not uri:
        return
    if urlparse(uri).scheme == "s3":
        with tmpdir() as folder:
            archive = os.path.join(folder, "code.tar.gz")
            s3_download(uri, archive)
            if not _extract(archive, path):
                raise errors.ClientError(f"{uri}: is no tar archive")
    elif os.path.isdir(uri):
        if not os.path.samefile(uri, path):
            shutil.copytree(uri, path, symlinks=True, dirs_exist_ok=True)
    elif not _extract(uri, path):
        shutil.copy2(uri, path)


def s3_download(url: str, dst: str) -> None:
    """Download an object with boto3, which the image has to have."""
    parsed = urlparse(url)
    if parsed.scheme != "s3":
        raise ValueError(f"Expecting 's3' scheme, got: {parsed.scheme} in {url}")
    import boto3

    region = os.environ.get("AWS_REGION", os.environ.get(params.REGION_NAME_ENV))
    client = boto3.client("s3", region, endpoint_url=os.environ.get(params.S3_ENDPOINT_URL))
    client.download_file(parsed.netloc, parsed.path.lstrip("/"), dst)


def _extract(archive: str, path: str) -> bool:
    """Unpack an archive; return whether it is one."""
    import tarfile

    if not tarfile.is_tarfile(archive):
        return False
    if not hasattr(tarfile, "data_filter"):
        raise errors.ClientError(
            f"{archive}: cannot be unpacked safely by this Python: name the code in"
            f" {params.SUBMIT_DIR_PARAM}, which the runtime unpacks"
        )
    with tarfile.open(archive) as opened:
        opened.extractall(path, filter="data")
    return True
