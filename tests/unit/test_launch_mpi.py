"""mpirun's command line: the toolkit's by golden files, and a user's options in place of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sm_runtime.errors import LaunchError
from sm_runtime.launch import distribution, mpirun
from sm_runtime.launch.mpirun import Launch
from sm_runtime.model import Cluster, Hardware, Job
from sm_runtime.paths import Paths

GOLDEN = Path(__file__).parent / "golden" / "mpirun.json"
CASES = json.loads(GOLDEN.read_text())
PROGRAM = ("python3", "train.py", "--epochs", "1")
LEFT_OUT = {
    "--display-map": "the log names hosts and ranks",
    "--tag-output": "it breaks lines: each rank tags its own",
    "-x LD_LIBRARY_PATH": "each host has its own",
    "-x PATH": "each host has its own",
    "-x LD_PRELOAD=gethostname.so": "Open MPI knows a host by its address",
}
"""What the toolkit's command has and ours has not."""


def job(
    hosts: tuple[str, ...] = ("algo-1", "algo-2"),
    instance_type: str = "local",
    options: str = "",
    **more: Any,
) -> Job:
    return Job(
        paths=Paths(),
        cluster=Cluster(current_host=hosts[0], hosts=hosts, current_instance_type=instance_type),
        framework_parameters={
            "sagemaker_mpi_enabled": True,
            "sagemaker_mpi_custom_mpi_options": options,
            **more,
        },
    )


def launch(given: Job, interface: str = "eth0", **more: Any) -> Launch:
    plan = distribution.plan(given, Hardware(cpus=2))
    settings: dict[str, Any] = {"agent": ("agent",), "environ": {}, "program": PROGRAM, **more}
    return mpirun.command(given, plan, interface=interface, **settings)


def words(run: Launch) -> list[str]:
    return [" ".join(flag.tokens) for flag in run.flags]


def grouped(argv: list[str]) -> list[str]:
    """Join each option of the toolkit's command with its values; every value stands apart."""
    found: list[str] = []
    for word in argv[1:]:
        if word.startswith("-"):
            found.append(word)
        else:
            found[-1] += f" {word}"
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_command_is_the_toolkits_but_for_what_is_listed(case: Any) -> None:
    given = job(
        tuple(case["hosts"]),
        case["instance_type"],
        case["options"],
        sagemaker_mpi_num_of_processes_per_host=case["processes_per_host"],
        sagemaker_mpi_num_processes=case["processes"],
    )
    run = launch(given, case["interface"])
    ours = [" ".join(flag.tokens) for flag in run.flags if flag.origin != "runtime"]
    assert ours == [word for word in grouped(case["argv"]) if word not in LEFT_OUT]
    tokens = tuple(token for flag in run.flags for token in flag.tokens)
    assert run.argv == ("mpirun", *tokens, *PROGRAM)
    assert run.environ == {}


REPLACED = [
    ("-map-by socket", "-map-by", "-map-by socket"),
    ("--map-by ppr:2:node", "-map-by", "--map-by ppr:2:node"),
    ("-npernode 2", "-map-by", "-npernode 2"),
    ("--rankfile /r", "-map-by", "--rankfile /r"),
    ("--bind-to core", "-bind-to", "--bind-to core"),
    ("-bind-to-socket", "-bind-to", "-bind-to-socket"),
    ("-np 3", "-np", "-np 3"),
    ("-n 3", "-np", "-n 3"),
    ("-c 3", "-np", "-c 3"),
    ("-H algo-1:1,algo-2:3", "--host", "-H algo-1:1,algo-2:3"),
    ("-mca btl self,tcp", "-mca btl ", "-mca btl self,tcp"),
    ("--mca btl self,tcp", "-mca btl ", "--mca btl self,tcp"),
    ("--gmca pml ucx", "-mca pml", "--gmca pml ucx"),
    ("-mca btl_tcp_if_exclude lo", "-mca btl_tcp_if", "-mca btl_tcp_if_exclude lo"),
    ("-mca oob_tcp_if_include ens5", "-mca oob_tcp_if", "-mca oob_tcp_if_include ens5"),
    ("-x NCCL_DEBUG=WARN", "-x NCCL_DEBUG", "-x NCCL_DEBUG=WARN"),
    ("-x NCCL_SOCKET_IFNAME", "-x NCCL_SOCKET_IFNAME", "-x NCCL_SOCKET_IFNAME"),
    ("-x FI_PROVIDER=tcp", "-x FI_PROVIDER", "-x FI_PROVIDER=tcp"),
    ("--NCCL_DEBUG WARN", "-x NCCL_DEBUG", "-x NCCL_DEBUG=WARN"),
    ("--NCCL_DEBUG=WARN", "-x NCCL_DEBUG", "-x NCCL_DEBUG=WARN"),
    ("--NCCL=WARN", "-x NCCL_DEBUG", "-x NCCL_DEBUG=WARN"),
    ("--NCCL_DEBUG=INFO -x NCCL_DEBUG=WARN", "-x NCCL_DEBUG", "-x NCCL_DEBUG=WARN"),
    ("-mca btl self -mca btl tcp,self", "-mca btl ", "-mca btl tcp,self"),
]


