"""torchrun, launcher templates, and what ``sm-runtime env --launch`` says about each way."""

from __future__ import annotations

from typing import Any

import pytest

from sm_runtime import check
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.model import Cluster, Entry, Hardware, Job, Options, Paths
from sm_runtime.launch import commands, distribution
from sm_runtime.launch.distribution import Plan, Role

PYTHON = "/usr/bin/python3"
SCRIPT = (PYTHON, "train.py", "--epochs", "1", "")
ARGUMENTS = ("--epochs", "1", "")
MODULE = (PYTHON, "-m", "pkg.train", *ARGUMENTS)
FUNCTION = (PYTHON, "-c", "import sys; ...", *ARGUMENTS)
SHELL = ("/bin/bash", "./train.sh", *ARGUMENTS)
BINARY = ("./train", *ARGUMENTS)
TORCH = "sagemaker_torch_distributed_enabled"
SCRIPT_ROLE = Role(name="script")


def job(
    hosts: tuple[str, ...] = ("algo-1", "algo-2"),
    host: str = "algo-1",
    launcher: tuple[str, ...] = (),
    instance_type: str = "local",
    **parameters: Any,
) -> Job:
    cluster = Cluster(current_host=host, hosts=hosts, current_instance_type=instance_type)
    return Job(
        paths=Paths(),
        cluster=cluster,
        framework_parameters=parameters,
        options=Options(launcher=launcher),
    )


def command(
    given: Job, program: tuple[str, ...], devices: Hardware | None = None, **more: Any
) -> tuple[str, ...]:
    devices = devices or Hardware(cpus=8, gpus=4)
    plan = distribution.plan(given, devices)
    return distribution.script_argv(
        given,
        plan,
        Entry(program=program[: len(program) - len(ARGUMENTS)], arguments=ARGUMENTS),
        devices,
        PYTHON,
        **more,
    )


def launcher(given: Job, program: tuple[str, ...] = SCRIPT, **more: Any) -> str:
    plan = distribution.plan(given, Hardware(cpus=8, gpus=4))
    return " ".join(commands.torchrun_command(plan, program, PYTHON, **more))


@pytest.mark.parametrize("program", [SCRIPT, MODULE, FUNCTION, SHELL, BINARY])
def test_torchrun_runs_any_program(program: tuple[str, ...]) -> None:
    given = job(("a",), "a", **{TORCH: True})
    head = "torchrun --nnodes 1 --nproc_per_node 4 --monitor_interval 0.1 --no_python "
    assert launcher(given, program) == head + " ".join(program)
    assert command(given, program) == program  # what each of its processes has the runtime start


def test_torchrun_meets_at_the_leader() -> None:
    given = job(host="algo-2", **{TORCH: True, "sagemaker_mpi_num_of_processes_per_host": 2})
    assert launcher(given).startswith(
        "torchrun --nnodes 2 --nproc_per_node 2 --master_addr algo-1 --master_port 7777"
        " --node_rank 1 --monitor_interval"
    )
    assert "--master_port 7780 " in launcher(given, port=7780)


def test_the_hosts_meet_at_the_port_that_the_leader_has_free() -> None:
    plan = distribution.plan(job(host="algo-2", **{TORCH: True}), Hardware(cpus=8))
    assert distribution.rendezvous_port(plan) == 7777
    assert distribution.rendezvous_port(plan, {"rendezvous": {"algo-1": 7780, "algo-2": 9}}) == 7780


@pytest.mark.parametrize("value, words", [("1", "neuron_parallel_compile "), ("0", ""), ("", "")])
def test_neurons_compiler_stands_before_it_where_that_is_asked_for(value: str, words: str) -> None:
    environ = {"RUN_NEURON_PARALLEL_COMPILE": value}
    found = launcher(job(("a",), "a", **{TORCH: True}), environ=environ)
    assert found.startswith(f"{words}torchrun --nnodes")


def test_torchrun_is_a_module_where_it_is_not_on_the_path() -> None:
    found = launcher(job(("a",), "a", **{TORCH: True}), installed=False)
    assert found.startswith(f"{PYTHON} -m torch.distributed.run --nnodes ")


DEVICES = dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"), "eth0")
BASE = {**DEVICES, "NCCL_PROTO": "simple"}
RDMA = {"FI_EFA_USE_DEVICE_RDMA": "1", "RDMAV_FORK_SAFE": "1"}


