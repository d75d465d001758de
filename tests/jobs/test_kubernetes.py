"""Manifests that `sm-runtime export` prints, run here as Kubernetes would run their pods.

A pod is a network namespace with the host name, the line of /etc/hosts and the variables that
Kubernetes and Kubeflow give it; the service's names resolve, and no others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import netns
from tests.harness import RUNTIME, Running, at_opt_ml, eventually
from tests.hosts import WAITS, logs, statuses
from tests.manifests import ENGINES, container, job, of_kind, pod, validate, variables

COUNT = 2
NAME = "digits"
HELLO = """
import os
from mpi4py import MPI
world = MPI.COMM_WORLD
hosts = world.allgather(os.environ["SM_CURRENT_HOST"])
print("ready", world.Get_rank(), *hosts, flush=True)
if world.Get_rank() == 0:
    open(os.path.join(os.environ["SM_MODEL_DIR"], "weights"), "w").write(" ".join(hosts))
"""
FAILS = """
import os, signal
print("ready", flush=True)
if os.environ["SM_CURRENT_HOST"] == os.environ["SM_HOSTS"].split('"')[-2]:
    raise KeyError("beta_1")
while True:
    signal.pause()
"""
LAUNCHER = {"SM_RUNTIME_LAUNCHER": '["{python}","{script}","{args}"]'}


def request(root: Path, **parts: Any) -> dict[str, Any]:
    return {
        "TrainingJobName": NAME,
        "HyperParameters": {"sagemaker_program": "train.py"},
        "OutputDataConfig": {"S3OutputPath": f"file://{root}/models"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": COUNT},
        **parts,
    }


def exported(engine: str, root: Path, **parts: Any) -> list[dict[str, Any]]:
    """Return what the command prints for a request."""
    path = root / "job.json"
    path.write_text(json.dumps(request(root, **parts)))
    words = (f"--{engine}", str(path), "--image", "sm-runtime:cpu", "--claim", f"m:{root}/models")
    made = subprocess.run((*RUNTIME, "export", *words), stdout=subprocess.PIPE, check=True)
    documents = list(yaml.safe_load_all(made.stdout))
    for document in documents:
        validate(document)
    return documents


class Pods:
    """The pods of a job; ``start`` starts them anew, as after a failure."""

    def __init__(
        self, root: Path, network: netns.Network, engine: str, documents: list[dict[str, Any]]
    ) -> None:
        self.root, self.network, self.engine, self.documents = root, network, engine, documents
        self.attempt = 0
        self.running: list[Running] = []

    def start(self, script: str) -> Pods:
        self.attempt += 1
        self.running = [self._start(number, script) for number in range(COUNT)]
        return self

    def _start(self, number: int, script: str) -> Running:
        ml = self.root / f"{self.attempt}-{number}"
        (ml / "code").mkdir(parents=True)
        (ml / "code" / "train.py").write_text(script)
        self._mount_request(ml)
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.root)}
        environ |= variables(self.documents) | self._of_engine(number)
        (word,) = container(self.documents)["args"]
        process = subprocess.Popen(
            (*self.network.hosts[number].prefix, *at_opt_ml(ml), *RUNTIME, word),
            env=environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return Running(process)

    def _mount_request(self, ml: Path) -> None:
        (mount,) = [
            one for one in container(self.documents)["volumeMounts"] if one["name"] == "request"
        ]
        path = ml / Path(mount["mountPath"]).relative_to("/opt/ml")
        path.parent.mkdir(parents=True)
        (stored,) = of_kind(self.documents, "ConfigMap")
        path.write_text(stored["data"][mount["subPath"]])

    def _of_engine(self, number: int) -> dict[str, str]:
        """Return what the engine adds to the manifest's variables."""
        found = {"JOB_COMPLETION_INDEX": str(number)}
        if self.engine == "kubeflow":
            found |= {
                "PET_NNODES": str(COUNT),
                "PET_NPROC_PER_NODE": "auto",
                "PET_NODE_RANK": str(number),
                "PET_MASTER_ADDR": f"{NAME}-node-0-0.{NAME}",
                "PET_MASTER_PORT": "29400",
            }
        return found

    def ready(self) -> Pods:
        for running in self.running:
            running.ready()
        return self

    def wait(self) -> list[Any]:
        return [running.wait(60) for running in self.running]

    def failure(self, number: int) -> Any:
        path = self.root / f"{self.attempt}-{number}" / "output/data/failure.json"
        return json.loads(path.read_text())


