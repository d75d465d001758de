"""What a host reports of its processes, and does when the hosts have agreed: histories."""

from __future__ import annotations

import dataclasses
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest

from sm_runtime.cluster.agreement import Priority
from sm_runtime.cluster.host import ABORT_SECONDS, SERVICE_SECONDS, HostPolicy, HostProcesses
from sm_runtime.job.failure import Failure
from sm_runtime.processes.stop import StopPolicy
from sm_runtime.processes.workload import (
    Ask,
    Drain,
    Drained,
    Exited,
    Kill,
    Send,
    Signalled,
    Streams,
    Vanished,
    Watch,
)
from tests.histories import SCRIPT, History, Link, ended

GRACE = 10.0
SERVER = dataclasses.replace(SCRIPT, name="parameter server")
LOST = Failure(name="HostLostError", message="m", phase="train", status=1, host="algo-2")
NO_PURPOSE = Send(0, SIGTERM)
"""What the script has started is ended with it."""


class Host(History):
    def __init__(self, scripts: int = 1, services: int = 0, **policy: Any) -> None:
        self.link = Link()
        stop = StopPolicy(grace_seconds=GRACE)
        self.processes = HostProcesses(
            self.link,
            HostPolicy(host="algo-1", stop=stop, mask=str, **policy),
            [SCRIPT] * scripts,
            [SERVER] * services,
        )
        super().__init__(self.processes)


def asked(key: int, reason: str = "SIGTERM") -> Ask:
    return Ask(key=key, number=SIGTERM, reason=reason, grace_seconds=GRACE)


def test_a_host_whose_script_has_ended_well_waits_for_the_others() -> None:
    host = Host()
    assert host.at(1, Exited(0, 0)) == [NO_PURPOSE]
    assert (host.link.reports, host.is_done) == ([("finished", True)], False)
    host.link.state.training_done = True
    host.at(9)
    assert (host.is_done, host.processes.outcome) == (True, None)


def test_services_start_first_and_end_last() -> None:
    host = Host(services=1)
    assert [(start.command, start.streams) for start in host.started] == [
        (SERVER, Streams.STDERR),
        (SCRIPT, Streams.OURS),
    ]
    host.at(1, Exited(1, 0))
    host.link.state.training_done = True
    assert host.at(2) == [Send(0, SIGKILL)], "it has nothing to save, and takes no other signal"
    assert host.next_time() == 2 + SERVICE_SECONDS
    host.at(3, Exited(0, -9))
    assert host.is_done


FAILURES = [(3, None, Priority.FAILED), (-11, None, Priority.KILLED), (-15, "x", Priority.FAILED)]


@pytest.mark.parametrize("status, stopped_by, priority", FAILURES)
def test_a_failure_is_reported_when_its_output_is_here(
    status: int, stopped_by: str | None, priority: Priority
) -> None:
    host = Host()
    assert host.at(1, Exited(0, status)) == [NO_PURPOSE, Drain(0)]
    assert host.link.reports == []
    signal = -status if status < 0 else None
    host.at(2, Drained(0, ended(abs(status), signal=signal, stopped_by=stopped_by, tail=b"E: m\n")))
    [(_, rank, reported)] = host.link.reports
    assert (rank, reported) == (None, priority)


def test_a_service_that_ends_is_a_failure_even_with_status_0() -> None:
    host = Host(services=1)
    assert host.at(1, Exited(0, 0)) == [Drain(0)]
    host.at(1, Drained(0, ended(0)))
    [(message, _, priority)] = host.link.reports
    assert "parameter server" in message and priority is Priority.SERVICE


def test_a_job_that_has_failed_elsewhere_ends_the_scripts_soon() -> None:
    host = Host(scripts=2, services=1)
    host.link.state.failure = LOST
    assert host.at(1) == [Ask(key=1, number=SIGTERM), Ask(key=2, number=SIGTERM)]
    assert host.at(2, Exited(1, -15)) == [Watch(1, asks_others=True)]
    host.at(2, Vanished(1))
    assert host.at(1 + ABORT_SECONDS) == [Kill(2)]
    host.at(5, Exited(2, -9))
    assert host.at(5, Vanished(2)) == [Send(0, SIGKILL)]
    host.at(5, Exited(0, -9))
    assert host.is_done
    assert host.processes.outcome == LOST
    assert host.link.reports == [("finished", True)], "what was ended for others' sake is no reason"


def test_a_stop_is_reported_and_keeps_the_grace() -> None:
    host = Host(scripts=2)
    assert host.at(1, Signalled(SIGTERM)) == [asked(0), asked(1)]
    assert host.link.reports == [("stopped", "SIGTERM")]
    host.link.state.stop_reason = "SIGTERM"
    assert host.at(2) == []
    assert host.next_time() == 1 + GRACE


def test_a_stop_of_another_host_reaches_the_scripts_and_is_not_reported() -> None:
    host = Host()
    host.link.state.stop_reason = "SIGTERM on algo-2"
    assert host.at(1) == [asked(0, "SIGTERM on algo-2")]
    assert host.at(2, Signalled(SIGTERM)) == [], "it has its SIGTERM"
    assert host.link.reports == []


def test_failures_after_a_stop_are_reported_when_all_have_ended_the_likeliest_cause() -> None:
    host = Host(scripts=2)
    host.at(1, Signalled(SIGTERM))
    for key, status in ((0, 3), (1, -11)):
        host.at(2, Exited(key, status))
        host.at(2, Vanished(key))
        assert host.link.reports == [("stopped", "SIGTERM")]
        host.at(3, Drained(key, ended(abs(status), signal=-status if status < 0 else None)))
    assert [report[-1] for report in host.link.reports[1:]] == [Priority.KILLED]


def test_a_failure_whose_output_is_held_open_is_told_though_all_was_over() -> None:
    host = Host()
    host.link.state.training_done = True  # the hosts agree in the moment of the end
    assert host.at(1, Exited(0, 3)) == [NO_PURPOSE, Drain(0)]
    assert not host.is_done, "it may be a failure"
    host.at(3, Drained(0, ended(3)))
    assert host.is_done and len(host.link.reports) == 1


@pytest.mark.parametrize("serves", [False, True])
def test_workers_whose_leader_is_done_are_ended(serves: bool, caplog: Any) -> None:
    host = Host(ends_with_leader=serves)
    host.link.state.training_done = True
    assert host.at(1) == [Ask(key=0, number=SIGTERM)]
    assert ("the script of algo-1 is done" in caplog.text) is not serves
    host.at(2, Exited(0, -15), Vanished(0))
    assert host.is_done and host.processes.outcome is None


def test_a_script_counts_as_started_when_its_start_has_been_done() -> None:
    host = Host()
    assert host.started and not host.processes.started, "it is only decided"
    host.at(0)
    assert host.processes.started