@pytest.mark.parametrize(
    ("instance_type", "environ", "expected"),
    [
        ("ml.p3.16xlarge", {}, BASE),
        ("ml.g5.48xlarge", {}, {**BASE, "FI_PROVIDER": "efa"}),
        ("ml.p4d.24xlarge", {}, {**BASE, "FI_PROVIDER": "efa", **RDMA}),
        ("local", {"NCCL_PROTO": "LL", "X": "1"}, DEVICES),
    ],
)
def test_torchruns_processes_get_what_the_toolkit_sets(
    instance_type: str, environ: dict[str, str], expected: dict[str, str]
) -> None:
    given = job(instance_type=instance_type, **{TORCH: True})
    plan = distribution.plan(given, Hardware(cpus=1))
    assert distribution.role_variables(given, plan, SCRIPT_ROLE, environ) == expected


def test_a_device_that_is_chosen_wins_over_the_configured_one() -> None:
    given = job(**{"sagemaker_mpi_enabled": True})
    plan = distribution.plan(given, Hardware(cpus=1))
    found = distribution.role_variables(given, plan, SCRIPT_ROLE, {}, interface="ens5")
    assert found == {"NCCL_SOCKET_IFNAME": "ens5", "HOROVOD_GLOO_IFACE": "ens5"}
    users = {"NCCL_SOCKET_IFNAME": "ib0", "HOROVOD_GLOO_IFACE": "ib0"}
    assert distribution.role_variables(given, plan, SCRIPT_ROLE, users, interface="ens5") == {}


def test_a_plain_process_gets_nothing() -> None:
    given = job()
    plan = distribution.plan(given, Hardware(cpus=1))
    assert command(given, SCRIPT) == SCRIPT
    assert distribution.role_variables(given, plan, SCRIPT_ROLE, {}) == {}


TEMPLATES = [
    (("torchrun", "--nproc_per_node", "{num_gpus}", "{script}", "{args}"), SCRIPT,
     ("torchrun", "--nproc_per_node", "4", "train.py", *ARGUMENTS)),
    (("deepspeed", "--num_gpus={num_gpus}", "{script}"), SCRIPT,
     ("deepspeed", "--num_gpus=4", "train.py")),
    (("{python}", "-m", "{module}", "{args}"), MODULE, MODULE),
    (("nice", "{command}"), MODULE, ("nice", *MODULE)),
    (("nice", "{command}"), FUNCTION, ("nice", *FUNCTION)),
    (("bash", "-eu", "{script}", "{args}"), SHELL, ("bash", "-eu", "./train.sh", *ARGUMENTS)),
    (("x", "{script}"), BINARY, ("x", "./train")),
    (("x", "{num_cpus}/{processes_per_host}/{processes}"), SCRIPT, ("x", "8/4/8")),
    (("x", "{hosts} {num_hosts} {host_rank}"), SCRIPT, ("x", "algo-1,algo-2 2 1")),
    (("x", "{leader}:{port}", "{current_host}"), SCRIPT, ("x", "algo-1:7777", "algo-2")),
    (("x", '{{"a": {{"b": {num_gpus}}}}}', "$HOME; ls *"), SCRIPT,
     ("x", '{"a": {"b": 4}}', "$HOME; ls *")),
    (("x", ""), SCRIPT, ("x", "")),
]  # fmt: skip


@pytest.mark.parametrize(("launcher", "program", "argv"), TEMPLATES)
def test_a_template_is_filled_in_word_by_word(
    launcher: tuple[str, ...], program: tuple[str, ...], argv: tuple[str, ...]
) -> None:
    assert command(job(host="algo-2", launcher=launcher), program) == argv


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("{nosuch}", "{nosuch} in '{nosuch}' is not one of {script}, {module}"),
        ("{}", "{} in '{}' is not one of"),
        ("--x={args}", "{args} in '--x={args}' stands for several words"),
        ("{script", "'{script' has a single '{'"),
        ('{"a": 1}', "a brace that is meant as such is doubled"),
    ],
)
def test_a_wrong_template_is_an_error_before_the_launch(word: str, why: str) -> None:
    (problem,) = distribution.problems(job(launcher=("x", word)))
    assert problem.startswith("options: launcher: ") and why in problem
    with pytest.raises(ConfigError):
        command(job(launcher=("x", word)), SCRIPT)


