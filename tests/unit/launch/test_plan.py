"""Which hosts take part in what, and the TF_CONFIG of every process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sm_runtime.contract import load
from sm_runtime.contract.reader import Document
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.model import Hardware, Job, Paths
from sm_runtime.launch import commands, distribution
from sm_runtime.launch.distribution import Plan, Role

GOLDEN = Path(__file__).parents[1] / "golden" / "tf_config.json"
CASES = json.loads(GOLDEN.read_text())
CPU = Hardware(cpus=4)
PS = "sagemaker_parameter_server_enabled"
MWMS = "sagemaker_multi_worker_mirrored_strategy_enabled"
MPI = "sagemaker_mpi_enabled"
TORCH = "sagemaker_torch_distributed_enabled"
DDP = "sagemaker_pytorch_ddp_enabled"
DATA_PARALLEL = "sagemaker_distributed_dataparallel_enabled"
XLA = "sagemaker_pytorch_xla_multi_worker_enabled"
GROUPS = "sagemaker_distribution_instance_groups"
EACH = "sagemaker_mpi_num_of_processes_per_host"


def job(
    hosts: list[str],
    host: str,
    hyperparameters: dict[str, Any],
    groups: dict[str, list[str]] | None = None,
    **environ: str,
) -> Job:
    """Return a job as its files describe it; with ``groups``, the host is in the first with it."""
    resources: dict[str, Any] = {"current_host": host, "hosts": hosts}
    if groups:
        resources["instance_groups"] = [
            {"instance_group_name": name, "instance_type": "ml.c5.large", "hosts": members}
            for name, members in groups.items()
        ]
        resources["current_group_name"] = next(n for n, m in groups.items() if host in m)
    documents = {
        "hyperparameters": {key: json.dumps(value) for key, value in hyperparameters.items()},
        "resourceconfig": resources,
    }
    found = {n: Document(n, json.dumps(value).encode()) for n, value in documents.items()}
    parsed = load.parse(found, environ, Paths(), "box")
    assert parsed.problems == ()
    assert parsed.job is not None
    return parsed.job


def plan(count: int, host: int, *flags: str, **more: Any) -> Plan:
    hosts = [f"algo-{number + 1}" for number in range(count)]
    hyperparameters = {**dict.fromkeys(flags, True), **more}
    return distribution.plan(job(hosts, hosts[host], hyperparameters), CPU)


def texts(case: Any, host: str) -> dict[str, str]:
    """Return the TF_CONFIG of each process of ``host``, by the process's name."""
    given = job(case["hosts"], host, case["hyperparameters"], case["groups"], **case["environ"])
    found = distribution.plan(given, CPU)
    return {
        role.name: distribution.role_variables(given, found, role, {})["TF_CONFIG"]
        for role in found.roles
        if role.task
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_each_process_gets_its_tf_config(case: Any) -> None:
    assert {host: texts(case, host) for host in case["hosts"]} == case["TF_CONFIG"]


def test_the_text_is_the_toolkits_to_the_byte() -> None:
    (case,) = (case for case in CASES if case["name"] == "master, three hosts")
    assert texts(case, "h3")["script"] == (
        '{"cluster": {"master": ["h1:2222"], "ps": ["h1:2223", "h2:2223", "h3:2223"], "worker":'
        ' ["h2:2222", "h3:2222"]}, "environment": "cloud", "task": {"index": 1, "type": "worker"}}'
    )


@pytest.mark.parametrize(
    ("ports", "addresses"),
    [
        ({}, ["a:2222", "a:2223", "b:2223", "b:2222"]),
        ({"script": 4000}, ["a:4000", "a:2223", "b:2223", "b:4000"]),
        (
            {"script": 4000, "server": {"a": 4001, "b": 4002}},
            ["a:4000", "a:4001", "b:4002", "b:4000"],
        ),
    ],
)
def test_the_ports_are_those_that_the_hosts_agreed_on(ports: Any, addresses: list[str]) -> None:
    found = commands.tf_cluster(distribution.plan(job(["a", "b"], "a", {PS: True}), CPU), ports)
    assert [address for part in found.values() for address in part] == addresses


def test_a_parameter_server_sees_no_gpu() -> None:
    given = job(["a", "b"], "a", {PS: True})
    server, script = distribution.plan(given, CPU).roles
    found = distribution.role_variables(given, distribution.plan(given, CPU), server, {})
    assert found["CUDA_VISIBLE_DEVICES"] == "-1"
    found = distribution.role_variables(given, distribution.plan(given, CPU), script, {})
    assert list(found) == ["TF_CONFIG"]


PLAIN = [
    ("one host", ["a"], {}, None),
    ("many hosts, nothing asked for", ["a", "b"], {}, None),
    ("one host needs no parameter server", ["a"], {PS: True}, None),
    ("flags that are off", ["a", "b"], {MPI: False, PS: False}, None),
    ("a group that takes no part", ["b", "a"], {MPI: True, GROUPS: ["y"]}, "groups"),
]


@pytest.mark.parametrize(
    ("hosts", "hyperparameters", "groups"),
    [row[1:] for row in PLAIN],
    ids=[row[0] for row in PLAIN],
)
def test_a_host_runs_one_plain_process(hosts: Any, hyperparameters: Any, groups: Any) -> None:
    members = {"x": ["a"], "y": ["b"]} if groups else None
    found = distribution.plan(job(hosts, "a", hyperparameters, members), CPU)
    assert found == Plan(kind="plain", host="a", hosts=("a",))
    assert found.is_leader and found.others == () and found.roles == (Role(name="script"),)
    assert not found.waits_for_leader and not found.stops_with_leader


@pytest.mark.parametrize(
    ("flag", "kind", "ports"),
    [
        (PS, "parameter_server", {"script": 2222, "server": 2223}),
        (MWMS, "multi_worker", {"script": 8890}),
        (MPI, "mpi", {}),
        (TORCH, "torchrun", {"rendezvous": 7777}),
        (DDP, "torchrun", {"rendezvous": 7777}),
    ],
)
def test_a_key_asks_for_a_way_of_training(flag: str, kind: str, ports: Any) -> None:
    found = plan(3, 1, flag)
    assert (found.kind, found.origin, dict(found.ports)) == (kind, flag, ports)
    assert found.hosts == ("algo-1", "algo-2", "algo-3")
    assert (found.leader, found.rank, found.is_leader) == ("algo-1", 1, False)
    assert found.others == ("algo-1", "algo-3")


@pytest.mark.parametrize("flag", [MWMS, MPI, TORCH])
def test_one_host_is_a_cluster_as_well(flag: str) -> None:
    found = plan(1, 0, flag)
    assert found.kind != "plain" and found.others == () and found.is_leader


def test_the_groups_that_are_named_take_part_in_the_order_of_the_platform() -> None:
    groups = {"x": ["c", "a"], "y": ["b"], "z": ["d"]}
    hyperparameters = {MPI: True, GROUPS: ["z", "x"]}
    found = distribution.plan(job(["a", "b", "c", "d"], "a", hyperparameters, groups), CPU)
    assert found.hosts == ("c", "a", "d")
    assert found.leader == "c" and found.rank == 1


@pytest.mark.parametrize("launcher", ['["run"]', ""])
def test_without_names_the_group_of_the_host_takes_part(launcher: str) -> None:
    groups = {"x": ["b"], "y": ["c", "a"]}
    hyperparameters = {} if launcher else {MPI: True}
    given = job(["a", "b", "c"], "a", hyperparameters, groups, SM_RUNTIME_LAUNCHER=launcher)
    assert distribution.plan(given, CPU).hosts == ("c", "a")


@pytest.mark.parametrize(
    ("devices", "more", "each", "total"),
    [
        (Hardware(cpus=8), {}, 1, 2),
        (Hardware(cpus=8, gpus=4), {}, 4, 8),
        (Hardware(cpus=8, neurons=2), {}, 2, 4),
        (Hardware(cpus=8, gpus=4), {EACH: 3}, 3, 6),
        (Hardware(cpus=8), {EACH: 3, "sagemaker_mpi_num_processes": 5}, 3, 5),
    ],
)
def test_the_devices_say_how_many_processes_there_are(
    devices: Hardware, more: Any, each: int, total: int
) -> None:
    found = distribution.plan(job(["a", "b"], "a", {MPI: True, **more}), devices)
    assert (found.processes_per_host, found.processes) == (each, total)


@pytest.mark.parametrize(
    ("flag", "environ", "waits", "stops"),
    [
        (PS, {}, [True, True, True], [False, False, False]),
        (PS, {"LAYOUT": "chief"}, [True] * 3, [False, True, True]),
        (PS, {"LAYOUT": "chief", "EVALUATOR": "1"}, [True] * 3, [False, True, False]),
        (MPI, {}, [True] * 3, [False] * 3),
        (MWMS, {}, [False] * 3, [False] * 3),
        (TORCH, {}, [False] * 3, [False] * 3),
    ],
)
def test_a_host_knows_when_it_is_over(
    flag: str, environ: dict[str, str], waits: list[bool], stops: list[bool]
) -> None:
    variables = {f"SM_RUNTIME_PARAMETER_SERVER_{key}": value for key, value in environ.items()}
    hosts = ["a", "b", "c"]
    found = [distribution.plan(job(hosts, h, {flag: True}, **variables), CPU) for h in hosts]
    assert [each.waits_for_leader for each in found] == waits
    assert [each.stops_with_leader for each in found] == stops


def test_only_the_leader_starts_mpirun() -> None:
    assert [len(plan(2, host, MPI).roles) for host in (0, 1)] == [1, 0]


REFUSED = [
    ({MPI: True, TORCH: True}, f"{MPI} and {TORCH}: contradict each other"),
    ({PS: True, MWMS: True, DDP: True}, f"{PS} and {MWMS} and {DDP}: contradict each other"),
    ({DATA_PARALLEL: True}, f"{DATA_PARALLEL}: asks for SageMaker's data parallel library"),
    ({XLA: True}, f"{XLA}: asks for PyTorch/XLA workers"),
    ({MPI: True, "mp_parameters": {"a": 1}}, "mp_parameters: asks for SageMaker's model parallel"),
]


@pytest.mark.parametrize(("hyperparameters", "why"), REFUSED, ids=[row[1] for row in REFUSED])
def test_what_cannot_be_is_refused_in_one_sentence(hyperparameters: Any, why: str) -> None:
    given = job(["a", "b"], "a", hyperparameters)
    with pytest.raises(ConfigError) as caught:
        distribution.plan(given, CPU)
    (problem,) = caught.value.problems
    assert problem.startswith(f"hyperparameters: {why}")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("hosts", "hyperparameters", "environ"),
    [
        (["a", "b"], {"mp_parameters": {"a": 1}}, {}),
        (["a", "b"], {MPI: True, "mp_parameters": {}}, {}),
        (["a"], {PS: True, MPI: True}, {}),
        (["a", "b"], {TORCH: True, DDP: True}, {}),
        (["a"], {DATA_PARALLEL: True}, {"SAGEMAKER_TRAINING_MODULE": "my.training:main"}),
    ],
)
def test_what_does_not_contradict_is_not_refused(
    hosts: list[str], hyperparameters: Any, environ: Any
) -> None:
    assert distribution.problems(job(hosts, "a", hyperparameters, **environ)) == []


def test_an_evaluator_needs_a_chief() -> None:
    given = job(["a", "b"], "a", {PS: True}, SM_RUNTIME_PARAMETER_SERVER_EVALUATOR="1")
    (problem,) = distribution.problems(given)
    assert problem.startswith("options: parameter_server_evaluator: needs")


def test_a_framework_hook_decides_by_itself() -> None:
    hook = {"SAGEMAKER_TRAINING_MODULE": "my.training:main"}
    given = job(["a", "b"], "b", {MPI: True, TORCH: True}, **hook)
    assert distribution.plan(given, CPU).kind == "plain"
