"""The hosts of a job come to the same conclusions: histories of what they report."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from sm_runtime.cluster.agreement import SETTLE_SECONDS, Agreement, Priority, State
from sm_runtime.job.failure import Failure

A, B, C = "algo-1", "algo-2", "algo-3"
HOSTS = (A, B, C)
READY = {"type": "ready", "ports": {"script": 2222}, "interface": "eth0"}
FINISHED = {"type": "finished", "began": True}
NEVER_BEGAN = {"type": "finished", "began": False}
DONE = {"type": "done"}
STOPPED = {"type": "stopped", "reason": "SIGTERM"}


def failure(host: str, message: str = "m", status: int = 3) -> Failure:
    return Failure(name="X", message=message, phase="train", status=status, host=host)


def failed(found: Failure, priority: int = Priority.FAILED) -> dict[str, Any]:
    return {"type": "failed", "failure": found.as_dict(), "priority": int(priority)}


class Job:
    """The agreement of a job and the state of each host, at a time that the test sets."""

    def __init__(self, hosts: tuple[str, ...] = HOSTS, **options: Any) -> None:
        self.now = 100.0
        self.agreement = Agreement(hosts, **options)
        self.states = {host: State() for host in hosts}
        self.connected = {hosts[0]}

    def joined(self, *hosts: str) -> Job:
        for host in hosts:
            self.connected.add(host)
            self.agreement.joined(host, f"10.0.0.{HOSTS.index(host) + 1}")
        return self.sent()

    def report(self, host: str, *messages: dict[str, Any]) -> Job:
        for message in messages:
            self.agreement.report(host, json.loads(json.dumps(message)), self.now)
        return self.sent()

    def all(self, *messages: dict[str, Any]) -> Job:
        for host in self.states:
            self.report(host, *messages)
        return self

    def lost(self, host: str, why: str = "the connection was closed") -> Job:
        self.connected.discard(host)
        self.agreement.lost(host, why, self.now)
        return self.sent()

    def after(self, seconds: float) -> Job:
        self.now += seconds
        self.agreement.decide(self.now)
        return self.sent()

    def sent(self) -> Job:
        for host, message in self.agreement.take():
            text = json.dumps(message)  # what goes over a connection
            for receiver in self.states if host is None else (host,):
                if receiver in self.connected:
                    self.states[receiver].apply(json.loads(text))
        return self

    def started(self) -> Job:
        return self.joined(*self.states).all(READY)

    def failure(self) -> Failure:
        """Return the failure that all connected hosts know of, which is the same."""
        found = {self.states[host].failure for host in self.connected}
        assert len(found) == 1, found
        only = found.pop()
        assert only is not None
        return only

    def say(self, what: str) -> set[bool]:
        return {bool(getattr(self.states[host], what)) for host in self.connected}


# -- a job that ends well ----------------------------------------------------------------------


def test_all_start_when_all_are_ready_and_know_ports_interfaces_and_addresses() -> None:
    job = Job().joined(*HOSTS).report(A, READY).report(B, READY)
    assert (job.say("start"), job.agreement.unready()) == ({False}, [C])
    job.report(C, READY)
    starts = [state.start for state in job.states.values()]
    assert starts[0] == starts[1] == starts[2]
    assert starts[0] == {
        "type": "start",
        "ports": {host: {"script": 2222} for host in HOSTS},
        "interfaces": dict.fromkeys(HOSTS, "eth0"),
        "addresses": {A: "10.0.0.1", B: "10.0.0.2", C: "10.0.0.3"},
    }


def test_training_is_done_when_all_have_finished_and_the_end_when_all_are_done() -> None:
    job = Job().started().report(A, FINISHED).report(B, FINISHED)
    assert job.say("training_done") == {False}
    job.report(C, FINISHED)
    assert (job.say("training_done"), job.say("finished")) == ({True}, {False})
    job.all(DONE)
    assert (job.say("finished"), job.say("failure")) == ({True}, {False})


def test_without_patience_all_hosts_go_on_to_their_own_end() -> None:
    job = Job().started().report(A, FINISHED).after(1e6)
    assert job.say("training_done") == {False}
    assert job.agreement.next_time(job.now) == math.inf


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_the_others_may_go_on_for_a_time_when_the_leader_has_finished(seconds: float) -> None:
    job = Job(patience_seconds=seconds).started().report(B, FINISHED).after(1e6)
    assert job.say("training_done") == {False}
    job.report(A, FINISHED)
    assert job.say("training_done") == {seconds == 0}
    if seconds:
        assert job.agreement.next_time(job.now) == job.now + seconds
        assert job.after(seconds).say("training_done") == {True}


def test_a_host_that_is_awaited_may_go_on_to_its_own_end() -> None:
    job = Job(patience_seconds=0.0, awaited=(C,)).started().report(A, FINISHED).after(1e6)
    assert job.say("training_done") == {False}
    assert job.agreement.next_time(job.now) == math.inf  # nothing is computed meanwhile
    assert job.report(C, FINISHED).say("training_done") == {True}


def test_messages_reach_the_host_that_they_are_for() -> None:
    job = Job().started()
    job.report(A, {"type": "pass", "to": C, "message": {"do": "launch"}})
    job.report(C, {"type": "pass", "to": B, "message": {"do": "exited"}})  # to the leader, always
    assert list(job.states[C].inbox) == [{"do": "launch", "host": A}]
    assert list(job.states[A].inbox) == [{"do": "exited", "host": C}]
    assert not job.states[B].inbox


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", HOSTS)
def test_a_failure_of_one_host_is_the_failure_of_all(at: str) -> None:
    job = Job().started().report(at, failed(failure(at)))
    assert job.say("failure") == {False}  # it may be a consequence
    assert job.agreement.next_time(job.now) == job.now + SETTLE_SECONDS
    assert job.after(SETTLE_SECONDS).failure() == failure(at)
    assert job.all(DONE).say("finished") == {True}


def test_of_several_failures_the_cause_counts_and_not_what_followed() -> None:
    job = Job().started()
    job.report(A, failed(failure(A, "mpirun"), Priority.SERVICE))
    job.report(B, failed(failure(B, "connection reset by peer"), Priority.FAILED))
    job.report(C, failed(failure(C, "SIGKILL"), Priority.KILLED))
    assert job.after(SETTLE_SECONDS).failure().message == "SIGKILL"


def test_of_equal_failures_the_first_counts() -> None:
    job = Job().started().report(B, failed(failure(B, "first"))).report(A, failed(failure(A)))
    assert job.after(SETTLE_SECONDS).failure().message == "first"


def test_a_failure_that_is_certain_does_not_change() -> None:
    job = Job().started().report(A, failed(failure(A, "first"))).after(SETTLE_SECONDS)
    job.report(B, failed(failure(B, "killed"), Priority.KILLED)).after(SETTLE_SECONDS)
    assert job.failure().message == "first"


def test_a_failure_before_all_are_there_reaches_who_comes_later() -> None:
    job = Job().report(A, failed(failure(A, "pip"))).after(SETTLE_SECONDS).joined(B, C)
    assert job.failure().message == "pip"
    assert job.say("start") == {False}
    assert job.all(READY, DONE).say("finished") == {True}


def test_a_failure_while_artifacts_are_saved_is_still_the_failure_of_all() -> None:
    job = Job().started().all(FINISHED).report(A, DONE).report(C, DONE)
    job.report(B, failed(failure(B, "upload")), DONE)
    assert job.say("finished") == {False}  # not before the reason is certain
    assert job.after(SETTLE_SECONDS).failure().message == "upload"
    assert job.say("finished") == {True}


def test_no_training_is_done_after_a_failure() -> None:
    job = Job().started().report(A, failed(failure(A))).report(B, FINISHED).report(C, FINISHED)
    assert job.after(SETTLE_SECONDS).say("training_done") == {False}


# -- hosts that are lost -----------------------------------------------------------------------


@pytest.mark.parametrize(("is_started", "name"), [(True, "HostLostError"), (False, "PeerError")])
def test_a_host_that_is_lost_is_the_cause_of_what_fails_beside_it(
    is_started: bool, name: str
) -> None:
    job = Job().joined(*HOSTS)
    if is_started:
        job.all(READY)
    job.report(A, failed(failure(A, "connection reset by peer"), Priority.KILLED)).lost(B)
    job.after(SETTLE_SECONDS)
    assert (job.failure().name, job.failure().host) == (name, B)
    assert job.failure().message == f"{B} (10.0.0.2) is lost: the connection was closed"
    assert job.report(A, DONE).report(C, DONE).say("finished") == {True}


def test_a_host_that_said_why_it_fails_is_not_lost_besides() -> None:
    job = Job().started().report(B, failed(failure(B, "out of memory"))).lost(B)
    assert job.after(SETTLE_SECONDS).failure().message == "out of memory"


def test_a_host_that_is_lost_while_it_saves_is_a_failure() -> None:
    job = Job().started().all(FINISHED).report(A, DONE).report(C, DONE).lost(B)
    assert job.after(SETTLE_SECONDS).failure().host == B
    assert job.say("finished") == {True}


def test_a_host_that_has_nothing_left_to_do_may_leave() -> None:
    job = Job().started().all(FINISHED).report(B, DONE).lost(B).after(SETTLE_SECONDS)
    assert job.say("failure") == {False}
    assert job.report(A, DONE).report(C, DONE).say("finished") == {True}


def test_hosts_that_never_come_are_given_up() -> None:
    job = Job().joined(B).report(A, READY).report(B, READY)
    job.agreement.absent((C,), f"{C}: its name does not resolve for 300 s", job.now)
    assert job.after(SETTLE_SECONDS).failure().message.startswith(f"{C}: its name")
    assert job.report(A, DONE).report(B, DONE).say("finished") == {True}


# -- a request to stop -------------------------------------------------------------------------


@pytest.mark.parametrize("at", HOSTS)
def test_a_request_to_stop_reaches_all_with_the_host_that_received_it(at: str) -> None:
    job = Job().started().report(at, STOPPED)
    reasons = {host: state.stop_reason for host, state in job.states.items()}
    assert reasons == {host: "SIGTERM" if host == at else f"SIGTERM on {at}" for host in HOSTS}


def test_the_first_request_to_stop_counts() -> None:
    job = Job().started().report(B, STOPPED).report(A, {"type": "stopped", "reason": "SIGINT"})
    assert job.states[A].stop_reason == f"SIGTERM on {B}"


def test_a_host_that_comes_late_learns_of_the_request() -> None:
    job = Job().joined(B).report(B, STOPPED).joined(C)
    assert job.states[C].stop_reason == f"SIGTERM on {B}"


def test_after_a_request_to_stop_the_end_of_one_host_hastens_no_other() -> None:
    job = Job(patience_seconds=0.0).started().report(B, STOPPED)
    job.report(B, failed(failure(B, "stopped", 143))).report(A, FINISHED).after(1e6)
    assert (job.say("failure"), job.say("training_done")) == ({False}, {False})
    assert job.agreement.next_time(job.now) == math.inf
    assert job.report(C, FINISHED).failure().status == 143


def test_a_host_that_is_lost_while_all_stop_does_not_hold_up_the_end() -> None:
    job = Job().started().report(A, STOPPED).report(A, FINISHED).lost(B).report(C, FINISHED)
    assert job.failure().host == B


def test_after_a_request_to_stop_hosts_that_end_well_make_a_job_that_did() -> None:
    job = Job().started().report(A, STOPPED).all(FINISHED)
    assert (job.say("training_done"), job.say("failure")) == ({True}, {False})


def test_a_stop_before_any_script_began_is_no_success() -> None:
    job = Job().started().report(B, STOPPED).all(NEVER_BEGAN)
    found = job.failure()
    assert (found.name, found.status, found.host) == ("StoppedError", 143, B)
    assert found.message == "stopped by SIGTERM before the script started"


def test_a_stop_that_one_script_has_seen_is_the_success_of_its_host() -> None:
    job = Job().started().report(B, STOPPED).report(C, FINISHED).all(NEVER_BEGAN)
    assert (job.say("training_done"), job.say("failure")) == ({True}, {False})


# -- a single host -----------------------------------------------------------------------------


def test_a_single_host_decides_by_the_same_rules() -> None:
    job = Job((A,)).report(A, READY)
    assert job.states[A].start is not None
    job.report(A, FINISHED, DONE)
    assert (job.say("training_done"), job.say("finished")) == ({True}, {True})


# -- malformed reports -------------------------------------------------------------------------

MALFORMED = [
    {},
    {"type": "ready"},
    {"type": "ready", "ports": [1], "interface": ""},
    {"type": "ready", "ports": {"script": "x"}, "interface": ""},
    {"type": "finished"},
    {"type": "failed", "failure": {"class": 1}, "priority": 1},
    {"type": "failed", "failure": failure(A).as_dict(), "priority": "x"},
    {"type": "failed", "failure": None, "priority": 1},
    {"type": "stopped"},
    {"type": "pass", "message": None},
    {"type": "pass"},
]


@pytest.mark.parametrize("message", MALFORMED)
def test_a_malformed_report_is_an_error_and_changes_nothing(message: dict[str, Any]) -> None:
    job = Job().started()
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        job.report(B, message)
    assert job.after(1e6).say("failure") == {False}
    assert job.all(FINISHED).say("training_done") == {True}


def test_an_unknown_message_is_no_error() -> None:
    """A heartbeat is one."""
    job = Job().started().report(B, {"type": "beat"})
    state = job.states[B]
    state.apply({"type": "beat"})
    state.apply({"type": "wait", "hosts": "algo-3"})
    assert (state.waiting_for, state.failure) == ("algo-3", None)