@pytest.mark.parametrize(
    ("word", "program"), [("{module}", SCRIPT), ("{script}", MODULE), ("{script}", FUNCTION)]
)
def test_a_template_that_does_not_fit_the_program_is_an_error(
    word: str, program: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="which is no"):
        command(job(launcher=("x", word)), program)


def test_a_template_and_a_key_contradict_each_other() -> None:
    given = job(launcher=("x",), **{TORCH: True})
    (problem,) = distribution.problems(given)
    assert problem.startswith(f"hyperparameters: {TORCH} and sagemaker_runtime_launcher: ")


def shown(given: Job, program: tuple[str, ...] = SCRIPT) -> list[str]:
    devices = Hardware(cpus=8, gpus=2)
    return check.launch_lines(
        given,
        devices,
        Entry(program=program[: len(program) - len(ARGUMENTS)], arguments=ARGUMENTS),
        {},
        PYTHON,
    )


def test_env_launch_says_where_each_option_of_mpirun_is_from() -> None:
    options = "-map-by socket"
    given = job(
        sagemaker_mpi_enabled=True,
        sagemaker_mpi_custom_mpi_options=options,
        instance_type="ml.p4d.24xlarge",
    )
    lines = [" ".join(line.split()) for line in shown(given)]
    assert lines[:3] == [
        "kind: mpi, by sagemaker_mpi_enabled",
        "hosts: algo-1, algo-2; the first leads",
        "processes: 2 on each host, 4 together",
    ]
    for line in (
        "--host algo-1:2,algo-2:2 # the job's hosts, the devices of a host",
        "-np 4 # hosts x processes per host",
        "-mca btl_tcp_if_include eth0 # network_interface_name",
        "-bind-to none # default",
        "-map-by socket # sagemaker_mpi_custom_mpi_options",
        "-x FI_PROVIDER=efa # instance type ml.p4d.24xlarge",
        "/usr/bin/python3 train.py --epochs 1 ''",
    ):
        assert line in lines
    assert sum("-map-by" in line for line in lines) == 1
    assert lines[-2:] == [
        "algo-2:",
        "what algo-1 starts here, with this host's own environment",
    ]


def test_env_launch_says_which_names_open_mpi_cannot_use() -> None:
    given = job(("my_1", "b"), "my_1", sagemaker_mpi_enabled=True)
    lines = shown(given)
    at = lines.index("  Open MPI cannot use the host name my_1:")
    assert lines[at + 1] == "  mpirun gets the addresses of the hosts"


def test_env_launch_shows_each_hosts_processes() -> None:
    lines = shown(job(sagemaker_parameter_server_enabled=True))
    assert lines[3].startswith("ports: 2222 for the script, 2223 for the server; ")
    config = (
        'TF_CONFIG={"cluster": {"master": ["algo-1:2222"], "ps": ["algo-1:2223", "algo-2:2223"],'
        ' "worker": ["algo-2:2222"]}, "environment": "cloud", "task": {"index": %d, "type": "%s"}}'
    )
    assert lines[-6:] == [
        "algo-2:",
        "  parameter server (ps 1)",
        "    " + config % (1, "ps"),
        "    CUDA_VISIBLE_DEVICES=-1",
        "  script (worker 0): /usr/bin/python3 train.py --epochs 1 ''",
        "    " + config % (0, "worker"),
    ]


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (
            job(("a",), "a"),
            ["kind: plain", "hosts: a", "", "a:", f"  script: {PYTHON} train.py --epochs 1 ''"],
        ),
        (
            job(("a", "b"), "a", ("nice", "{command}")),
            ["kind: template, by sagemaker_runtime_launcher", "hosts: a, b; the first leads"],
        ),
    ],
)
def test_env_launch_shows_the_other_ways(given: Job, lines: list[str]) -> None:
    assert shown(given)[: len(lines)] == lines


def test_a_plan_is_a_value() -> None:
    given = job(**{TORCH: True})
    found = distribution.plan(given, Hardware(cpus=1))
    assert found == distribution.plan(given, Hardware(cpus=1))
    assert found != Plan(kind="plain", host="algo-1", hosts=("algo-1",))
