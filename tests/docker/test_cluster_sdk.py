"""The SageMaker SDK's local mode runs the image on two hosts; the first to exit ends the others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.container import docker
from tests.docker.test_sdk_local_mode import Job, sdk

MPI = {"mpi": {"enabled": True, "processes_per_host": 2}}
PARAMETER_SERVER = {"parameter_server": {"enabled": True}}
# The first host is done long before the second: what that one does must count.
SLOW = """
import os, pathlib, socket, time
from mpi4py import MPI
MPI.COMM_WORLD.Barrier()
rank = MPI.COMM_WORLD.rank
host = os.environ["SM_CURRENT_HOST"]
assert socket.gethostname() != host
MPI.Finalize()
if rank == 3:
    time.sleep(4)
pathlib.Path(os.environ["SM_MODEL_DIR"], f"rank-{rank}").write_text(host)
"""
ESTIMATOR = """
import argparse, json, os, pathlib
import numpy as np
import tensorflow as tf
parser = argparse.ArgumentParser()
parser.add_argument("--model_dir")
model_dir = "/opt/ml/shared/checkpoints"
task = json.loads(os.environ["TF_CONFIG"])["task"]
columns = [tf.feature_column.numeric_column("x", shape=(4,))]
def batches():
    inputs = np.random.default_rng(0).normal(size=(256, 4)).astype("f4")
    wanted = (inputs.sum(axis=1) > 0).astype("i4")
    return tf.data.Dataset.from_tensor_slices(({"x": inputs}, wanted)).repeat().batch(32)
estimator = tf.estimator.LinearClassifier(
    columns, model_dir, config=tf.estimator.RunConfig(save_checkpoints_steps=100)
)
tf.estimator.train_and_evaluate(
    estimator,
    tf.estimator.TrainSpec(batches, max_steps=200),
    tf.estimator.EvalSpec(batches, steps=5, start_delay_secs=0, throttle_secs=1),
)
found = {"steps": int(estimator.get_variable_value("global_step"))}
path = pathlib.Path(os.environ["SM_MODEL_DIR"], f"{task['type']}.json")
path.write_text(json.dumps(found))
"""


@pytest.fixture
def folder(tmp_path: Path, cpu_image: str) -> Iterator[Path]:
    for name in ("code", "root", "artifacts"):
        (tmp_path / name).mkdir()
    yield tmp_path
    # The SDK leaves the stopped containers of its Compose projects.
    label = "com.docker.compose.project.working_dir"
    listing = docker("ps", "-a", "--format", f'{{{{.ID}}}} {{{{.Label "{label}"}}}}')
    for line in listing.splitlines():
        container, _, project = line.partition(" ")
        if project.startswith(str(tmp_path)):
            docker("rm", "-f", container)


def fit(image: str, folder: Path, script: str, **arguments: Any) -> Job:
    (folder / "code/train.py").write_text(script, encoding="utf-8")
    specification = {
        "image_uri": image,
        "entry_point": "train.py",
        "source_dir": str(folder / "code"),
        "root": str(folder / "root"),
        "output_path": f"file://{folder / 'artifacts'}",
        **arguments,
    }
    done = sdk("sdk_cluster.py", specification, folder)
    error = folder / "error"
    said = error.read_text(encoding="utf-8") if error.exists() else ""
    return Job(done.returncode, done.stdout, said, folder)


def test_the_work_of_every_rank_counts_whichever_host_is_done_first(
    cpu_image: str, folder: Path
) -> None:
    job = fit(cpu_image, folder, SLOW, distribution=MPI)
    assert job.status == 0, job.log
    assert job.members("model") == {"rank-0", "rank-1", "rank-2", "rank-3"}
    hosts = [job.artifact("model", f"rank-{rank}") for rank in range(4)]
    assert re.fullmatch("algo-1-[a-z0-9]{5}", hosts[0]) and hosts[1] == hosts[0]
    assert re.fullmatch("algo-2-[a-z0-9]{5}", hosts[2]) and hosts[3] == hosts[2]
    assert job.log.count("Reporting training SUCCESS") == 2, job.log


def test_a_rank_that_fails_on_the_second_host_fails_the_job(cpu_image: str, folder: Path) -> None:
    script = SLOW.replace("time.sleep(4)", "raise ValueError('no more apples')")
    job = fit(cpu_image, folder, script, distribution=MPI)
    assert job.status == 1
    assert "Failed to run" in job.error
    headline = job.artifact("output", "failure").splitlines()[0]
    assert re.search(r"ValueError: no more apples \(train.py:\d+\) \[rank 3, algo-2-", headline)


@pytest.mark.needs("tensorflow-estimator")
def test_parameter_servers_train_an_estimator(cpu_image: str, folder: Path) -> None:
    job = fit(cpu_image, folder, ESTIMATOR, distribution=PARAMETER_SERVER)
    assert job.status == 0, job.log
    assert job.members("model") == {"master.json", "worker.json"}
    assert json.loads(job.artifact("model", "master.json"))["steps"] >= 200
    assert job.log.count("Reporting training SUCCESS") == 2, job.log
