"""Numbers that no job can have are a sentence; those that somebody may mean are taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sm_runtime.cluster.config import PORTS
from sm_runtime.contract import load
from sm_runtime.contract.load import Parsed
from sm_runtime.contract.options import OPTIONS
from sm_runtime.contract.reader import Document, Field
from sm_runtime.job.model import Paths
from sm_runtime.launch import distribution

HUGE = 10**400
SECONDS = sorted(name for name in OPTIONS if name.endswith("_seconds"))
PER_HOST = "sagemaker_mpi_num_of_processes_per_host"
TOTAL = "sagemaker_mpi_num_processes"


def parse(environ: dict[str, str] | None = None, **documents: Any) -> Parsed:
    found = {
        name: Document(
            f"{name}.json", value if isinstance(value, bytes) else json.dumps(value).encode()
        )
        for name, value in documents.items()
    }
    return load.parse(found, environ or {}, Paths(), "box")


def option(name: str, value: str) -> Parsed:
    return parse({f"SM_RUNTIME_{name.upper()}": value})


REQUEST: list[tuple[Any, str]] = [
    ({"StoppingCondition": {"MaxRuntimeInSeconds": HUGE}}, "of at most 2147483647, not 1000"),
    ({"StoppingCondition": {"MaxRuntimeInSeconds": 2**31}}, "of at most 2147483647"),
    ({"StoppingCondition": {"MaxRuntimeInSeconds": -1}}, "of at least 1, not -1"),
    ({"StoppingCondition": {"MaxRuntimeInSeconds": 1.5}}, "must be a whole number of at least 1"),
    ({"StoppingCondition": {"MaxRuntimeInSeconds": float("inf")}}, "must be a whole number"),
    ({"StoppingCondition": {"MaxRuntimeInSeconds": "9" * 50}}, "of at most 2147483647"),
    ({"StoppingCondition": {"MaxRuntimeInSeconds": "9" * 5000}}, "must be a whole number"),
    ({"ResourceConfig": {"InstanceCount": HUGE}}, "of at most 2147483647"),
    ({"ResourceConfig": {"InstanceCount": -1}}, "of at least 0, not -1"),
    (
        {"InputDataConfig": [{"ChannelName": "c", "ShuffleConfig": {"Seed": 2**63}}]},
        "Seed: must be a whole number of at most 9223372036854775807",
    ),
    (
        {"InputDataConfig": [{"ChannelName": "c", "ShuffleConfig": {"Seed": -HUGE}}]},
        "Seed: must be a whole number of at least -9223372036854775808",
    ),
]


@pytest.mark.parametrize(("request_", "reason"), REQUEST)
def test_a_number_of_the_request_has_the_bounds_of_the_api(request_: Any, reason: str) -> None:
    (problem,) = parse(job=request_).problems
    assert reason in problem
    assert len(problem) < 300


@pytest.mark.parametrize("seconds", [1, 2419200, 2**31 - 1, "3600"])
def test_times_that_somebody_may_mean_are_taken(seconds: Any) -> None:
    found = parse(job={"StoppingCondition": {"MaxRuntimeInSeconds": seconds}}).job
    assert found is not None
    assert found.max_runtime_seconds == float(seconds)


@pytest.mark.parametrize(
    "digits", [b'{"a": ' + b"9" * 5000 + b"}", b'{"a": [-' + b"1" * 9999 + b"]}"]
)
@pytest.mark.parametrize("name", ["hyperparameters", "job", "inputdataconfig", "resourceconfig"])
def test_a_number_that_python_does_not_read_is_a_sentence(name: str, digits: bytes) -> None:
    documents: dict[str, Any] = {"resourceconfig": {"hosts": ["a"], "current_host": "a"}}
    (problem,) = parse(**{**documents, name: digits}).problems
    assert problem == f"{name}.json: holds a whole number of more digits than can be read (4300)"


def test_hyperparameters_of_the_user_are_unbounded() -> None:
    found = parse(hyperparameters={"a": HUGE, "b": str(HUGE), "c": "9" * 5000}).job
    assert found is not None
    assert found.hyperparameters == {"a": HUGE, "b": HUGE, "c": "9" * 5000}


@pytest.mark.parametrize("count", [10**5, 10**17, HUGE, str(10**5), 1025])
def test_a_host_is_not_asked_for_more_processes_than_it_can_have(count: Any) -> None:
    (problem,) = parse(hyperparameters={PER_HOST: count}).problems
    assert problem.startswith(
        f"hyperparameters.json: {PER_HOST}: must be a whole number of at most"
    )


@pytest.mark.parametrize(("count", "most"), [(1024, None), (1025, 1024), (10**9, 1024)])
def test_hosts_together_are_not_asked_for_more_either(count: int, most: int | None) -> None:
    asked = {"sagemaker_mpi_enabled": "true", TOTAL: count}
    found = parse(hyperparameters=asked).job
    assert found is not None
    expected = [
        f"hyperparameters: {TOTAL}: must be a whole number of at most {most} on 1 host, not"
    ]
    expected[0] += f" {count}"
    assert distribution.problems(found) == ([] if most is None else expected)


def test_several_hosts_may_run_more_processes() -> None:
    asked = {"sagemaker_mpi_enabled": "true", TOTAL: 2048}
    found = parse(
        hyperparameters=asked, resourceconfig={"hosts": ["a", "b"], "current_host": "a"}
    ).job
    assert found is not None
    assert distribution.problems(found) == []


@pytest.mark.parametrize("level", ["9" * 5000, 10**400, "99999", -1, 1001])
def test_a_log_level_is_a_small_number(level: Any) -> None:
    (problem,) = parse(hyperparameters={"sagemaker_container_log_level": level}).problems
    assert "must be a log level" in problem


@pytest.mark.parametrize("name", SECONDS)
def test_no_option_waits_for_ever(name: str) -> None:
    for value in ("1e300", "inf", "9" * 400, "2147483648"):
        (problem,) = option(name, value).problems
        assert problem.startswith(
            f"environment: SM_RUNTIME_{name.upper()}: must be a number of seconds"
        )
        assert "of at most 2147483647, not" in problem


@pytest.mark.parametrize("name", SECONDS)
def test_no_option_waits_less_than_nothing(name: str) -> None:
    for value in ("-1", "nan", "-inf", "x", "-" + "9" * 400):
        (problem,) = option(name, value).problems
        assert "must be a number of seconds of at least" in problem, value


@pytest.mark.parametrize("name", SECONDS)
def test_every_wait_may_be_long(name: str) -> None:
    found = option(name, "2147483647").job
    assert found is not None
    assert getattr(found.options, name) == 2147483647


@pytest.mark.parametrize("name", ["stall_seconds", "peer_silence_seconds"])
def test_no_patience_at_all_is_no_setting(name: str) -> None:
    (problem,) = option(name, "0").problems
    assert "of at least 0.1, not '0'" in problem


def test_no_silence_is_too_long_where_the_limit_is_nothing() -> None:
    found = option("silence_seconds", "0").job
    assert found is not None
    assert found.options.silence_seconds is None


BOUNDS = [
    ("cluster_port", "70000", "a whole number of at most 65526"),
    ("cluster_port", "80", "a whole number of at least 1024"),
    ("code_max_bytes", str(2**63), f"a whole number of at most {2**63 - 1}"),
    ("code_max_bytes", "0", "a whole number of at least 1"),
    ("chown", "4294967295:0", "numbers of at most 4294967294"),
    ("chown", "0:99999999999", "numbers like 1000:1000"),
    ("chown", "9" * 5000 + ":1", "numbers like 1000:1000"),
    ("chown", "-1:1", "numbers like 1000:1000"),
    ("chown", "\u0661:1", "numbers like 1000:1000"),
]


@pytest.mark.parametrize(("name", "value", "reason"), BOUNDS)
def test_an_option_has_bounds(name: str, value: str, reason: str) -> None:
    (problem,) = option(name, value).problems
    assert problem.startswith(f"environment: SM_RUNTIME_{name.upper()}: must be {reason}, not")


def test_the_last_port_leaves_the_leader_all_that_it_tries() -> None:
    found = option("cluster_port", "65526").job
    assert found is not None
    assert found.options.cluster_port + PORTS - 1 == 65535


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_no_number_breaks_an_option_of_the_hyperparameters(name: str) -> None:
    """Taken or a sentence, and never an exception."""
    for value in (HUGE, -HUGE, float("inf"), float("nan"), -1, 0, 10**9, True):
        parsed = parse(hyperparameters={f"sagemaker_runtime_{name}": value})
        assert parsed.job is not None or len(parsed.problems) == 1, value


def test_a_field_shows_no_more_of_a_number_than_fits_a_line() -> None:
    findings = load.Findings()
    Field("f", "k", HUGE, findings).integer(minimum=1)
    assert len(findings.problems[0]) < 200
