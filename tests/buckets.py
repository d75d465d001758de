"""A job whose data and artifacts are in the buckets of a real S3 server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.harness import Base
from tests.s3 import CREDENTIALS, Server


def request(base: Base, url: str, **parts: Any) -> None:
    """Have the base folder describe the self-managed job ``a-job`` whose storage is at ``url``."""
    base.write("input/config/job.json", {"TrainingJobName": "a-job", **parts})
    reach(base, url)


def reach(base: Base, url: str) -> None:
    """Let a job know where S3 is, and who it is there."""
    base.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": url, "AWS_DEFAULT_REGION": "eu-west-1"}


def channel(name: str, uri: str, data_type: str = "S3Prefix", **more: Any) -> dict[str, Any]:
    """Return a channel of a request."""
    source = {"S3DataType": data_type, "S3Uri": uri}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **more}


def objects(server: Server, bucket: str = "bucket") -> dict[str, bytes]:
    """Return what a bucket holds, by key."""
    return files(server.folder / bucket)


def files(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, by their relative names."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
