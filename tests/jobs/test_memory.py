"""What is saved is not held in memory, however large it is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.s3 import CREDENTIALS, serving

KIB, MIB = 1 << 10, 1 << 20
PROGRAM = r"""
import json, os, re, sys
from sm_runtime.output import artifacts
from sm_runtime.job.model import Cluster, Job, Output
from sm_runtime.job.model import Paths
job = Job(paths=Paths(sys.argv[1]), name="j", managed=False,
    cluster=Cluster(current_host="a", hosts=("a",)), output=Output(uri=sys.argv[2]))
saved = artifacts.save(job, threads=2, environ=os.environ)
# not ru_maxrss: it starts with what the parent had
with open("/proc/self/status") as file:
    peak = re.search(r"VmHWM:\s+(\d+)", file.read())[1]
print(json.dumps([saved[0].size_bytes, int(peak)]))
"""


def saved(base: Path, uri: str, mebibytes: int, environ: dict[str, str]) -> int:
    """Save a model of this size; return how many KiB of memory that has taken."""
    (base / "model").mkdir(parents=True)
    with open(base / "model/weights", "wb") as file:
        for seed in range(mebibytes // 16):
            file.write(random.Random(seed).randbytes(16 * MIB))
    done = subprocess.run(
        (sys.executable, "-c", PROGRAM, str(base), uri),
        capture_output=True,
        check=True,
        env={**os.environ, **environ, "AWS_EC2_METADATA_DISABLED": "true"},
    )
    size_bytes, peak_kib = json.loads(done.stdout)
    assert size_bytes == mebibytes * MIB
    return int(peak_kib)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    assert saved(tmp_path / "ml", (tmp_path / "target").as_uri(), 192, {}) < 64 * KIB


def test_memory_does_not_grow_with_a_model_that_is_sent_to_s3(tmp_path: Path) -> None:
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with serving(tmp_path / "buckets") as server:
        environ = {"AWS_ENDPOINT_URL_S3": server.url, "AWS_REGION": "us-east-1", **CREDENTIALS}
        assert saved(tmp_path / "ml", "s3://bucket", 320, environ) < 250 * KIB
