"""mpirun's command line: the toolkit's by golden files, and a user's options in place of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sm_runtime.job.errors import LaunchError
from sm_runtime.job.model import Cluster, Hardware, Job, Paths
from sm_runtime.launch import distribution, mpirun
from sm_runtime.launch.mpirun import Launch

GOLDEN = Path(__file__).parents[1] / "golden" / "mpirun.json"
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
    ("-H algo-2,algo-1", "--host", "-H algo-2,algo-1"),
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
        (
            "-x SM_HOSTS -x SLURM_NODEID -x FOO -x SM_MINE=1",
            ["-x FOO", "-x SM_MINE=1"],
        ),
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


GIVEN = [
    ("OMPI_MCA_btl_tcp_if_exclude", "-mca btl_tcp_if_include eth0"),
    ("OMPI_MCA_btl_tcp_if_include", "-mca btl_tcp_if_include eth0"),
    ("OMPI_MCA_oob_tcp_if_exclude", "-mca oob_tcp_if_include eth0"),
    ("OMPI_MCA_oob_tcp_exclude", "-mca oob_tcp_if_include eth0"),
    ("OMPI_MCA_oob_tcp_include", "-mca oob_tcp_if_include eth0"),
    ("OMPI_MCA_rmaps_base_mapping_policy", "-map-by slot"),
    ("OMPI_MCA_hwloc_base_binding_policy", "-bind-to none"),
]


@pytest.mark.parametrize(("name", "default"), GIVEN)
def test_a_variable_that_says_the_same_or_the_opposite_leaves_a_default_out(
    name: str, default: str
) -> None:
    found = words(launch(job(), environ={name: "lo"}))
    assert found == [word for word in words(launch(job())) if word != default]
    assert len(found) == len(words(launch(job()))) - 1


def test_what_the_leaders_parameter_files_set_is_no_default(
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = {"OMPI_MCA_btl": "^uct,openib,ofi", "OMPI_MCA_btl_tcp_if_exclude": "lo"}
    found = words(launch(job(), files=files))
    dropped = ["-mca btl ^openib", "-mca btl_tcp_if_include eth0"]
    assert found == [word for word in words(launch(job())) if word not in dropped]
    run = launch(job(), files={"OMPI_MCA_plm_rsh_args": "-p 2222"})
    assert run.environ == {"OMPI_MCA_plm_rsh_args": ""}
    (line,) = caplog.messages
    assert line.startswith("Open MPI's files: plm_rsh_args is left out: ")


def test_hosts_are_called_what_open_mpi_can_use() -> None:
    hosts, names = ("my_1", "my_2"), {"my_1": "10.0.0.1", "my_2": "10.0.0.2"}
    each = {"sagemaker_mpi_num_of_processes_per_host": 2}
    assert "--host 10.0.0.1:2,10.0.0.2:2" in words(launch(job(hosts, **each), names=names))
    options = "-H my_2:*,my_1,my_2:1"
    found = words(launch(job(hosts, options=options), names=names))
    assert found[0] == "-H 10.0.0.2:*,10.0.0.1,10.0.0.2:1"
    assert distribution.problems(job(hosts, options=options)) == []
    dotted = {"a.b": "10.0.0.1", "a.c": "10.0.0.2"}
    option = "-mca orte_keep_fqdn_hostnames 1"
    assert option not in words(launch(job(tuple(dotted)), names=dotted))


SLOTS = [
    ("--host algo-2:1,algo-1:1", {}, "-np 2"),
    ("-H algo-1:1,algo-2:3", {}, "-np 4"),
    ("-H algo-1,algo-2", {}, "-np 2"),
    ("-H algo-1,algo-1,algo-2:2", {}, "-np 4"),
    ("-H algo-1:2", {}, "-np 2"),
    ("-H algo-1:2 -H algo-2:3", {}, "-np 3"),
    ("-H algo-1:*,algo-2:1", {}, None),
    ("-H algo-1:1,algo-2:1 -np 1", {}, "-np 1"),
    ("-H algo-1:1,algo-2:4", {"sagemaker_mpi_num_processes": 3}, "-np 3"),
    ("-map-by node", {}, "-np 16"),
]


@pytest.mark.parametrize(("options", "more", "count"), SLOTS)
def test_the_number_of_processes_follows_the_slots_that_a_user_gives(
    options: str, more: dict[str, Any], count: str | None
) -> None:
    given = job(options=options, sagemaker_mpi_num_of_processes_per_host=8, **more)
    found = [word for word in words(launch(given)) if word.startswith("-np")]
    assert found == ([count] if count else [])


NETWORKS = [
    (["10.0.0.1", "10.0.0.2"], "10.0.0.0/24", "10.0.0.0/24"),
    (["10.77.0.1", "10.77.0.2"], "10.77.0.1/32", "10.77.0.0/30"),
    (["10.77.0.1", "10.77.9.2", "10.77.3.3"], "10.77.0.0/24", "10.77.0.0/20"),
    (["10.0.0.1"], None, "10.0.0.1/32"),
    (["127.0.0.1", "127.0.0.2"], "127.0.0.0/8", None),
    (["10.0.0.1", "172.16.0.1"], "10.0.0.0/24", None),
    (["fd00::1", "fd00::2"], None, None),
    ([], None, None),
]


@pytest.mark.parametrize(("addresses", "own", "expected"), NETWORKS)
def test_hosts_whose_interfaces_differ_share_the_smallest_network_that_has_them_all(
    addresses: list[str], own: str | None, expected: str | None
) -> None:
    assert mpirun.shared_network(addresses, own) == expected


BOTH = "-mca btl_tcp_if_include eth0,ens5 -mca oob_tcp_if_exclude lo"


def chosen(second: str, address: str, options: str = "", **environ: str) -> str:
    return mpirun.interface(
        job(options=options),
        environ,
        interfaces={"algo-1": "eth0", "algo-2": second},
        addresses={"algo-1": "10.0.0.1", "algo-2": address},
        own="10.0.0.1/32",
    )


def test_interfaces_of_one_name_are_named_and_others_by_their_network() -> None:
    assert chosen("eth0", "172.16.0.1") == "eth0"
    assert chosen("ens5", "10.0.0.2") == "10.0.0.0/30"
    assert chosen("ens5", "172.16.0.1", BOTH) == "10.0.0.1/32"
    assert chosen("ens5", "::1", OMPI_MCA_btl_tcp_if_exclude="lo", OMPI_MCA_oob_tcp_include="x")


@pytest.mark.parametrize("options", ["", "-mca btl_tcp_if_include eth0,ens5"])
def test_interfaces_that_nothing_names_are_an_error(options: str) -> None:
    with pytest.raises(
        LaunchError, match=r"10\.0\.0\.1 \(eth0\) on algo-1, 172\.16\.0\.1 \(ens5\)"
    ):
        chosen("ens5", "172.16.0.1", options)


def test_a_network_names_no_device() -> None:
    found = words(launch(job(), "10.0.0.0/24"))
    assert "-mca btl_tcp_if_include 10.0.0.0/24" in found
    assert not [word for word in found if "NCCL_SOCKET_IFNAME" in word]


def test_names_with_dots_are_kept_whole() -> None:
    option = "-mca orte_keep_fqdn_hostnames 1"
    assert option not in words(launch(job()))
    assert option in words(launch(job(("a.jobs.local", "b.jobs.local"))))


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
    ("-H algo-1:2,other", "--host: other: not among algo-1, algo-2"),
    ("--version", "--version: it would take the place of the training"),
]


@pytest.mark.parametrize(("options", "why"), WRONG)
def test_what_cannot_be_followed_is_said_before_anything_starts(options: str, why: str) -> None:
    (problem,) = distribution.problems(job(options=options))
    assert problem.startswith("hyperparameters: sagemaker_mpi_custom_mpi_options: ")
    assert why in problem


BREAKING = [
    ("-mca plm_rsh_agent ssh", "-mca plm_rsh_agent"),
    ("-mca pls_rsh_agent ssh", "-mca pls_rsh_agent"),
    ("-mca orte_rsh_agent ssh", "-mca orte_rsh_agent"),
    ("-mca plm_rsh_args '-p 2222'", "-mca plm_rsh_args"),
    ("--mca pls_rsh_args -q", "--mca pls_rsh_args"),
    ("-gmca plm_rsh_args -q", "-gmca plm_rsh_args"),
    ("-omca plm_rsh_args -q", "-omca plm_rsh_args"),
    ("-mca plm_rsh_no_tree_spawn 0", "-mca plm_rsh_no_tree_spawn"),
    ("-mca orte_leave_session_attached 0", "-mca orte_leave_session_attached"),
    ("-mca plm slurm", "-mca plm"),
    ("--mca pls rsh", "--mca pls"),
    ("--launch-agent /x", "--launch-agent"),
    ("-mca orte_launch_agent /x", "-mca orte_launch_agent"),
    ("--prefix /usr", "--prefix"),
    ("-mca plm_rsh_pass_libpath /usr/lib", "-mca plm_rsh_pass_libpath"),
    ("--enable-orterun-prefix-by-default", "--enable-orterun-prefix-by-default"),
    ("--enable-mpirun-prefix-by-default", "--enable-mpirun-prefix-by-default"),
]


@pytest.mark.parametrize(("options", "named"), BREAKING)
def test_an_option_that_would_break_the_launch_is_left_out_and_that_is_said_once(
    options: str, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = job(options=f"{options} -x FOO=1")
    assert distribution.problems(given) == []
    assert words(launch(given)) == [*words(launch(job())), "-x FOO=1"]
    (line,) = caplog.messages
    assert line.startswith(f"sagemaker_mpi_custom_mpi_options: {named} is left out: ")


def test_an_option_that_says_what_the_runtime_does_is_no_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = "-mca plm_rsh_no_tree_spawn 1 -mca orte_leave_session_attached true"
    assert words(launch(job(options=options))) == words(launch(job()))
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["plm_rsh_args", "pls_rsh_args", "plm_rsh_pass_libpath"])
def test_a_variable_that_would_break_the_launch_is_emptied_and_that_is_said(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = launch(job(), environ={f"OMPI_MCA_{name}": "-p 2222", "OMPI_MCA_pml_verbose": "1"})
    assert run.environ == {f"OMPI_MCA_{name}": ""}
    (line,) = caplog.messages
    assert line.startswith(f"environment: OMPI_MCA_{name} is left out: ")


def test_a_variable_cannot_have_hosts_reached_by_way_of_each_other() -> None:
    environ = {"OMPI_MCA_plm_rsh_no_tree_spawn": "0"}
    assert words(launch(job(), environ=environ)) == words(launch(job()))