@contextmanager
def pods(engine: str, root: Path, **parts: Any) -> Iterator[Pods]:
    documents = exported(engine, root, **parts)
    infix = "" if engine == "kubernetes" else "-node-0"
    machines = [f"{NAME}{infix}-{number}" for number in range(COUNT)]
    if engine == "kubernetes":
        (service,) = of_kind(documents, "Service")
        assert pod(documents)["subdomain"] == service["metadata"]["name"] == NAME
        assert job(documents)["completions"] == job(documents)["parallelism"] == COUNT
    with netns.network([f"{machine}.{NAME}" for machine in machines], machines) as network:
        if not network.isolated:
            pytest.skip("needs network namespaces")
        for host, machine in zip(network.hosts, machines, strict=True):
            with open(f"/etc/netns/{host.namespace}/hosts", "a") as table:
                whole = f"{machine}.{NAME}.training.svc.cluster.local"
                table.write(f"{host.address}\t{whole}\t{machine}\n")
        yield Pods(root, network, engine, documents)


@pytest.mark.parametrize("engine", ENGINES)
def test_pods_find_each_other_and_train_with_mpi(engine: str, tmp_path: Path) -> None:
    program = {"sagemaker_program": "train.py", "sagemaker_mpi_enabled": "true"}
    with pods(engine, tmp_path, HyperParameters=program) as made:
        results = made.start(HELLO).wait()
        assert statuses(results) == [0, 0], logs(results)
        names = [host.name for host in made.network.hosts]
        for number, result in enumerate(results):
            assert f"ready {number} {' '.join(names)}" in result.out.decode()
        engine_name = {"kubernetes": "Kubernetes", "kubeflow": "Kubeflow"}[engine]
        for name, result in zip(names, results, strict=True):
            assert f"{engine_name}: 2 hosts, {name} is this one" in result.log
    assert (tmp_path / f"models/{NAME}/output/model.tar.gz").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_pods_end_together_and_a_new_attempt_finds_its_own(engine: str, tmp_path: Path) -> None:
    with pods(engine, tmp_path, Environment=LAUNCHER) as made:
        results = made.start(FAILS).wait()
        assert statuses(results) == [1, 1], logs(results)
        found = [made.failure(number) for number in range(COUNT)]
        assert found[0] == found[1]
        assert (found[0]["class"], found[0]["host"]) == ("KeyError", made.network.hosts[1].name)
        results = made.start("print('well')").wait()
        assert statuses(results) == [0, 0], logs(results)


def test_a_pod_that_is_deleted_stops_the_job_within_its_grace_period(tmp_path: Path) -> None:
    with pods("kubernetes", tmp_path, Environment=LAUNCHER) as made:
        made.start(WAITS).ready()
        pids = [running.pid for running in made.running]
        os.kill(runtime_of(pids[1]), signal.SIGTERM)
        results = made.wait()
        assert statuses(results) == [0, 0], logs(results)
        seconds = pod(made.documents)["terminationGracePeriodSeconds"]
        assert max(result.seconds for result in results) < seconds
    assert (tmp_path / f"models/{NAME}/output/model.tar.gz").exists()


def runtime_of(pid: int) -> int:
    """Return the runtime of a pod, whose prefixes replace themselves with what they run."""
    eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "train\n", "the runtime runs")
    return pid
