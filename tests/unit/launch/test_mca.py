"""Which MCA parameters are set by files and by hosts, and which host names Open MPI accepts."""

from __future__ import annotations

from typing import Any

import pytest

from sm_runtime.job.model import Cluster, Hardware, Job, Paths
from sm_runtime.launch import distribution, mpirun, open_mpi
from sm_runtime.launch.open_mpi import HostParameters, file_variables, of_engines, unmanaged

LINES = [
    ("btl = self,tcp", {"btl": "self,tcp"}),
    ("  btl=^uct,openib,ofi  \npml\t=\t^ucx", {"btl": "^uct,openib,ofi", "pml": "^ucx"}),
    ("# btl = self\n#pml=ob1\n\n", {}),
    ("btl_base_warn_component_unused=0", {"btl_base_warn_component_unused": "0"}),
    ("btl =", {"btl": ""}),
    ("a sentence = 1\nno assignment\n= x", {}),
    ("-mca btl self -x A=1 --mca pml ob1", {"btl": "self", "pml": "ob1"}),
    ("-mca btl 'self", {}),
    ("btl = self\nbtl = tcp", {"btl": "tcp"}),
]


@pytest.mark.parametrize(("text", "expected"), LINES)
def test_a_parameter_file_says_the_same_as_variables(text: str, expected: dict[str, str]) -> None:
    assert file_variables(text) == {f"OMPI_MCA_{name}": value for name, value in expected.items()}


def test_a_hosts_own_parameters_count_more_than_the_leaders() -> None:
    own = HostParameters(
        values={"OMPI_MCA_btl": None, "OMPI_MCA_pml": "ucx"},
        defaults={"OMPI_MCA_btl_tcp_if_include": "eth0", "OMPI_MCA_osc": "rdma"},
    )
    leaders = {"OMPI_MCA_btl": "^openib", "OMPI_MCA_pml": "ob1", "A": "1"}
    both = {"A": "1", "OMPI_MCA_pml": "ucx", "OMPI_MCA_osc": "rdma"}
    assert own.applied(leaders) == both | {"OMPI_MCA_btl_tcp_if_include": "eth0"}
    # Not beside what says the opposite, which Open MPI refuses.
    exclude = {"OMPI_MCA_btl_tcp_if_exclude": "lo"}
    assert own.applied(leaders | exclude) == both | exclude
    assert own.variables == {"OMPI_MCA_pml": "ucx"}


def test_a_daemon_gets_no_parameter_that_its_host_decides() -> None:
    own = HostParameters(values={"OMPI_MCA_btl": None})
    argv = ("orted", "-mca", "btl", "^openib", "-mca", "ess", "env", "--mca", "btl", "x", "-mca")
    assert own.without(argv) == ("orted", "-mca", "ess", "env", "-mca")


def job(options: str = "", hosts: tuple[str, ...] = ("algo-1", "algo-2")) -> Job:
    return Job(
        paths=Paths(),
        cluster=Cluster(current_host=hosts[0], hosts=hosts),
        framework_parameters={
            "sagemaker_mpi_enabled": True,
            "sagemaker_mpi_custom_mpi_options": options,
        },
    )


def of_host(given: Job, **more: Any) -> HostParameters:
    plan = distribution.plan(given, Hardware(cpus=2))
    settings: dict[str, Any] = {"environ": {}, "files": {}, "names": {}, "hostname": "vm", **more}
    return mpirun.of_host(given, plan, **settings)


DEFAULTS = {
    "OMPI_MCA_btl": "^openib",
    "OMPI_MCA_btl_tcp_if_include": "eth0",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    "OMPI_MCA_oob_tcp_if_include": "eth0",
    "OMPI_MCA_pml": "ob1",
}


def test_a_host_of_which_nothing_is_known_has_the_defaults() -> None:
    found = of_host(job())
    assert (found.defaults, found.variables) == (DEFAULTS, {})


def test_what_a_host_sets_by_files_or_variables_is_no_default_there() -> None:
    files = {"OMPI_MCA_btl": "^uct", "OMPI_MCA_oob_tcp_if_exclude": "lo"}
    found = of_host(job(), files=files, environ={"OMPI_MCA_pml": "ucx"})
    assert set(DEFAULTS) - set(found.defaults) == {
        "OMPI_MCA_btl",
        "OMPI_MCA_oob_tcp_if_include",
        "OMPI_MCA_pml",
    }
    leaders = found.applied(DEFAULTS)
    assert "OMPI_MCA_btl" not in leaders and "OMPI_MCA_oob_tcp_if_include" not in leaders
    assert leaders["OMPI_MCA_pml"] == "ucx"


def test_a_users_option_counts_on_every_host() -> None:
    files = {"OMPI_MCA_btl": "^uct"}
    found = of_host(job("-mca btl self,tcp"), files=files)
    assert "OMPI_MCA_btl" not in found.defaults
    assert found.applied({"OMPI_MCA_btl": "self,tcp"})["OMPI_MCA_btl"] == "self,tcp"


def test_options_that_name_parameter_files_are_found() -> None:
    given = job("-am a,b --tune /t -mca mca_base_param_files /f -mca btl self")
    assert mpirun.file_parameters(given) == {
        "OMPI_MCA_mca_base_param_file_prefix": "a,b",
        "OMPI_MCA_mca_base_envar_file_prefix": "/t",
        "OMPI_MCA_mca_base_param_files": "/f",
    }


