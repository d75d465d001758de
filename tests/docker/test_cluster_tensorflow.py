"""TensorFlow on several hosts: Horovod, parameter servers, MultiWorkerMirrored, the examples."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.cluster import Cluster
from tests.docker.container import Ml, run
from tests.docker.examples import EXAMPLES, place, prepare, runs

QUIET = ("-e", "TF_CPP_MIN_LOG_LEVEL=2", "-e", "OMPI_MCA_mpi_yield_when_idle=1")
MPI: dict[str, Any] = {"sagemaker_mpi_enabled": True, "sagemaker_mpi_num_of_processes_per_host": 2}
PARAMETER_SERVER: dict[str, Any] = {"sagemaker_parameter_server_enabled": True}
TAPE = """
import json, os
import numpy as np
import tensorflow as tf
import horovod.tensorflow as hvd
hvd.init()
tf.keras.utils.set_random_seed(hvd.rank())
def build():
    layers = [tf.keras.Input((20,)), tf.keras.layers.Dense(8, "relu"), tf.keras.layers.Dense(1)]
    return tf.keras.Sequential(layers)
def step(model, optimizer, inputs, wanted, tape):
    with tape as recorded:
        loss = tf.reduce_mean((model(inputs) - wanted) ** 2)
    gradients = recorded.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    return loss
random = np.random.default_rng(0)
inputs = random.normal(size=(10, 64, 20)).astype("f4")
wanted = inputs.sum(axis=2, keepdims=True)
together, alone = build(), build()
hvd.broadcast_variables(together.variables, root_rank=0)
for variable, other in zip(alone.variables, together.variables):
    variable.assign(other)
optimizers = tf.keras.optimizers.Adam(0.05), tf.keras.optimizers.Adam(0.05)
share = slice(16 * hvd.rank(), 16 * hvd.rank() + 16)
losses = []
for batch in range(10):
    tape = hvd.DistributedGradientTape(tf.GradientTape())
    part = step(together, optimizers[0], inputs[batch, share], wanted[batch, share], tape)
    whole = step(alone, optimizers[1], inputs[batch], wanted[batch], tf.GradientTape())
    losses.append([float(hvd.allreduce(part)), float(whole)])
print(json.dumps({"size": hvd.size(), "losses": losses}), flush=True)
"""
COORDINATES = """
import json, os
import numpy as np
import tensorflow as tf
resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
print("task", resolver.task_type, resolver.task_id, flush=True)
if resolver.task_type == "worker":
    server = tf.distribute.Server(
        resolver.cluster_spec(), job_name="worker", task_index=resolver.task_id, protocol="grpc"
    )
    server.join()
strategy = tf.distribute.ParameterServerStrategy(resolver)
coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
with strategy.scope():
    weights = tf.Variable(tf.zeros((4, 1)))
inputs = tf.constant(np.random.default_rng(0).normal(size=(64, 4)).astype("f4"))
wanted = tf.reduce_sum(inputs, axis=1, keepdims=True)
@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((inputs @ weights - wanted) ** 2)
    weights.assign_sub(0.01 * tape.gradient(loss, weights))
    return loss
losses = []
for epoch in range(3):
    steps = [coordinator.schedule(step) for _ in range(20)]
    coordinator.join()
    losses.append(float(np.mean([done.fetch() for done in steps])))
devices = [weights.device]
print(json.dumps({"losses": losses, "devices": devices}), flush=True)
"""
RETURNS = """
import os, time
assert "TF_CONFIG" in os.environ
print("ended at", time.time(), flush=True)
"""
CHIEF_FAILS = """
import json, os, time
if json.loads(os.environ["TF_CONFIG"])["task"]["type"] == "master":
    time.sleep(2)
    print("ended at", time.time(), flush=True)
    raise ValueError("no more apples")
time.sleep(1000)
"""
CHIEF_WAITS = """
import json, os, time
if json.loads(os.environ["TF_CONFIG"])["task"]["type"] == "master":
    time.sleep(8)
