"""What must be the same on all hosts of a job is compared, and said in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sm_runtime import __version__
from sm_runtime.cluster.agreement import ClusterConfig
from sm_runtime.cluster.connection import GREETING_BYTES
from sm_runtime.job.model import Cluster

A, B, C = "algo-1", "algo-2", "algo-3"


def config(current: str, hosts: tuple[str, ...] = (A, B), **more: Any) -> ClusterConfig:
    cluster = Cluster(current_host=current, hosts=hosts)
    values: dict[str, Any] = {"kind": "mpi", "versions": {"Open MPI": "4.1.4"}, **more}
    return ClusterConfig(cluster=cluster, hosts=hosts, **values)


def differences(own: ClusterConfig, other: ClusterConfig) -> list[str]:
    return own.differences(other.greeting(), json.loads(json.dumps(other.hello())))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, []),
        ({"versions": {"Open MPI": "5.0.3"}}, [f"Open MPI is 4.1.4 on {A} and 5.0.3 on {B}"]),
        ({"versions": {}}, [f"Open MPI is 4.1.4 on {A} and missing on {B}"]),
        ({"versions": {"Open MPI": ""}}, [f"Open MPI is 4.1.4 on {A} and missing on {B}"]),
        ({"kind": "torchrun"}, [f"{A} runs mpi and {B} torchrun"]),
        (
            {"versions": {"Open MPI": "4.1.4", "sm-runtime": "0.0.1"}},
            [f"sm-runtime is {__version__} on {A} and 0.0.1 on {B}"],
        ),
    ],
)
def test_hosts_that_differ_are_told_how(changes: dict[str, Any], text: list[str]) -> None:
    assert differences(config(A), config(B, **changes)) == text


@pytest.mark.parametrize(
    ("theirs", "how"),
    [
        ((A, B, C), f" ({C} only in that of {B})"),
        ((A, C), f" ({C} only in that of {C}, {B} only in that of {A})"),
        ((B, A), " (their order)"),
        ((A, B, *"123456"), f" ({', '.join(f'{n} only in that of {B}' for n in '12345')}, ...)"),
        ((A, B, *map(str, range(1000))), ""),
    ],
)
def test_lists_of_hosts_that_differ_are_told_by_name(theirs: tuple[str, ...], how: str) -> None:
    host = B if B in theirs else C
    text = f"the lists of hosts of {A} and {host} differ{how}"
    assert differences(config(A), config(host, theirs)) == [text]


@pytest.mark.parametrize(
    ("theirs", "is_other"),
    [
        ({"job_name": "j"}, False),
        ({"job_name": "j", "hosts": (A, B, C)}, False),
        ({"job_name": "k"}, True),
        ({"job_name": "k", "hosts": (A, B, C)}, True),
    ],
)
def test_a_job_is_known_by_its_name(theirs: dict[str, Any], is_other: bool) -> None:
    text = config(A, job_name="j").other_job(config(B, **theirs).greeting())
    assert text == ("its job's name is 'k' and this one's 'j'" if is_other else "")


def test_what_a_host_says_before_it_is_admitted_is_short() -> None:
    found = config(A, tuple(f"algo-{n}" for n in range(1000)), job_name="j" * 1000)
    for words in (found.greeting(), found.hello()):
        assert len(json.dumps(words)) < GREETING_BYTES - 200


@pytest.mark.parametrize(("silence", "beat"), [(1.0, 0.25), (8.0, 2.0), (20.0, 2.0)])
def test_a_host_sends_something_several_times_per_silence(silence: float, beat: float) -> None:
    assert config(A, silence_seconds=silence).beat == beat