ACCEPTED = ["algo-1", "1", "a.b-c", "-x", "A1b", "x" * 49, "x" * 49 + "1yz", "1" + "x" * 60]
REFUSED = ["my_trainer_1", "", "a:1", "a b", "é1", "a[1]", "+n0", "x" * 50, "x" * 50 + "1"]


@pytest.mark.parametrize("name", ACCEPTED)
def test_names_that_open_mpi_accepts_stay(name: str) -> None:
    assert open_mpi.is_accepted_name(name)
    assert open_mpi.host_names([name, "b"], {}) == {name: name, "b": "b"}


@pytest.mark.parametrize("name", REFUSED)
def test_of_a_name_that_open_mpi_refuses_all_hosts_get_addresses(name: str) -> None:
    addresses = {name: "10.0.0.1", "b": "10.0.0.2"}
    assert not open_mpi.is_accepted_name(name)
    assert open_mpi.host_names([name, "b"], addresses) == addresses
    assert open_mpi.host_names([name], {}) == {name: "localhost"}


@pytest.mark.parametrize("second", ["10.0.0.1", "fd00::2", "", "10.0.0.256", "10.0.0"])
def test_names_stay_where_there_are_no_addresses_for_each(second: str) -> None:
    same = {"a_1": "a_1", "a_2": "a_2"}
    assert open_mpi.host_names(same, {"a_1": "10.0.0.1", "a_2": second}) == same


STRIPPED = [
    ("algo-1", False, None, "algo-1"),
    ("my_trainer_1", False, "m", "1"),
    ("my_trainer_10", False, "m", "10"),
    ("my_trainer_0", False, "my_trainer_", "0"),
    ("a_worker-x", False, "a_", "worker-x"),
    ("x" * 63, False, "x" * 14, "x" * 49),
    ("a_b.example", False, "a_", "b"),
    ("a.x_y", False, None, "a.x_y"),
    ("a.x_y", True, "a.x_", "y"),
    ("trainer_", False, None, "trainer_"),
]


@pytest.mark.parametrize(("hostname", "whole", "prefix", "left"), STRIPPED)
def test_a_machines_name_is_shortened_to_what_open_mpi_accepts(
    hostname: str, whole: bool, prefix: str | None, left: str
) -> None:
    assert open_mpi.strip_prefix(hostname, whole=whole) == prefix
    if prefix:
        name = hostname if whole else hostname.partition(".")[0]
        assert open_mpi.stripped_name(name, prefix) == left


WHOLE = [
    ({}, "", None),
    ({}, "-mca orte_keep_fqdn_hostnames 1", "a.x_"),
    ({}, "-mca orte_keep_fqdn_hostnames 0", None),
    ({"OMPI_MCA_orte_keep_fqdn_hostnames": "true"}, "", "a.x_"),
    ({"OMPI_MCA_orte_strip_prefix": "a."}, "", "a."),
    ({}, "-mca orte_strip_prefix b", None),
]


@pytest.mark.parametrize(("environ", "options", "prefix"), WHOLE)
def test_a_machines_name_is_taken_as_open_mpi_takes_it(
    environ: dict[str, str], options: str, prefix: str | None
) -> None:
    found = of_host(job(options), environ=environ, hostname="a.x_y")
    assert found.variables.get("OMPI_MCA_orte_strip_prefix") == prefix


def test_dots_in_the_names_of_hosts_keep_the_machines_name_whole() -> None:
    hosts = ("a.x", "b.x")
    prefix = "OMPI_MCA_orte_strip_prefix"
    assert of_host(job(hosts=hosts), hostname="a.x_y").variables == {prefix: "a.x_"}
    addresses = {"a.x": "10.0.0.1", "b.x": "10.0.0.2"}
    assert of_host(job(hosts=hosts), hostname="a.x_y", names=addresses).variables == {}


RESTORED = [
    ("node 10.0.0.1 is lost.", "node my_1 is lost."),
    ("10.0.0.1: no; 10.0.0.11, 10.0.0.2.", "my_1: no; my_11, 10.0.0.2."),
    ("in 10.0.0.1.5 and 110.0.0.1", "in 10.0.0.1.5 and 110.0.0.1"),
]


@pytest.mark.parametrize(("text", "expected"), RESTORED)
def test_messages_of_open_mpi_name_hosts_as_the_user_does(text: str, expected: str) -> None:
    names = {"my_1": "10.0.0.1", "my_11": "10.0.0.11", "b": "b"}
    assert open_mpi.restored_names(text, names) == expected
    assert open_mpi.restored_names(text, {"b": "b"}) == text


def test_open_mpi_sees_nothing_of_what_has_started_the_runtime() -> None:
    environ = {
        "SLURM_JOB_ID": "1",
        "SLURM_TASKS_PER_NODE": "1(x2)",
        "PMI_RANK": "0",
        "PMI2_X": "0",
        "PMIX_NAMESPACE": "slurm.pmix.1.0",
        "PMIX_MCA_gds": "hash",
        "SLURMD_NODENAME": "n1",
        "PATH": "/bin",
    }
    kept = {"PMIX_MCA_gds": "hash", "SLURMD_NODENAME": "n1", "PATH": "/bin"}
    patience = "OMPI_MCA_odls_base_sigkill_timeout"
    assert unmanaged(environ) == {patience: "0", **kept}
    assert unmanaged({patience: "5"}) == {patience: "5"}, "a user's own setting is the user's"
    assert of_engines(environ) == {"SLURM_JOB_ID": "1", "SLURM_TASKS_PER_NODE": "1(x2)"}
