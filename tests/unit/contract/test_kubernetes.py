"""Hosts of Kubernetes' and Kubeflow's jobs, from what is in their pods."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sm_runtime.contract import load
from sm_runtime.contract.engines import whole_name
from sm_runtime.contract.load import Parsed
from sm_runtime.contract.reader import Document
from sm_runtime.job.model import Paths

# As the kubelet writes them, for a pod of a headless service.
TABLE = """\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
10.244.1.7\tmnist-1.mnist.training.svc.cluster.local\tmnist-1
"""
OF_SERVICE = "mnist-1.mnist.training.svc.cluster.local"
INDEXED = {"JOB_COMPLETION_INDEX": "1", "SM_RUNTIME_NUM_HOSTS": "3"}
TRAIN_JOB = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "auto",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "mnist-node-0-0.mnist",
    "PET_MASTER_PORT": "29400",
    "JOB_COMPLETION_INDEX": "1",
}
PYTORCH_JOB = {
    "PET_NNODES": "3",
    "PET_NODE_RANK": "2",
    "MASTER_ADDR": "mnist-master-0",
    "MASTER_PORT": "23456",
    "WORLD_SIZE": "3",
    "RANK": "2",
}


def parsed(environ: dict[str, str], name: str, request: Any = None) -> Parsed:
    documents = (
        {} if request is None else {"job": Document("job.json", json.dumps(request).encode())}
    )
    return load.parse(documents, environ, Paths(), name.partition(".")[0], name)


def hosts(environ: dict[str, str], name: str = "box") -> tuple[tuple[str, ...], str]:
    found = parsed(environ, name)
    assert found.problems == ()
    return found.draft.cluster.hosts, found.draft.cluster.current_host


def test_pods_of_an_indexed_job_are_its_hosts() -> None:
    names = ("mnist-0.mnist", "mnist-1.mnist", "mnist-2.mnist")
    assert hosts(INDEXED, OF_SERVICE) == (names, "mnist-1.mnist")
    found = parsed(INDEXED, OF_SERVICE)
    assert "Kubernetes: 3 hosts, mnist-1.mnist is this one" in found.notes[0]


def test_a_service_may_have_another_name_than_the_job() -> None:
    found = hosts(INDEXED, "mnist-1.hosts.default.svc.example.org")
    assert found[0] == ("mnist-0.hosts", "mnist-1.hosts", "mnist-2.hosts")


def test_pods_of_a_train_job_are_its_hosts() -> None:
    names = ("mnist-node-0-0.mnist", "mnist-node-0-1.mnist")
    assert hosts(TRAIN_JOB, "mnist-node-0-1.mnist.x.svc.cluster.local") == (names, names[1])
    assert "Kubeflow: 2 hosts" in parsed(TRAIN_JOB, "box").notes[0]


def test_pods_of_a_pytorch_job_are_its_hosts() -> None:
    names = ("mnist-master-0", "mnist-worker-0", "mnist-worker-1")
    assert hosts(PYTORCH_JOB) == (names, "mnist-worker-1")
    assert hosts({**PYTORCH_JOB, "PET_NODE_RANK": "0"}) == (names, "mnist-master-0")


def test_a_single_pod_needs_no_service() -> None:
    environ = {"JOB_COMPLETION_INDEX": "0", "SM_RUNTIME_NUM_HOSTS": "1"}
    assert hosts(environ, "digits-0") == (("digits-0",), "digits-0")


def test_each_pod_without_names_for_the_others_is_a_job_of_its_own() -> None:
    assert hosts({"JOB_COMPLETION_INDEX": "4"}, "sweep-4") == (("sweep-4",), "sweep-4")


@pytest.mark.parametrize("environ", [INDEXED, TRAIN_JOB, {"PET_NNODES": "?"}])
def test_what_is_said_explicitly_wins(environ: dict[str, str]) -> None:
    own = {"SM_RUNTIME_HOSTS": "a,b", "SM_RUNTIME_CURRENT_HOST": "b"}
    assert hosts({**environ, **own}) == (("a", "b"), "b")
    assert hosts({**environ, "SM_RUNTIME_ENGINE": "none"}) == (("box",), "box")


def test_the_engine_may_be_named() -> None:
    environ = {**TRAIN_JOB, "SM_RUNTIME_NUM_HOSTS": "2", "SM_RUNTIME_ENGINE": "kubernetes"}
    assert hosts(environ, "a-1.b")[0] == ("a-0.b", "a-1.b")


@pytest.mark.parametrize(
    ("environ", "name", "problem"),
    [
        (INDEXED, "mnist-1", "SM_RUNTIME_NUM_HOSTS: is 3, but pods have no names for each other"),
        (INDEXED, "node7.example.org", "JOB_COMPLETION_INDEX: is 1, but this pod is called 'node7"),
        ({"JOB_COMPLETION_INDEX": "1"}, OF_SERVICE, "SM_RUNTIME_NUM_HOSTS: is missing"),
        ({"SM_RUNTIME_NUM_HOSTS": "2"}, "box", "JOB_COMPLETION_INDEX: is missing"),
        (
            {**INDEXED, "SM_RUNTIME_NUM_HOSTS": "1"},
            OF_SERVICE,
            "JOB_COMPLETION_INDEX: is 1, but SM_RUNTIME_NUM_HOSTS is 1",
        ),
        (
            {**INDEXED, "SM_RUNTIME_NUM_HOSTS": "two"},
            OF_SERVICE,
            "SM_RUNTIME_NUM_HOSTS: must be a whole number, not 'two'",
        ),
        (
            {**INDEXED, "SM_RUNTIME_NUM_HOSTS": "99999999"},
            OF_SERVICE,
            "SM_RUNTIME_NUM_HOSTS: must be from 1 to 65536, not 99999999",
        ),
        ({**TRAIN_JOB, "PET_NNODES": "1:4"}, "box", "PET_NNODES: is 1:4: an elastic job has no"),
        ({**TRAIN_JOB, "PET_NODE_RANK": ""}, "box", "PET_NODE_RANK: is missing"),
        ({**TRAIN_JOB, "PET_NODE_RANK": "2"}, "box", "PET_NODE_RANK: is 2, but PET_NNODES is 2"),
        (
            {**TRAIN_JOB, "PET_MASTER_ADDR": "10.0.0.1"},
            "box",
            "PET_MASTER_ADDR: must be the first pod's name, which ends in -0, not '10.0.0.1'",
        ),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "0"}, "box", "MASTER_ADDR: must be the first pod's"),
    ],
)
def test_what_contradicts_itself_is_one_problem(
    environ: dict[str, str], name: str, problem: str
) -> None:
    found = parsed(environ, name)
    assert [one[: len(problem) + 13] for one in found.problems] == [f"environment: {problem}"]
    assert "SM_RUNTIME_ENGINE=none" in found.problems[0]


def test_the_request_has_to_want_as_many_hosts() -> None:
    request = {"ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2}}
    (problem,) = parsed(INDEXED, OF_SERVICE, request).problems
    assert problem.startswith("job.json: ResourceConfig.InstanceCount: is 2, but 3 hosts are known")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [({}, 120), (INDEXED, 30), (TRAIN_JOB, 30)],
)
def test_a_stop_has_the_seconds_that_a_pod_has_unasked(
    environ: dict[str, str], seconds: float
) -> None:
    assert parsed(environ, OF_SERVICE).draft.options.stop_timeout_seconds == seconds
    own = {**environ, "SM_RUNTIME_STOP_TIMEOUT_SECONDS": "60"}
    assert parsed(own, OF_SERVICE).draft.options.stop_timeout_seconds == 60


def test_the_whole_name_is_that_of_the_hosts_table() -> None:
    assert whole_name(TABLE, "mnist-1") == OF_SERVICE
    assert whole_name(TABLE, "other") == "other"
    assert whole_name("127.0.1.1 box box.example.org # box.x\n", "box") == "box.example.org"
    assert whole_name("", "box") == "box"
