"""The hosts of a job come to the same conclusions, whatever happens to one of them."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest

from sm_runtime.cluster import network
from sm_runtime.cluster.link import Link
from tests.harness import eventually
from tests.links import HOSTS, ONE, PAIR, SECRET, THREE, TWO, Elsewhere, Hosts, config, failure


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with closing(Hosts()) as found:
        yield found


# -- a job that ends well ----------------------------------------------------------------------


def test_all_start_when_all_are_ready_and_are_done_when_all_have_finished(hosts: Hosts) -> None:
    links = [hosts.add(config(host)) for host in HOSTS]
    for number, link in enumerate(links):
        assert link.state.start is None
        link.ready({"script": number})
    hosts.all(lambda link: link.state.start, "all start")
    assert {
        json.dumps(link.state.start["ports"], sort_keys=True) for link in links if link.state.start
    } == {json.dumps({host: {"script": number} for number, host in enumerate(HOSTS)})}
    links[0].finished()
    links[1].finished()
    links[2].send(ONE, {"do": "something"})
    eventually(lambda: links[0].state.inbox, "the message of the third")
    assert not any(link.state.training_done for link in links)
    links[2].finished()
    hosts.all(lambda link: link.state.training_done, "training is done")
    hosts.leave()
    eventually(lambda: links[0].workers_gone, "the workers leave first")
    assert not any(link.state.failure or link.state.stop_reason for link in links)


def test_a_host_that_comes_late_learns_what_has_happened(hosts: Hosts) -> None:
    for host in HOSTS[:2]:
        hosts.add(config(host)).ready({})
    hosts.links[TWO].stopped("SIGTERM")
    eventually(lambda: hosts.links[ONE].state.stop_reason, "the leader knows")
    late = hosts.add(config(THREE))
    eventually(lambda: late.state.stop_reason, "the late one knows")
    assert late.state.stop_reason == f"SIGTERM on {TWO}"


def test_a_host_that_starts_before_the_leader_waits_for_it(hosts: Hosts) -> None:
    worker = hosts.add(config(TWO, HOSTS[:2]))
    eventually(lambda: worker.state.waiting_for == ONE, "it waits")
    hosts.add(config(ONE, HOSTS[:2])).ready({})
    worker.ready({})
    hosts.all(lambda link: link.state.start, "all start")


def test_a_taken_port_is_no_hindrance(hosts: Hosts) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((ONE, config(ONE).port))
        taken.listen()
        hosts.start(greeting_seconds=0.5)


def test_the_leaders_name_is_looked_up_once_for_all_ports(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each host asks again and again: what it asks of the name's server counts with the hosts."""
    looked_up, resolve = [], network.resolve

    def counted(host: str) -> tuple[tuple[str, ...], str]:
        looked_up.append(host)
        return resolve(host)

    monkeypatch.setattr(network, "resolve", counted)
    with ExitStack() as stack:
        for offset in range(5):
            taken = stack.enter_context(socket.socket())
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind((ONE, config(ONE).port + offset))  # and refuses connections
        hosts.add(config(ONE, HOSTS[:2])).ready({})
        hosts.add(config(TWO, HOSTS[:2])).ready({})
        hosts.all(lambda link: link.state.start, "all start")
    assert looked_up == [ONE]


def test_messages_reach_the_host_they_are_for(hosts: Hosts) -> None:
    one, two, three = hosts.start()
    one.send(THREE, {"do": "launch"})
    eventually(lambda: three.state.inbox, "the third has it")
    three.send(ONE, {"do": "exited", "status": 0})
    eventually(lambda: one.state.inbox, "the leader has it")
    assert one.state.inbox.popleft() == {"do": "exited", "status": 0, "host": THREE}
    assert three.state.inbox.popleft() == {"do": "launch", "host": ONE}
    assert not two.state.inbox


# -- failures ----------------------------------------------------------------------------------


def test_a_failure_before_all_have_come_reaches_who_comes_later(hosts: Hosts) -> None:
    hosts.add(config(ONE)).failed(failure(ONE, "pip"))
    eventually(lambda: hosts.links[ONE].state.failure, "the leader has failed")
    for host in HOSTS[1:]:
        hosts.add(config(host))
    assert hosts.failure().message == "pip"
    hosts.leave()


def test_a_failure_of_a_host_that_waits_for_the_leader_is_told_when_it_comes(hosts: Hosts) -> None:
    worker = hosts.add(config(TWO, HOSTS[:2]))
    worker.failed(failure(TWO, "pip"))
    hosts.add(config(ONE, HOSTS[:2])).ready({})
    assert hosts.failure().message == "pip"
    assert hosts.links[ONE].state.start is None