@pytest.mark.parametrize(("options", "ours", "left"), REPLACED, ids=lambda value: str(value))
def test_a_users_option_takes_the_place_of_ours(options: str, ours: str, left: str) -> None:
    default = words(launch(job(instance_type="ml.p4d.24xlarge")))
    found = words(launch(job(instance_type="ml.p4d.24xlarge", options=options)))
    place = next(i for i, word in enumerate(default) if word.startswith(ours))
    assert found == [*default[:place], left, *default[place + 1 :]]


def test_the_row_of_the_custom_options_holds_one_of_each() -> None:
    run = launch(job(options="-map-by socket -x A=1"))
    assert run.argv.count("-map-by") == 1
    origins = {" ".join(flag.tokens): flag.origin for flag in run.flags}
    assert origins["-map-by socket"] == origins["-x A=1"] == mpirun.OPTIONS
    assert origins["-mca pml ob1"] == "default"


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ("-x 'A=a b' -x \"B=c  d\"", ["-x A=a b", "-x B=c  d"]),
        ("-mca x -1 -verbose", ["-mca x -1", "-verbose"]),
        ("--vendor-option a b -x A=1", ["--vendor-option a b", "-x A=1"]),
        ("-x SM_HOSTS -x SM_CURRENT_HOST -x FOO -x SM_MINE=1", ["-x FOO", "-x SM_MINE=1"]),
    ],
)
def test_options_are_read_as_meant(options: str, flags: list[str]) -> None:
    default = words(launch(job()))
    assert words(launch(job(options=options))) == [*default, *flags]


def test_a_secret_value_is_in_no_argument() -> None:
    run = launch(job(options="-x API_TOKEN=kq83hf72hx9v -x FOO=1"))
    assert "kq83hf72hx9v" not in " ".join(run.argv)
    assert run.environ == {"API_TOKEN": "kq83hf72hx9v"}
    assert "-x API_TOKEN" in words(run) and "-x FOO=1" in words(run)


def test_what_the_jobs_environment_says_is_no_default() -> None:
    environ = {"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": "ib0", "OMPI_MCA_pml": "ucx"}
    found = words(launch(job(), environ=environ))
    dropped = ["-mca pml ob1", "-x NCCL_SOCKET_IFNAME=eth0", "-x NCCL_DEBUG=INFO"]
    assert found == [word for word in words(launch(job())) if word not in dropped]


def test_a_network_names_no_device() -> None:
    found = words(launch(job(), "10.0.0.0/24"))
    assert "-mca btl_tcp_if_include 10.0.0.0/24" in found
    assert not [word for word in found if "NCCL_SOCKET_IFNAME" in word]


def test_names_with_dots_are_kept_whole() -> None:
    option = "-mca orte_keep_fqdn_hostnames 1"
    assert option not in words(launch(job()))
    assert option in words(launch(job(("a.jobs.local", "b.jobs.local"))))


def test_open_mpis_own_files_go_where_they_shall() -> None:
    assert "-mca orte_tmpdir_base /run/x" in words(launch(job(), folder="/run/x"))


@pytest.mark.parametrize("agent", [("a b",), ("agent", ""), ("agent", "x\n")])
def test_an_agent_that_open_mpi_would_split_is_an_error(agent: tuple[str, ...]) -> None:
    with pytest.raises(LaunchError, match="blanks"):
        launch(job(), agent=agent)


WRONG = [
    ("-x 'A", "No closing quotation"),
    ("-mca btl", "-mca lacks its value"),
    ("--NCCL_DEBUG", "--NCCL_DEBUG lacks its value"),
    ("python train.py", "'python' belongs to no option"),
    ("-hostfile /h", "-hostfile /h: the hosts are those of resourceconfig.json"),
    ("-machinefile /h", "-machinefile /h: the hosts"),
    ("-H algo-1:2,other", "--host: other: none of algo-1, algo-2"),
    ("-mca plm_rsh_agent ssh", "-mca plm_rsh_agent ssh: hosts are reached over"),
    ("-mca pls_rsh_agent ssh", "hosts are reached over"),
    ("--launch-agent /x", "hosts are reached over"),
    ("-mca plm slurm", "hosts are reached over"),
    ("--version", "--version: it would take the place of the training"),
]


@pytest.mark.parametrize(("options", "why"), WRONG)
def test_what_cannot_be_followed_is_said_before_anything_starts(options: str, why: str) -> None:
    (problem,) = distribution.problems(job(options=options))
    assert problem.startswith("hyperparameters: sagemaker_mpi_custom_mpi_options: ")
    assert why in problem
