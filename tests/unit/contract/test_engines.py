"""Hosts from an engine's own variables: what counts, and what is wrong with them."""

from __future__ import annotations

import pytest

from sm_runtime.contract.slurm import LARGEST, nodes
from tests.nodelists import LISTS, WRONG
from tests.unit.contract.test_load import RESOURCES, job, parse, problem

STEP = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NODEID": "1",
    "SLURMD_NODENAME": "n2",
}
"""The second of two nodes on which a step of a larger job runs."""


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in STEP.items() if name not in names}


# -- lists of nodes --------------------------------------------------------------------------


@pytest.mark.parametrize("text", LISTS)
def test_a_list_stands_for_the_nodes_that_scontrol_says(text: str) -> None:
    assert list(nodes(text)) == LISTS[text].split()


@pytest.mark.parametrize(
    "text", [*WRONG, "n[1-3", "n]1", "n1 n2", "n[[1]]", f"n[1-{LARGEST + 1}]", "a[1-999]b[1-999]"]
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no range|brackets or blanks|more than 65536 nodes"):
        nodes(text)


# -- Slurm -----------------------------------------------------------------------------------


def test_the_nodes_of_the_step_are_the_hosts() -> None:
    parsed = parse(STEP)
    assert parsed.job is not None
    cluster = parsed.job.cluster
    assert (cluster.hosts, cluster.current_host) == (("n1", "n2"), "n2")
    assert cluster.engine_job == "slurm 42.0"
    assert parsed.job.resource_config["hosts"] == ["n1", "n2"]
    assert parsed.notes == ("Slurm: 2 hosts, n2 is this one (SLURM_STEP_NODELIST=n[1-2])",)


@pytest.mark.parametrize("name", ["SLURMD_NODENAME", "SLURM_NODEID"])
def test_either_variable_says_which_node_this_is(name: str) -> None:
    assert job(without(name)).cluster.current_host == "n2"


def test_a_job_of_one_node_needs_no_step() -> None:
    environ = {"SLURM_JOB_NODELIST": "n7", "SLURM_NODEID": "0", "SLURM_NTASKS": "8"}
    parsed = parse(environ)
    assert parsed.job is not None and parsed.job.cluster.hosts == ("n7",)
    assert parsed.notes == ("Slurm: n7 (SLURM_JOB_NODELIST=n7)",)


def test_the_stop_of_slurm_is_shorter_and_reaches_all_processes() -> None:
    found = job(STEP)
    assert (found.options.stop_timeout_seconds, found.stop_grace_seconds) == (30, 20)
    assert job(STEP, job={}).stop_grace_seconds == 22.5
    assert found.signalled_whole
    longer = job({**STEP, "SM_RUNTIME_STOP_TIMEOUT_SECONDS": "300"})
    assert longer.options.stop_timeout_seconds == 300
    assert job().options.stop_timeout_seconds == 120
    assert not job().signalled_whole


def test_a_restart_is_told() -> None:
    notes = parse({**STEP, "SLURM_RESTART_COUNT": "2"}).notes
    assert "Slurm: job 42 was requeued, this is restart 2" in notes


WRONG_STEPS = {
    "SLURM_STEP_NODELIST: must be a list of nodes like n[1-3,7],m02: '2-1' is no range": {
        "SLURM_STEP_NODELIST": "n[2-1]"
    },
    "SLURM_STEP_NODELIST: names a node more than once": {"SLURM_STEP_NODELIST": "n1,n1"},
    "SLURM_STEP_NODELIST: names no node": {"SLURM_STEP_NODELIST": ","},
    "SLURM_STEP_NODELIST: is missing, but the job has 3 nodes: `srun": {"SLURM_STEP_NODELIST": ""},
    "SLURM_STEP_NUM_NODES: is 3, but SLURM_STEP_NODELIST names 2": {"SLURM_STEP_NUM_NODES": "3"},
    "SLURM_STEP_NUM_TASKS: is 8 for 2 nodes: the runtime is one task": {
        "SLURM_STEP_NUM_TASKS": "8"
    },
    "SLURM_STEP_NUM_TASKS: must be a whole number, not 'two'": {"SLURM_STEP_NUM_TASKS": "two"},
    "SLURMD_NODENAME: 'n3' is not one of SLURM_STEP_NODELIST=n[1-2]": {"SLURMD_NODENAME": "n3"},
    "SLURM_NODEID: is 2, and SLURM_STEP_NODELIST names 2": {
        "SLURMD_NODENAME": "",
        "SLURM_NODEID": "2",
    },
    "SLURM_NODEID: is missing, and SLURM_STEP_NODELIST names 2": {
        "SLURMD_NODENAME": "",
        "SLURM_NODEID": "",
    },
}


@pytest.mark.parametrize("sentence", WRONG_STEPS)
def test_variables_that_are_wrong_or_incomplete_are_one_sentence(sentence: str) -> None:
    found = problem({**STEP, **WRONG_STEPS[sentence]})
    assert found.startswith(f"environment: {sentence}")
    assert found.endswith("or SM_RUNTIME_ENGINE=none for this host alone)")


# -- what wins -------------------------------------------------------------------------------


def test_explicit_hosts_win_and_nothing_of_the_engine_is_looked_at() -> None:
    wrong = {**STEP, "SLURM_STEP_NODELIST": "n[2-1]"}
    named = {"SM_RUNTIME_HOSTS": "a,b", "SM_RUNTIME_CURRENT_HOST": "b"}
    assert job({**wrong, **named}).cluster.hosts == ("a", "b")
    parsed = parse(wrong, resourceconfig=RESOURCES)
    assert parsed.job is not None and parsed.job.cluster.hosts == ("algo-1", "algo-2")
    assert parsed.job.cluster.engine_job == ""


def test_a_self_managed_jobs_partial_file_gets_the_engines_hosts() -> None:
    found = job(STEP, job={}, resourceconfig={"network_interface_name": "ib0"})
    assert found.cluster.hosts == ("n1", "n2")
    assert found.cluster.network_interface == "ib0"


def test_the_number_of_hosts_of_a_request_holds_for_the_engines_too() -> None:
    found = problem(STEP, job={"ResourceConfig": {"InstanceCount": 3}})
    assert "InstanceCount: is 3, but 2 hosts are known" in found


def test_no_engine_is_looked_for_where_none_is_said() -> None:
    found = job({**STEP, "SM_RUNTIME_ENGINE": "none"})
    assert found.cluster.hosts == ("box",)
    assert found.options.stop_timeout_seconds == 120


def test_an_engine_that_is_named_must_be_there() -> None:
    assert job({**STEP, "SM_RUNTIME_ENGINE": "Slurm"}).cluster.hosts == ("n1", "n2")
    assert "SLURM_JOB_NODELIST: names no node" in problem({"SM_RUNTIME_ENGINE": "slurm"})
    found = problem({"SM_RUNTIME_ENGINE": "pbs"})
    assert found.startswith("environment: SM_RUNTIME_ENGINE: must be 'none', 'slurm', ")


def test_a_lone_job_id_is_no_engine() -> None:
    assert job({"SLURM_JOB_ID": "42"}).cluster.hosts == ("box",)