def test_a_host_that_is_lost_is_why_the_others_fail(hosts: Hosts) -> None:
    one, _, three = hosts.start()
    one.failed(failure(ONE, "connection reset by peer"), 1)
    hosts.links.pop(TWO).close()
    hosts.failed_with(f"{TWO} (127.0.0.1) is lost")
    assert hosts.failure().name == "HostLostError"
    for link in (one, three):
        link.done()
    hosts.all(lambda link: link.state.finished, "nobody waits for the lost")


def test_a_lost_leader_ends_every_host(hosts: Hosts) -> None:
    hosts.start()
    hosts.links.pop(ONE).close()
    hosts.failed_with(f"{ONE} ({ONE}) is lost: the connection was closed")
    hosts.all(lambda link: link.state.finished, "nobody waits for the lost")


@pytest.mark.parametrize("silent", [ONE, TWO])
def test_a_host_that_falls_silent_is_lost(hosts: Hosts, silent: str) -> None:
    pair = HOSTS[:2]
    with Elsewhere(config(silent, pair, silence_seconds=3.0)) as elsewhere:
        rest = next(host for host in pair if host != silent)
        hosts.add(config(rest, pair, silence_seconds=0.5)).ready({})
        assert elsewhere.line() == "started"
        elsewhere.process.send_signal(signal.SIGSTOP)
        hosts.failed_with(f"{silent} (127.0.0.1) is lost: it has been silent for 0.5 s")
        hosts.links[rest].done()
        hosts.all(lambda link: link.state.finished, "nobody waits for the silent")


def test_a_host_that_does_not_read_is_lost_before_much_waits_for_it(hosts: Hosts) -> None:
    with Elsewhere(config(TWO, HOSTS[:2], silence_seconds=60.0)) as elsewhere:
        leader = hosts.add(config(ONE, HOSTS[:2], silence_seconds=60.0))
        leader.ready({})
        assert elsewhere.line() == "started"
        elsewhere.process.send_signal(signal.SIGSTOP)
        for _ in range(32):
            leader.send(TWO, {"text": "x" * 1_000_000})
        hosts.failed_with(f"{TWO} (127.0.0.1) is lost: it does not read")


# -- a request to stop -------------------------------------------------------------------------


@pytest.mark.parametrize("at", HOSTS)
def test_a_request_to_stop_reaches_all_with_the_host_that_received_it(
    hosts: Hosts, at: str
) -> None:
    hosts.start()
    hosts.links[at].stopped("SIGTERM")
    others = [link for host, link in hosts.links.items() if host != at]
    eventually(lambda: all(link.state.stop_reason for link in others), "the others know")
    assert {link.state.stop_reason for link in others} == {f"SIGTERM on {at}"}


# -- hosts that do not come, or should not -----------------------------------------------------


def test_a_host_that_never_comes_fails_all_by_name_and_cause(hosts: Hosts) -> None:
    names = (ONE, TWO, "no-such-host.invalid")
    for host in names[:2]:
        hosts.add(config(host, names, wait_seconds=0.5)).ready({})
    hosts.failed_with("no-such-host.invalid: its name does not resolve", "for 0.5 s")
    assert hosts.failure().name == "PeerError"
    hosts.leave()


def test_a_host_that_resolves_but_does_not_connect_is_told_as_that(hosts: Hosts) -> None:
    hosts.add(config(ONE, wait_seconds=0.5)).ready({})
    hosts.failed_with(f"{TWO}: has not connected (resolved {TWO}); {THREE}: has not")
    hosts.leave()


def test_a_leader_that_never_comes_is_told_by_name_and_cause(hosts: Hosts) -> None:
    hosts.add(config(TWO, wait_seconds=0.5)).ready({})
    hosts.failed_with(f"{ONE}: {ONE} port", "Connection refused for 0.5 s")
    names = ("no-such-host.invalid", TWO)
    hosts.links.pop(TWO).close()
    hosts.add(config(TWO, names, wait_seconds=0.2))
    hosts.failed_with("no-such-host.invalid: its name does not resolve")