print("ended at", time.time(), flush=True)
"""


@pytest.fixture(scope="module")
def data(cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The channels of the examples."""
    folder = tmp_path_factory.mktemp("data")
    prepare(cpu_image, "fashion_mnist", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def compose(cpu_image: str, data: Path, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Run an example as its compose.yaml says: returns the folder of what the hosts leave."""
    project = f"sm-runtime-test-{uuid.uuid4().hex[:8]}"
    out = tmp_path / "out"
    environ = {**os.environ, "IMAGE": cpu_image, "DATA": str(data), "OUT": str(out)}
    begin = ["docker-compose", "-p", project]

    def up(example: str) -> Path:
        begin.extend(("-f", str(EXAMPLES / example / "compose.yaml")))
        done = subprocess.run(
            (*begin, "--ansi", "never", "up"),
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        for host in ("algo-1", "algo-2"):
            assert f"{host}_1 exited with code 0" in done.stdout, done.stdout
            assert (out / host / "output/success").exists()
        (out / "log").write_text(done.stdout, encoding="utf-8")
        return out

    yield up
    subprocess.run((*begin, "down", "-v"), env=environ, capture_output=True, check=True)
    shutil.rmtree(out)


def metrics(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "algo-1/output/data/metrics.json").read_text())
    assert not (out / "algo-2/output/data/metrics.json").exists()
    assert list((out / "algo-1/model").rglob("saved_model.pb"))
    return found


def alone(image: str, example: str, data: Path, ml: Ml) -> dict[str, float]:
    """Run an example in a single process; return the metrics that it leaves."""
    hyperparameters = place(example, ml)
    for name in hyperparameters.keys() - {"sagemaker_program"}:
        if name.startswith("sagemaker_"):
            del hyperparameters[name]
    ml.write("input/config/hyperparameters.json", hyperparameters)
    mounts = (*ml.mount, "-v", f"{data}:/opt/ml/input/data:ro")
    done = run(image, options=(*mounts, *QUIET), seconds=300)
    assert done.status == 0, done.err
    assert " 0 of 1 on" in done.out
    found: dict[str, float] = json.loads(ml.read("output/data/metrics.json"))
    return found


@pytest.mark.needs("horovod")
@runs("horovod")
def test_horovod_on_2_hosts_and_4_ranks_learns_what_a_single_process_learns(
    cpu_image: str, data: Path, ml: Ml, compose: Callable[[str], Path]
) -> None:
    found = metrics(compose("horovod"))
    assert found == pytest.approx(alone(cpu_image, "horovod", data, ml), rel=0.01)
    assert found["val_accuracy"] > 0.6


@pytest.mark.needs("horovod")
def test_horovods_tape_takes_the_steps_of_a_single_process(cpu_image: str, tmp_path: Path) -> None:
    with Cluster(cpu_image, tmp_path, TAPE, options=QUIET, **MPI) as cluster:
        assert cluster.run(seconds=200) == {0}, cluster.log()
        results = cluster.results()
    assert sorted(results) == [0, 1, 2, 3]
    for result in results.values():
        assert result["size"] == 4
        for together, alone in result["losses"]:
            assert together == pytest.approx(alone, rel=1e-3)


@pytest.mark.needs("tensorflow-estimator")
@runs("parameter_server")
def test_an_estimator_trains_with_parameter_servers_on_2_hosts(
    compose: Callable[[str], Path],
) -> None:
    out = compose("parameter_server")
    found = metrics(out)
    assert found["global_step"] >= 2000
    assert found["accuracy"] > 0.6
    log = (out / "log").read_text(encoding="utf-8")
    # Both have trained: each has logged steps of its own.
    for host in ("algo-1", "algo-2"):
        assert any(
            line.startswith(host) and "Loss for final step" in line for line in log.splitlines()
        )


@runs("multi_worker")
def test_multi_worker_mirrored_on_2_hosts_learns_what_a_single_process_learns(
    cpu_image: str, data: Path, ml: Ml, compose: Callable[[str], Path]
) -> None:
    out = compose("multi_worker")
    found = metrics(out)
    assert found == pytest.approx(alone(cpu_image, "multi_worker", data, ml), rel=0.01)
    assert found["val_accuracy"] > 0.6
    assert not list((out / "algo-2/model").rglob("*"))
    log = (out / "log").read_text(encoding="utf-8")
    assert "worker 0 of 2 on algo-1" in log and "worker 1 of 2 on algo-2" in log


@pytest.mark.versions
def test_the_chief_layout_serves_tf_distributes_parameter_server_strategy(
    cpu_image: str, tmp_path: Path
) -> None:
    values: dict[str, Any] = {
        **PARAMETER_SERVER,
        "sagemaker_runtime_parameter_server_layout": "chief",
    }
    with Cluster(cpu_image, tmp_path, COORDINATES, options=QUIET, **values) as cluster:
        assert cluster.run(seconds=200) == {0}, cluster.log()
        assert "task worker 0" in cluster["algo-2"].log()
        text = next(line for line in cluster["algo-1"].log().splitlines() if line.startswith("{"))
    result = json.loads(text)
    assert result["losses"][-1] < result["losses"][0]
    assert all("/job:ps/" in device for device in result["devices"])


def test_the_last_evaluation_is_waited_for(cpu_image: str, tmp_path: Path) -> None:
    script = """
import json, os, signal, time
task = json.loads(os.environ["TF_CONFIG"])["task"]["type"]
print("task", task, flush=True)
if task == "worker":
    signal.pause()
if task == "evaluator":
    time.sleep(6)  # longer than workers may go on
    with open(os.path.join(os.environ["SM_MODEL_DIR"], "evaluated"), "w"):
        print("evaluated", flush=True)
"""
    values: dict[str, Any] = {
        **PARAMETER_SERVER,
        "sagemaker_runtime_parameter_server_layout": "chief",
        "sagemaker_runtime_parameter_server_evaluator": True,
    }
    with Cluster(cpu_image, tmp_path, script, options=QUIET, count=3, **values) as cluster:
        assert cluster.run() == {0}, cluster.log()
        assert "evaluated" in cluster["algo-3"].log().split()
        assert "task worker" in cluster["algo-2"].log()


@pytest.mark.parametrize(
    ("script", "status"),
    [
        pytest.param(RETURNS, 0, id="at-once"),
        pytest.param(CHIEF_WAITS, 0, id="late"),
        pytest.param(CHIEF_FAILS, 1, id="failed"),
    ],
)
def test_all_hosts_with_parameter_servers_end_at_once_after_the_chief(
    cpu_image: str, tmp_path: Path, script: str, status: int
) -> None:
    with Cluster(cpu_image, tmp_path, script, options=QUIET, **PARAMETER_SERVER) as cluster:
        assert cluster.run() == {status}, cluster.log()
        found = [line.split() for line in cluster.log().splitlines()]
        ended = max(float(words[2]) for words in found if words[:2] == ["ended", "at"])
        assert cluster.ended - ended < 5
        failures = cluster.failures()
    expected = [("no more apples", "algo-1")] * 2 if status else []
    assert [(failure["message"], failure["host"]) for failure in failures] == expected