@pytest.mark.parametrize("secret", [b"y" * 32, b""], ids=["another", "none"])
def test_a_host_with_another_secret_ends_at_once_and_says_so(hosts: Hosts, secret: bytes) -> None:
    leader = hosts.add(config(ONE, PAIR))
    worker = hosts.add(config("localhost", PAIR, secret=secret))
    hosts.all(lambda link: link.state.failure, "all fail")
    for link in (leader, worker):
        assert link.state.failure and "SM_RUNTIME_CLUSTER_SECRET" in link.state.failure.message


def test_a_secret_that_the_leader_lacks_is_told(hosts: Hosts) -> None:
    hosts.add(config(ONE, PAIR, secret=b""))
    hosts.add(config("localhost", PAIR))
    hosts.all(lambda link: link.state.failure, "all fail")
    messages = [link.state.failure.message for link in hosts.links.values() if link.state.failure]
    assert all("SM_RUNTIME_CLUSTER_SECRET" in message for message in messages)


def test_a_host_of_another_job_is_not_admitted(
    hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    leader = hosts.add(config(ONE, wait_seconds=1.0))
    other = hosts.add(config(TWO, wait_seconds=1.0, job_name="another"))
    eventually(lambda: leader.state.failure and other.state.failure, "both give up")
    text = f"another job's host answers, '{ONE}': its job's name is '' and this one's 'another'"
    assert other.state.failure and text in other.state.failure.message
    assert len([line for line in caplog.messages if line.endswith(text)]) == 1
    text = "it belongs to another job: its job's name is 'another' and this one's ''"
    assert (
        leader.state.failure
        and f"{TWO}: 127.0.0.1 was turned away: {text}" in leader.state.failure.message
    )


@pytest.mark.parametrize("secret", [SECRET, b""], ids=["secret", "none"])
def test_hosts_that_differ_fail_at_once_and_say_how(hosts: Hosts, secret: bytes) -> None:
    theirs = (ONE, THREE, "localhost")
    hosts.add(config(ONE, PAIR, secret=secret, wait_seconds=600.0)).ready({})
    hosts.add(config("localhost", theirs, secret=secret, wait_seconds=600.0)).ready({})
    differ = f"the lists of hosts of {ONE} and localhost differ"
    hosts.failed_with(differ, f"{THREE} only in that", "all hosts of a job need the same")
    assert hosts.links[ONE].state.start is None
    hosts.leave()


def test_a_host_that_the_leader_does_not_know_fails_at_once_and_the_others_go_on(
    hosts: Hosts,
) -> None:
    hosts.add(config(ONE, PAIR, job_name="j")).ready({})
    unknown = Link(config(TWO, (*PAIR, TWO), job_name="j", wait_seconds=600.0), lambda: None)
    unknown.start()
    eventually(lambda: unknown.state.failure, "it is turned away")
    unknown.close()
    text = f"{TWO} is not in the list of hosts of {ONE}: their lists differ"
    assert unknown.state.failure and text in unknown.state.failure.message
    hosts.add(config("localhost", PAIR, job_name="j")).ready({})
    hosts.all(lambda link: link.state.start, "both start")


def test_a_host_may_have_a_long_name(hosts: Hosts) -> None:
    name = "0x" + "7f".zfill(52) + ".0x" + "0".zfill(52) + ".0.1"  # 127.0.0.1
    hosts.start((name, "localhost"))


def test_all_hosts_know_the_addresses_that_they_have(hosts: Hosts) -> None:
    leader, worker = hosts.start(PAIR)
    assert leader.state.start and worker.state.start
    assert (
        leader.state.start["addresses"]
        == worker.state.start["addresses"]
        == {ONE: ONE, "localhost": ONE}
    )


def test_two_jobs_on_one_machine_find_their_own(hosts: Hosts) -> None:
    """The second leader has moved up one port, and has no secret where the first has one."""
    others = Hosts()
    with closing(others):
        hosts.add(config(ONE, PAIR, job_name="a"))
        others.add(config(ONE, PAIR, job_name="b", secret=b""))
        others.add(config("localhost", PAIR, job_name="b", secret=b""))
        hosts.add(config("localhost", PAIR, job_name="a"))
        for link in (*hosts.links.values(), *others.links.values()):
            link.ready({})
        hosts.all(lambda link: link.state.start, "the first starts")
        others.all(lambda link: link.state.start, "the second starts")


def test_a_host_that_comes_twice_is_admitted_once(hosts: Hosts) -> None:
    hosts.add(config(ONE)).ready({})
    first = hosts.add(config(TWO))
    eventually(lambda: first.state.waiting_for and first.state.waiting_for != ONE, "it is in")
    again = Link(config(TWO), lambda: None)
    again.start()
    eventually(lambda: again.state.failure, "it is turned away")
    again.close()
    assert (
        again.state.failure
        and f"turned away: {TWO} is already connected" in again.state.failure.message
    )
    assert not first.state.failure


def test_a_host_that_is_gone_does_not_come_back(hosts: Hosts) -> None:
    hosts.add(config(ONE)).ready({})
    first = hosts.add(config(TWO))
    eventually(lambda: first.state.waiting_for and first.state.waiting_for != ONE, "it is in")
    hosts.links.pop(TWO).close()
    hosts.failed_with(f"{TWO} (127.0.0.1) is lost")
    again = hosts.add(config(TWO))
    eventually(lambda: again.state.failure, "it is turned away")
    assert again.state.failure and "is already connected" in again.state.failure.message


# -- without a secret --------------------------------------------------------------------------


def test_without_a_secret_a_host_must_be_where_its_name_says(
    hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    pair = (ONE, TWO)  # whose connection comes from 127.0.0.1
    leader = hosts.add(config(ONE, pair, secret=b"", wait_seconds=1.0))
    worker = hosts.add(config(TWO, pair, secret=b"", wait_seconds=1.0))
    eventually(lambda: leader.state.failure and worker.state.failure, "both give up")
    text = f"it is not at the address of {TWO}, whose name resolves to {TWO}"
    assert leader.state.failure and text in leader.state.failure.message
    assert worker.state.failure
    assert f"this host was turned away: {text}" in worker.state.failure.message
    assert f"this host was turned away: {text}" in caplog.text


def test_without_a_secret_each_host_is_admitted_once(hosts: Hosts) -> None:
    leader, worker = hosts.start(PAIR, secret=b"")
    again = Link(replace(worker.config, wait_seconds=0.5), lambda: None)
    again.start()
    eventually(lambda: again.state.failure, "it finds nobody")
    again.close()
    assert again.state.failure and "refused" in again.state.failure.message
    leader.finished()
    worker.finished()
    hosts.all(lambda link: link.state.training_done, "training is done")


# -- what may not happen -----------------------------------------------------------------------


def test_a_malformed_message_is_the_end_of_one_connection(hosts: Hosts) -> None:
    hosts.start()
    worker = hosts.links.pop(TWO)
    worker._report({"type": "failed", "failure": {"class": 1}})
    hosts.failed_with(f"{TWO} (127.0.0.1) is lost: malformed message")
    eventually(lambda: worker.state.finished, "it is let go")
    worker.close()
    hosts.leave()


def test_a_link_that_is_at_fault_fails_the_job_and_lets_nobody_wait(hosts: Hosts) -> None:
    links = hosts.start()
    links[0]._report({"type": "pass"})
    eventually(lambda: all(link.state.finished for link in links), "nobody waits")
    assert links[0].state.failure and "KeyError: 'to'" in links[0].state.failure.message
    assert links[1].state.failure and f"{ONE} ({ONE}) is lost" in links[1].state.failure.message


def test_a_report_to_a_closed_link_goes_into_no_other_file(hosts: Hosts, tmp_path: Any) -> None:
    worker = hosts.start()[1]
    hosts.links[ONE].close()
    assert worker._thread
    worker._thread.join(60)
    with ExitStack() as stack:
        paths = [tmp_path / str(number) for number in range(64)]
        files = [stack.enter_context(path.open("wb")) for path in paths]
        worker.finished()
        worker.done()
        worker.close()
        hosts.links[ONE].close()
        for file in files:
            file.write(b"x")
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"x"}


# -- one host ----------------------------------------------------------------------------------


def alone() -> Link:
    return Link(config(ONE, (ONE,)), lambda: None)


def test_a_single_host_decides_at_once_and_opens_no_socket() -> None:
    link = alone()
    link.start()
    link.ready({"script": 5})
    assert link.state.start and link.state.start["ports"] == {ONE: {"script": 5}}
    link.finished()
    assert link.state.training_done
    link.done()
    assert link.state.finished and link.workers_gone
    link.close()


def test_a_single_host_keeps_its_first_failure_and_its_first_stop() -> None:
    link = alone()
    link.stopped("SIGTERM")
    link.stopped("SIGINT")
    link.failed(failure(ONE, "first"))
    link.failed(failure(ONE, "second"))
    link.finished()
    assert link.state.stop_reason == "SIGTERM"
    assert link.state.failure == failure(ONE, "first")
    assert not link.state.training_done
